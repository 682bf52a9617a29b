"""The models in the object storage: `<prefix>/<name>/<version>/index.json`, and beside it the files under their sha256.

A version never changes. Its index is stored last, so that a part of a version is none.
"""

import errno
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from inference_service.contract.manifest import MANIFEST_FILE
from inference_service.contract.model_index import INDEX_FILE, ModelIndex
from inference_service.contract.task_message import NAME_PATTERN, VERSION_PATTERN
from inference_service.contract.validation import first_problem
from inference_service.core.errors import (
    BadRequest,
    InputNotFound,
    InputTooLarge,
    ModelInvalid,
    ModelNotFound,
    ResultDamaged,
    StorageUnavailable,
)
from inference_service.core.files import Checksum
from inference_service.core.settings import Settings
from inference_service.engine.model_folder import install, staging
from inference_service.engine.model_registry import (
    MAX_MANIFEST_BYTES,
    Model,
    check_names,
    read_model,
    version_order,
)
from inference_service.jobs.storage.object_storage import Storage, StoredObject
from inference_service.model_store.indexing import index_of, model_files, network_hashes, require_equal

logger = logging.getLogger(__name__)

Report = Callable[[float], None]
"""Called with the share of a transfer that is done, 0…1. It may raise an error to end the transfer."""

# How long a listing is used.
_LISTING_S = 10.0
_MAX_INDEX_BYTES = 2**20
_CONTENT_TYPES = {".json": "application/json", ".md": "text/markdown"}
_INDEX_KEY = re.compile(f"({NAME_PATTERN[1:-1]})/({VERSION_PATTERN[1:-1]})/{re.escape(INDEX_FILE)}")


def no_report(share: float) -> None:
    """A `Report` that does nothing."""


