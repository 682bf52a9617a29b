"""The health of the gateway, which anyone may ask for: the servers are asked once a second at most."""

import time
from collections.abc import Callable
from typing import Any

import anyio
from anyio.to_thread import run_sync

from inference_service.client import Client
from inference_service.core.errors import ServiceError
from inference_service.gateway.views import Health
from inference_service.jobs.database import Database
from inference_service.jobs.storage.object_storage import Storage

_KEPT_S = 1.0


class HealthCheck:
    """Checks the servers that the gateway needs; callers at the same time share one check.

    Args:
        client: Reaches the queues.
        database: The jobs' database.
        storage: The object storage.
        bucket: A bucket that must exist.
    """

    def __init__(self, client: Client, database: Database, storage: Storage, bucket: str) -> None:
        self._servers = {
            "database": database.ping,
            "storage": lambda: storage.require_bucket(bucket),
            "queues": client.queue_depths,
        }
        self._lock = anyio.Lock()
        self._found: Health | None = None
        self._found_at = 0.0

    async def state(self) -> Health:
        """Returns which servers answer."""
        async with self._lock:
            if self._found is None or time.monotonic() - self._found_at > _KEPT_S:
                self._found = await run_sync(self._check)
                self._found_at = time.monotonic()
            return self._found

    def _check(self) -> Health:
        return Health(**{name: _works(call) for name, call in self._servers.items()})


def _works(call: Callable[[], Any]) -> bool:
    try:
        call()
    except ServiceError:
        return False
    return True
