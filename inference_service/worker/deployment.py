"""Prepares a deployment for its first job, and checks that everything it needs is usable."""

import logging
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from inference_service.core.errors import (
    DatabaseUnavailable,
    ModelNotFound,
    OtherRedisInUse,
    QueueUnavailable,
    ServiceError,
    StorageRefused,
    StorageUnavailable,
)
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import read_model, require_models, take_inventory
from inference_service.jobs import job_store
from inference_service.jobs.database import connect, migrate, require_limits
from inference_service.jobs.grants import grant_rights, missing_rights
from inference_service.jobs.queues.celery_app import make_app
from inference_service.jobs.queues.redis_state import fetch_redis_state
from inference_service.jobs.queues.server_check import find_memory
from inference_service.jobs.redis_ownership import RedisOwnership
from inference_service.jobs.storage.object_storage import Storage
from inference_service.model_store.stored_models import StoredModels
from inference_service.worker.self_test import key_for_test

logger = logging.getLogger(__name__)

# S3 refuses a request whose time differs by more.
_MAX_SKEW_S = 900
_POLL_S = 0.5


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: The checked part, such as a server.
        problem: The problem; None if the part is usable.
        detail: A description of the part.
    """

    name: str
    problem: str | None
    detail: str = ""


def prepare(settings: Settings) -> list[str]:
    """Applies the database migrations, grants the roles their rights, and creates the buckets.

    Returns:
        The buckets.

    Raises:
        DatabaseUnavailable: Postgres does not answer or refuses.
        StorageUnavailable: The object storage does not answer or refuses.
    """
    migrate(settings)
    with closing(connect(settings)) as database:
        grant_rights(database)
    storage = Storage(settings)
    buckets = [settings.minio_input_bucket, settings.minio_output_bucket]
    if settings.models_bucket is not None:
        buckets.append(settings.models_bucket)
    for bucket in buckets:
        storage.ensure_bucket(bucket)
    return buckets


def take_redis(settings: Settings) -> None:
    """Waits until Redis and Postgres answer, and makes this deployment the owner of its Redis.

    Raises:
        ConfigurationError: Redis belongs to another deployment.
        OtherRedisInUse: The deployment's live workers use another Redis, and go on doing so.
    """
    # The others need a sweep to notice that Redis was restarted or replaced, and dead ones count as alive for a while.
    deadline = time.monotonic() + 2 * settings.cpu_standby_s
    reported: str | None = None
    with closing(make_app(settings)) as app, closing(connect(settings, pooled=False)) as database:
        ownership = RedisOwnership(app, database, live_within_s=settings.cpu_standby_s)
        while True:
            try:
                redis = fetch_redis_state(app)
                ownership.claim(redis)
                ownership.require_common(redis)
                return
            except (DatabaseUnavailable, QueueUnavailable) as error:
                if isinstance(error, OtherRedisInUse) and time.monotonic() > deadline:
                    raise
                if error.message != reported:
                    reported = error.message
                    logger.warning("this worker waits: %s", error)
            time.sleep(_POLL_S)


def check(settings: Settings) -> list[Check]:
    """Checks whether a worker with these settings can use Redis, Postgres, the object storage, models and providers.

    It writes what a worker writes, and leaves nothing behind that it may remove.
    """
    checks_by_name: dict[str, Callable[[Settings], str]] = {
        "redis": _check_redis,
        "postgres": _check_postgres,
        "minio": _check_storage,
        "models": _check_models,
        "providers": _check_providers,
    }
    checks = []
    for name, run_check in checks_by_name.items():
        try:
            checks.append(Check(name, None, run_check(settings)))
        except ServiceError as error:
            checks.append(Check(name, error.message))
    return checks


def _check_redis(settings: Settings) -> str:
    with closing(make_app(settings)) as app, closing(connect(settings)) as database:
        redis = fetch_redis_state(app)
        # Without Postgres, which has a check of its own, the owner is unknown.
        with suppress(DatabaseUnavailable):
            ownership = RedisOwnership(app, database, live_within_s=settings.cpu_standby_s)
            ownership.verify(redis)
            ownership.require_common(redis)
        memory = find_memory(app)
    waiting = ", ".join(f"{depth} message(s) waiting in {queue}" for queue, depth in redis.depths.items())
    return f"takes messages, {memory}; {waiting}"


def _check_postgres(settings: Settings) -> str:
    with closing(connect(settings)) as database:
        found = job_store.count(database)
        missing = missing_rights(database)
        require_limits(database)
    if missing:
        raise DatabaseUnavailable(
            f"the role {settings.postgres_user} lacks rights of a worker: {', '.join(missing)}. "
            "Run `inference-service migrate`, which grants them to the roles of deploy/identities"
        )
    return f"readable and writable; {found} job(s)"


def _check_storage(settings: Settings) -> str:
    buckets = dict.fromkeys((settings.minio_input_bucket, *settings.input_buckets, settings.minio_output_bucket))
    key = key_for_test(settings, f"check-{uuid4()}")
    with closing(Storage(settings)) as storage:
        for bucket in buckets:
            storage.require_bucket(bucket)
        their_time = storage.try_out(settings.minio_output_bucket, key)
        tried = "an object was written, read and removed"
        try:
            storage.remove(settings.minio_output_bucket, key)
        except StorageRefused:
            tried = f"an object was written and read, but this key may not remove it: {key}"
    ahead_s = 0.0 if their_time is None else (their_time - datetime.now(UTC)).total_seconds()
    if abs(ahead_s) > _MAX_SKEW_S:
        raise StorageUnavailable(
            f"the clock of the object storage is {ahead_s:+.0f} s from this machine's, and S3 refuses requests from "
            f"{_MAX_SKEW_S} s on: synchronise the clocks"
        )
    return f"buckets {' and '.join(buckets)} exist; {tried}; clock {ahead_s:+.0f} s from this machine's"


def _check_models(settings: Settings) -> str:
    if settings.models_bucket is None:
        require_models(settings.models_path)
    inventory = take_inventory(settings.models_path)
    if inventory.errors:
        raise inventory.errors[0]
    folders = inventory.folders
    for folder in folders:
        model = read_model(folder)
        for network in model.manifest.network_files.values():
            model.read_network(network)
    installed = f"{len(folders)} installed, each matches its manifest"
    with closing(Storage(settings)) as storage:
        stored = StoredModels.of(settings, storage)
        if stored is None:
            return installed
        found = stored.inventory({})
    if not folders and not found:
        raise ModelNotFound(f"no model is installed under MODELS_PATH, or stored below {stored.address}")
    cache = settings.usable_models_cache_path
    return f"{installed}; {len(found)} stored below {stored.address}, the cache {cache} is writable"


def _check_providers(settings: Settings) -> str:
    return f"using {settings.effective_onnx_providers}"
