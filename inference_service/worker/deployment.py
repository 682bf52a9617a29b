"""What a deployment needs before its first job, and whether it has it."""

from collections.abc import Callable
from dataclasses import dataclass

from inference_service.core.errors import ServiceError
from inference_service.core.settings import Settings
from inference_service.engine.model_registry import read_model, require_models
from inference_service.jobs import job_store
from inference_service.jobs.celery_app import fetch_redis_state, make_app
from inference_service.jobs.database import connect, migrate
from inference_service.jobs.object_storage import Storage


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        problem: What is wrong with it; None where it is usable.
        detail: What was found.
    """

    name: str
    problem: str | None
    detail: str = ""


def prepare(settings: Settings) -> None:
    """Brings the schema up to date and makes the buckets.

    Raises:
        DatabaseUnavailable: Postgres does not answer or refuses.
        StorageUnavailable: The object storage does not answer or refuses.
    """
    migrate(settings)
    storage = Storage(settings)
    for bucket in (settings.minio_input_bucket, settings.minio_output_bucket):
        storage.ensure_bucket(bucket)


def check(settings: Settings) -> list[Check]:
    """Looks whether Redis, Postgres, the object storage, the models and the providers are usable."""
    looks: dict[str, Callable[[Settings], str]] = {
        "redis": _check_redis,
        "postgres": _check_postgres,
        "minio": _check_storage,
        "models": _check_models,
        "providers": _check_providers,
    }
    checks = []
    for name, look_at in looks.items():
        try:
            checks.append(Check(name, None, look_at(settings)))
        except ServiceError as error:
            checks.append(Check(name, error.message))
    return checks


def _check_redis(settings: Settings) -> str:
    depths = fetch_redis_state(make_app(settings)).depths
    return "answers, " + ", ".join(f"{depth} message(s) wait in {queue}" for queue, depth in depths.items())


def _check_postgres(settings: Settings) -> str:
    database = connect(settings)
    found = job_store.count(database)
    database.dispose()
    return f"answers, holds {found} job(s)"


def _check_storage(settings: Settings) -> str:
    storage = Storage(settings)
    buckets = (settings.minio_input_bucket, settings.minio_output_bucket)
    for bucket in buckets:
        storage.require_bucket(bucket)
    return f"answers, has the buckets {' and '.join(buckets)}"


def _check_models(settings: Settings) -> str:
    folders = require_models(settings.models_path)
    for folder in folders:
        read_model(folder).read_network()
    return f"{len(folders)} installed, all as their manifests say"


def _check_providers(settings: Settings) -> str:
    return f"using {settings.effective_onnx_providers}"
