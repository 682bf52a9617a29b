"""An object storage in memory, for tests of what is stored."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from inference_service.core.errors import InputNotFound, InputTooLarge
from inference_service.core.settings import Settings
from inference_service.jobs.storage.object_storage import Storage, StoredObject


class MemoryStorage(Storage):
    """Objects by bucket and key.

    Args:
        conditional: Whether it has conditional writes.

    Attributes:
        objects: The content of each object.
        requests: The name of each request, and the key.
        before: Called with the name and the key before each request.
    """

    def __init__(self, *, conditional: bool = True) -> None:
        super().__init__(Settings(_env_file=None))
        self.objects: dict[tuple[str, str], bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda name, key: None
        self._conditional = conditional

    def _request(self, name: str, key: str) -> None:
        self.requests.append((name, key))
        self.before(name, key)

    def _read(self, bucket: str, key: str, *, max_bytes: int) -> bytes:
        self._request("read", key)
        return self._content(bucket, key, max_bytes)

    def _content(self, bucket: str, key: str, max_bytes: int) -> bytes:
        if (bucket, key) not in self.objects:
            raise InputNotFound("there is no object at the bucket and key of the request")
        content = self.objects[bucket, key]
        if len(content) > max_bytes:
            raise InputTooLarge(f"the object has {len(content)} bytes")
        return content

    def _fetch(self, bucket: str, key: str, target: Path, *, max_bytes: int, follow: Callable[[int], None]) -> None:
        self._request("fetch", key)
        content = self._content(bucket, key, max_bytes)
        follow(len(content) // 2)
        target.write_bytes(content)
        follow(len(content))

    def _store(self, bucket: str, key: str, source: Path, content_type: str) -> None:
        self._request("store", key)
        self.objects[bucket, key] = source.read_bytes()

    def _create(self, bucket: str, key: str, content: bytes) -> bool:
        self._request("create", key)
        if self._conditional and (bucket, key) in self.objects:
            return False
        self.objects[bucket, key] = content
        return True

    def _list_objects(self, bucket: str, prefix: str) -> list[StoredObject]:
        self._request("list", prefix)
        return [
            StoredObject(key, len(content), (hashlib.sha256(content).hexdigest(), None))
            for (other, key), content in sorted(self.objects.items())
            if other == bucket and key.startswith(prefix)
        ]

    def remove(self, bucket: str, key: str) -> None:
        self._request("remove", key)
        self.objects.pop((bucket, key), None)
