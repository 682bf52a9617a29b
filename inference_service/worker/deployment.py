"""Prepares a deployment for its first job, and checks that everything it needs is usable."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from inference_service.core.errors import ServiceError
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import read_model, require_models
from inference_service.jobs import job_store
from inference_service.jobs.celery_app import fetch_redis_state, make_app
from inference_service.jobs.database import connect, migrate
from inference_service.jobs.grants import grant_rights
from inference_service.jobs.object_storage import Storage


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


def prepare(settings: Settings) -> None:
    """Applies the database migrations, grants the roles their rights, and creates the buckets.

    Raises:
        DatabaseUnavailable: Postgres does not answer or refuses.
        StorageUnavailable: The object storage does not answer or refuses.
    """
    migrate(settings)
    with closing(connect(settings)) as database:
        grant_rights(database)
    storage = Storage(settings)
    for bucket in (settings.minio_input_bucket, settings.minio_output_bucket):
        storage.ensure_bucket(bucket)


def check(settings: Settings) -> list[Check]:
    """Checks whether Redis, Postgres, the object storage, the models and the providers are usable."""
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
    depths = fetch_redis_state(make_app(settings)).depths
    return "reachable; " + ", ".join(f"{depth} message(s) waiting in {queue}" for queue, depth in depths.items())


def _check_postgres(settings: Settings) -> str:
    database = connect(settings)
    found = job_store.count(database)
    database.close()
    return f"reachable; {found} job(s)"


def _check_storage(settings: Settings) -> str:
    storage = Storage(settings)
    buckets = dict.fromkeys((settings.minio_input_bucket, *settings.input_buckets, settings.minio_output_bucket))
    for bucket in buckets:
        storage.require_bucket(bucket)
    return f"reachable; buckets {' and '.join(buckets)} exist"


def _check_models(settings: Settings) -> str:
    folders = require_models(settings.models_path)
    for folder in folders:
        read_model(folder).read_network()
    return f"{len(folders)} installed, each matches its manifest"


def _check_providers(settings: Settings) -> str:
    return f"using {settings.effective_onnx_providers}"