class StoredModels:
    """The models under a prefix of a bucket.

    Args:
        storage: The object storage.
        bucket: The bucket.
        prefix: The prefix; None: the top of the bucket.
    """

    def __init__(self, storage: Storage, bucket: str, prefix: str | None = None) -> None:
        self._storage = storage
        self._bucket = bucket
        self._root = f"{prefix.removesuffix('/')}/" if prefix else ""
        self._listings: dict[str, tuple[float, list[str]]] = {}

    @classmethod
    def of(cls, settings: Settings, storage: Storage) -> "StoredModels | None":
        """Returns the models of MODELS_BUCKET; None where it is not set."""
        bucket = settings.models_bucket
        return None if bucket is None else cls(storage, bucket, settings.models_prefix)

    @property
    def address(self) -> str:
        """The s3:// address of all models."""
        return f"s3://{self._bucket}/{self._root}"

    def versions(self, name: str, *, again: bool = False) -> list[str]:
        """Lists the stored versions of a model in ascending order.

        Args:
            name: The model's name.
            again: Whether a listing of a few seconds ago is not good enough.

        Raises:
            StorageUnavailable: The storage does not answer or refuses.
        """
        listed_at, versions = self._listings.get(name, (-_LISTING_S, []))
        if again or time.monotonic() > listed_at + _LISTING_S:
            versions = [version for _, version, _ in self._indexes(f"{name}/")]
            self._listings.pop(name, None)
            # Names of no model are not remembered: requests may have any number of them.
            if versions:
                self._listings[name] = (time.monotonic(), versions)
        return versions

    def inventory(self, known: dict[StoredObject, ModelIndex]) -> list[ModelIndex]:
        """Reads the indexes of all versions, sorted by name and version. Invalid ones are logged and left out.

        Args:
            known: The indexes read before, which are not read again; brought up to date here.

        Raises:
            StorageUnavailable: The storage does not answer or refuses.
        """
        found: dict[StoredObject, ModelIndex] = {}
        for name, version, stored in self._indexes(""):
            try:
                found[stored] = known.get(stored) or self.read_index(name, version)
            except ModelNotFound:
                continue  # it was just removed
            except ModelInvalid as error:
                logger.warning("%s", error)
        known.clear()
        known.update(found)
        return list(found.values())

    def find_index(self, name: str, version: str | None) -> ModelIndex:
        """Reads the index of a version, or of the highest one; raises the errors of `read_index`."""
        check_names(name, version)
        versions = self.versions(name, again=True)
        if version is None and not versions:
            raise ModelNotFound(f"model {name!r} is not stored in MODELS_BUCKET")
        return self.read_index(name, version or versions[-1])

    def read_index(self, name: str, version: str) -> ModelIndex:
        """Reads the index of a version.

        Raises:
            ModelNotFound: The version is not stored.
            ModelInvalid: The index is damaged, or belongs to another version.
            StorageUnavailable: The storage does not answer or refuses.
        """
        check_names(name, version)
        title = f"{name} {version}"
        try:
            content = self._storage.read(self._bucket, self._key(name, version, INDEX_FILE), max_bytes=_MAX_INDEX_BYTES)
            index = ModelIndex.model_validate_json(content)
        except InputNotFound as error:
            raise ModelNotFound(f"model {title} is not stored in MODELS_BUCKET") from error
        except InputTooLarge as error:
            raise ModelInvalid(f"the stored model {title} has an {INDEX_FILE} that is too large") from error
        except ValidationError as error:
            raise ModelInvalid(
                f"the stored model {title}: {INDEX_FILE} is invalid at {first_problem(error)}"
            ) from error
        if (index.name, index.version) != (name, version):
            raise ModelInvalid(f"the stored model {title}: {INDEX_FILE} is for {index.title}")
        return index

    def fetch_manifest(self, index: ModelIndex, folder: Path) -> Model:
        """Fetches the manifest of a version, and checks that the index lists the networks that it names.

        Args:
            index: The version's index.
            folder: An empty folder, `<name>/<version>`.

        Raises:
            ModelInvalid: The manifest is damaged or missing, or contradicts the index.
            StorageUnavailable: The storage does not answer or refuses.
        """
        if index.files[MANIFEST_FILE].size_bytes > MAX_MANIFEST_BYTES:
            raise ModelInvalid(f"the stored model {index.title} has a {MANIFEST_FILE} that is too large")
        self.fetch_file(index, MANIFEST_FILE, folder)
        model = read_model(folder)
        for name, sha256 in network_hashes(model).items():
            if name not in index.files or index.files[name].sha256 != sha256:
                raise ModelInvalid(f"the stored model {index.title}: its {INDEX_FILE} lacks the {name} of its manifest")
        return model

    def fetch(self, index: ModelIndex, folder: Path, report: Report = no_report) -> None:
        """Fetches all files of a version, and verifies each.

        Args:
            index: The version's index.
            folder: An empty folder, `<name>/<version>`.
            report: Called as the files arrive.

        Raises:
            ModelInvalid: A file is damaged or missing, or the manifest contradicts the index.
            StorageUnavailable: The version was removed meanwhile, or the storage does not answer or refuses.
        """
        self.fetch_manifest(index, folder)
        done_bytes = index.files[MANIFEST_FILE].size_bytes
        for name, file in index.files.items():
            if name != MANIFEST_FILE:
                self.fetch_file(index, name, folder, _follow(report, done_bytes, index.size_bytes))
                done_bytes += file.size_bytes
        report(1.0)

    def fetch_file(
        self, index: ModelIndex, name: str, folder: Path, follow: Callable[[int], None] = lambda _: None
    ) -> None:
        """Fetches a file of a version, and verifies it; raises the errors of `fetch`.

        Args:
            index: The version's index.
            name: The file.
            folder: The folder that gets it.
            follow: Called with the bytes that have arrived.
        """
        file = index.files[name]
        key = self._key(index.name, index.version, file.sha256)
        try:
            self._storage.fetch_verified(
                self._bucket, key, folder / name, Checksum(file.sha256, file.size_bytes), follow=follow
            )
        except InputNotFound as error:
            if self._existing(index) != index:
                raise StorageUnavailable(f"the stored model {index.title} was removed while it was fetched") from error
            raise ModelInvalid(f"the stored model {index.title} lacks its {name}") from error
        except ResultDamaged as error:
            raise ModelInvalid(
                f"the stored model {index.title}: {name} is not the file that its {INDEX_FILE} lists"
            ) from error

    def push(self, model: Model, report: Report = no_report) -> bool:
        """Stores a version, whose networks the caller has verified.

        Args:
            model: The installed model.
            report: Called as files are stored.

        Returns:
            False if it was stored already, with equal content.

        Raises:
            BadRequest: The version is stored already, with another content.
            ModelInvalid: The folder has no regular file that the manifest names, or changes meanwhile.
            StorageUnavailable: The storage does not answer or refuses.
        """
        paths = {path.name: path for path in model_files(model.folder)}
        index = index_of(model)
        existing = self._existing(index)
        require_equal(index, existing)
        stored = {each.key: each.size_bytes for each in self._objects(index.name, index.version)}
        done_bytes = 0
        for name, file in index.files.items():
            key = self._key(index.name, index.version, file.sha256)
            if stored.get(key) != file.size_bytes:
                content_type = _CONTENT_TYPES.get(paths[name].suffix, "application/octet-stream")
                self._storage.store(self._bucket, key, paths[name], content_type=content_type)
            if Checksum.of_file(paths[name]) != Checksum(file.sha256, file.size_bytes):
                self._storage.remove(self._bucket, key)
                raise ModelInvalid(f"model {index.title}: {name} has changed while it was pushed")
            done_bytes += file.size_bytes
            report(done_bytes / index.size_bytes)
        if existing is not None:
            return False
        return self._publish(index)

    def _publish(self, index: ModelIndex) -> bool:
        """Stores the index, unless another push was faster; False if that one had the same content."""
        created = self._storage.create(self._bucket, self._key(index.name, index.version, INDEX_FILE), index.content())
        # Another push may have been faster or, where the storage has no conditional writes, have replaced the index.
        found = self.read_index(index.name, index.version)
        try:
            require_equal(index, found)
        except BadRequest:
            kept = {file.sha256 for file in found.files.values()}
            for sha256 in {file.sha256 for file in index.files.values()} - kept:
                self._storage.remove(self._bucket, self._key(index.name, index.version, sha256))
            raise
        return created

    def pull(self, index: ModelIndex, models_path: Path, report: Report = no_report) -> bool:
        """Installs a version into a folder of models.

        Args:
            index: The version's index.
            models_path: The folder of all models.
            report: Called as the files arrive.

        Returns:
            False if it was installed already, with equal content.

        Raises:
            BadRequest: The version is installed already, with another content, or the folder cannot be written.
            ServiceError: See `fetch`.
        """
        target = models_path / index.name / index.version
        if target.exists():
            if index_of(read_model(target)) != index:
                raise BadRequest(f"model {index.title} is installed already, with other files: remove it first")
            return False
        try:
            with staging(models_path) as staged:
                folder = staged / index.name / index.version
                folder.mkdir(parents=True)
                self.fetch(index, folder, report)
                install(folder, target)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EROFS}:
                raise
            raise BadRequest(f"model {index.title} cannot be installed: {error.strerror}") from error
        return True

    def remove(self, name: str, version: str) -> None:
        """Removes a version, or the files of one that was not pushed to its end.

        Raises:
            ModelNotFound: There is neither.
            StorageUnavailable: The storage does not answer or refuses.
        """
        check_names(name, version)
        objects = self._objects(name, version)
        if not objects:
            raise ModelNotFound(f"model {name} {version} is not stored in MODELS_BUCKET")
        # From here on there is no version.
        self._storage.remove(self._bucket, self._key(name, version, INDEX_FILE))
        for each in objects:
            self._storage.remove(self._bucket, each.key)

    def _existing(self, index: ModelIndex) -> ModelIndex | None:
        try:
            return self.read_index(index.name, index.version)
        except ModelNotFound:
            return None

    def _indexes(self, prefix: str) -> list[tuple[str, str, StoredObject]]:
        """Lists name, version and index of the versions under a prefix, sorted by name and version."""
        found = []
        for each in self._storage.list_objects(self._bucket, self._root + prefix):
            if match := _INDEX_KEY.fullmatch(each.key.removeprefix(self._root)):
                found.append((match[1], match[2], each))
        return sorted(found, key=lambda entry: (entry[0], version_order(entry[1])))

    def _objects(self, name: str, version: str) -> list[StoredObject]:
        return self._storage.list_objects(self._bucket, self._key(name, version, ""))

    def _key(self, name: str, version: str, file: str) -> str:
        return f"{self._root}{name}/{version}/{file}"


def _follow(report: Report, start_bytes: int, size_bytes: int) -> Callable[[int], None]:
    """Follows the transfer of one of several files."""
    return lambda count: report((start_bytes + count) / size_bytes)
