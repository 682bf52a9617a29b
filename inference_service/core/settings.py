"""The configuration: environment variables (or a .env file), validated once per process.

`.env.example` and `docs/settings.md` list every field; a test keeps all three equal.
"""

import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import Field, PositiveInt, RedisDsn, Secret, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from inference_service.core.errors import ConfigurationError
from inference_service.core.execution import CPU, CUDA, GpuOptions, Precision

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=1, le=65535)]

_SECRETS = ("redis_password", "postgres_password", "minio_access_key", "minio_secret_key")
_SECRET_FILE = "File that has it instead, as Docker's and Kubernetes' secrets are."


def bundled_models_path() -> Path:
    """The folder of the models that come with the installation: a clone's `models`, or a copy inside the package."""
    package = Path(str(files("inference_service")))
    clone = package.parent
    return clone / "models" if (clone / "pyproject.toml").is_file() else package / "bundled_models"


class Settings(BaseSettings):
    """What an operator can set; the descriptions are what `docs/settings.md` shows."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    redis_url: Secret[RedisDsn] = Field(
        Secret(RedisDsn("redis://127.0.0.1:6379/0")),
        description="The Redis that carries the queues; `rediss://` speaks TLS.",
    )
    redis_password: SecretStr | None = Field(
        None, description="Password of Redis, of any characters; unset: the one in REDIS_URL, if any."
    )
    redis_password_file: Path | None = Field(None, description=_SECRET_FILE)

    postgres_server: str = Field("127.0.0.1", description="Postgres host.")
    postgres_port: Port = Field(5432, description="Postgres port.")
    postgres_user: str = Field("inference", description="Postgres user.")
    postgres_password: SecretStr = Field(SecretStr(""), description="Postgres password.")
    postgres_password_file: Path | None = Field(None, description=_SECRET_FILE)
    postgres_db: str = Field("inference", description="Postgres database.")
    postgres_sslmode: Literal["disable", "prefer", "require", "verify-full"] = Field(
        "prefer", description="TLS to Postgres, as libpq has it; verify-full alone is safe from others on the network."
    )

    minio_endpoint: str = Field(
        "127.0.0.1:9000", pattern=r"^[^/\s]+$", description="MinIO (or any S3) as host:port, without a scheme."
    )
    minio_access_key: SecretStr = Field(SecretStr(""), description="MinIO access key.")
    minio_access_key_file: Path | None = Field(None, description=_SECRET_FILE)
    minio_secret_key: SecretStr = Field(SecretStr(""), description="MinIO secret key.")
    minio_secret_key_file: Path | None = Field(None, description=_SECRET_FILE)
    minio_secure: bool = Field(False, description="Whether to speak TLS to MinIO.")
    minio_region: str = Field("us-east-1", description="S3 region; MinIO's own default is us-east-1.")
    minio_input_bucket: str = Field("volumes", description="Where volumes come from unless a request names a bucket.")
    minio_output_bucket: str = Field("masks", description="Where masks and reports go.")

    tls_ca_path: Path | None = Field(
        None,
        description="PEM file of the authorities that may vouch for the three servers where TLS is spoken; unset: "
        "those that this machine trusts.",
    )

    models_path: Path = Field(
        default_factory=bundled_models_path,
        description="The folder of models: `<name>/<version>/manifest.json`; unset: the models that come with the "
        "installation.",
    )
    onnx_providers: list[str] = Field(
        [CUDA, CPU],
        description="JSON array of the ONNX Runtime execution providers requested, best first.",
    )
    onnx_precision: Precision = Field(
        "fp32",
        description="What networks compute in: bf16 where the provider (OpenVINO), the CPU and the model's manifest "
        "allow it, and fp32 elsewhere.",
    )
    window_batch: PositiveInt = Field(
        1, description="Windows that a network is given at a time; on a GPU more may be faster."
    )
    gpu_tf32: bool = Field(
        True, description="Whether an NVIDIA GPU may compute fp32 networks in TF32, as PyTorch's convolutions do."
    )
    gpu_memory_limit_mb: PositiveInt | None = Field(
        None, description="Most of a GPU's memory, in MiB, that one loaded model takes; unset: what there is."
    )
    gpu_blending: Literal["host", "device"] = Field(
        "host",
        description="Where the logits of overlapping windows are added up: in the worker's memory (host), or in the "
        "GPU's (device), where that has three times the memory of one window's depth of them.",
    )
    tensorrt_cache_path: Path | None = Field(
        None,
        description="Folder for the engines that TensorRT, where requested, builds in minutes; unset: none are kept.",
    )
    require_gpu: bool = Field(
        False, description="A worker of role gpu refuses to start where no requested GPU is usable."
    )
    intra_op_threads: PositiveInt | None = Field(
        None, description="Threads of one job; unset: the worker's CPUs divided by its concurrency."
    )

    worker_concurrency: PositiveInt | None = Field(
        None, description="Jobs that one worker runs at a time; unset: 1 for role gpu, 2 for role cpu."
    )
    work_path: Path | None = Field(
        None,
        description="Folder for a job's temporary files, best on a disk: logits that do not fit into memory go there. "
        "Unset: the system's.",
    )
    health_path: Path | None = Field(
        None, description="File that a worker touches while it consumes; unset: none is written and `health` says so."
    )
    metrics_port: Port | None = Field(
        None, description="Where a worker serves metrics in Prometheus' format; unset: nowhere."
    )
    metrics_host: str = Field("127.0.0.1", description="Address that METRICS_PORT is bound to.")

    max_attempts: PositiveInt = Field(3, description="How often a job is tried when the fault may pass.")
    retry_delay_s: Seconds = Field(2.0, description="Wait before a second attempt; doubled for each further one.")
    outage_patience_s: Seconds = Field(
        60.0, description="How long an attempt waits for MinIO or Postgres to answer again before it counts as failed."
    )
    lease_s: Seconds = Field(30.0, description="How long a running job stays its worker's without a sign of life.")
    sweep_period_s: Seconds = Field(
        5.0, description="How often a worker says that it is alive and looks for jobs that nobody holds."
    )
    shutdown_grace_s: Seconds = Field(
        60.0, description="How long a worker told to stop lets its jobs run on before others get them."
    )
    time_limit_s: PositiveInt = Field(
        3600, description="A job that runs longer fails with time_limit; a model's manifest can only shorten it."
    )

    visibility_timeout_s: PositiveInt = Field(
        300,
        description="When Redis hands out a message again that nobody has acknowledged. It need not be longer than a "
        "job, as what comes twice runs once: so long waits at most what a worker took along before it had a row.",
    )

    priority_max_depth: PositiveInt | None = Field(
        20,
        description="An urgent job goes to the overflow queue where that many wait in the priority queue, fewer there, "
        "and a worker of role cpu is alive. Looked at when the Python client or a sweeper sends it.",
    )
    cpu_standby_s: Seconds = Field(
        30.0, description="A worker of role cpu takes urgent jobs too while no worker of role gpu was seen for so long."
    )

    max_input_bytes: PositiveInt = Field(
        4 * 2**30,
        description="Largest input, in bytes: of an object, of all that a prefix holds, and of what a zip unpacks to.",
    )
    max_voxels: PositiveInt = Field(2**29, description="Largest volume in voxels, as read and on the model's grid.")

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is logged.")
    log_format: Literal["text", "json"] = Field("text", description="Log lines for people, or one JSON object a line.")

    @model_validator(mode="before")
    @classmethod
    def _read_secret_files(cls, values: dict[str, object]) -> dict[str, object]:
        files = {name: values[f"{name}_file"] for name in _SECRETS if values.get(f"{name}_file")}
        for name, path in files.items():
            if values.get(name):
                raise ValueError(f"{name.upper()} and {name.upper()}_FILE exclude each other")
            try:
                values = {**values, name: Path(str(path)).read_text(encoding="utf-8").rstrip("\r\n")}
            except (OSError, UnicodeError) as error:
                raise ValueError(f"{name.upper()}_FILE cannot be read: {type(error).__name__}") from None
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.cpu_standby_s < 2 * self.sweep_period_s:
            raise ValueError("CPU_STANDBY_S must be twice SWEEP_PERIOD_S at least, as a worker reports itself so often")
        return self

    @property
    def effective_onnx_providers(self) -> list[str]:
        """The requested providers that really work here, in the requested order, always ending in CPU."""
        # Upwards, on purpose: the settings promise the providers that work, and only the engine can try them.
        from inference_service.engine.providers import usable_providers

        usable = usable_providers()
        requested = dict.fromkeys(self.onnx_providers)
        return [name for name in requested if name in usable and name != CPU] + [CPU]

    @property
    def gpu_options(self) -> GpuOptions:
        """What NVIDIA's GPUs are told."""
        limit_mb = self.gpu_memory_limit_mb
        return GpuOptions(
            tf32=self.gpu_tf32,
            memory_limit_bytes=None if limit_mb is None else limit_mb * 2**20,
            aggregate_on_device=self.gpu_blending == "device",
            tensorrt_cache=self.tensorrt_cache_path,
        )

    @property
    def usable_work_path(self) -> Path | None:
        """`work_path`, looked at.

        Raises:
            ConfigurationError: It is not a folder that can be written to.
        """
        if self.work_path is not None and not (self.work_path.is_dir() and os.access(self.work_path, os.W_OK)):
            raise ConfigurationError(f"WORK_PATH: {self.work_path} is not a folder that can be written to")
        return self.work_path

    @property
    def broker_url(self) -> str:
        """The Redis URL for Celery; it carries the password."""
        url = str(self.redis_url.get_secret_value())
        if self.redis_password is None:
            return url
        parts = urlsplit(url)
        user, _, server = parts.netloc.rpartition("@")
        password = quote(self.redis_password.get_secret_value(), safe="")
        return parts._replace(netloc=f"{user.partition(':')[0]}:{password}@{server}").geturl()


@cache
def get_settings() -> Settings:
    """The settings of this process, read from the environment on first use."""
    return Settings()
