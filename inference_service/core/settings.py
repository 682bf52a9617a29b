"""The settings: environment variables or lines of a `.env` file, validated once per process.

`.env.example` and `docs/settings.md` list every field; a test keeps all three equal.
"""

import os
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, Secret, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from inference_service.core.errors import ConfigurationError
from inference_service.core.execution import CPU, CUDA, GpuOptions, Precision
from inference_service.core.redis_url import RedisUrl, broker_url, uses_tls

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=1, le=65535)]
Prefix = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f\x7f]+(/[^/\\\x00-\x1f\x7f]+)*/?$")]
"""A prefix of object keys that ends at a slash, which may be left out."""

SUBMITTER_PATTERN = r"^[A-Za-z0-9._@:/-]{1,100}$"
"""Names of upstreams in rows."""

Tenant = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
Share = Annotated[int, Field(ge=1, le=100)]

_PACKAGE = Path(str(files("inference_service")))

_SECRETS = (
    "redis_password",
    "redis_sentinel_password",
    "postgres_password",
    "minio_access_key",
    "minio_secret_key",
    "webhook_secret",
)
_SECRET_FILE = "File that holds the value of {name}, such as a Docker or Kubernetes secret."


def bundled_models_path() -> Path:
    """Returns the folder of the models that come with the installation: in the clone, or a copy in the package."""
    clone = _PACKAGE.parent
    return clone / "models" if (clone / "pyproject.toml").is_file() else _PACKAGE / "bundled_models"


class Settings(BaseSettings):
    """The settings that an operator can make; `docs/settings.md` shows the descriptions."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    redis_url: Secret[RedisUrl] = Field(
        Secret("redis://127.0.0.1:6379/0"),
        description="URL of the Redis server that holds the queues, or those of its sentinels, joined by `;`, such as "
        "`sentinel://a:26379;sentinel://b:26379/0`. `rediss://` and `sentinels://` connect with TLS.",
    )
    redis_password: SecretStr | None = Field(
        None, description="Redis password; any characters are allowed. If unset, the password in REDIS_URL is used."
    )
    redis_password_file: Path | None = Field(None, description=_SECRET_FILE.format(name="REDIS_PASSWORD"))
    redis_sentinel_master: str = Field(
        "mymaster",
        description="Name that the sentinels have for the primary. The sentinels' settings only count if "
        "REDIS_URL names sentinels.",
    )
    redis_sentinel_username: str | None = Field(
        None, description="User of the sentinels. If unset, the user `default`."
    )
    redis_sentinel_password: SecretStr | None = Field(
        None, description="Password of the sentinels. If unset, they ask for none."
    )
    redis_sentinel_password_file: Path | None = Field(
        None, description=_SECRET_FILE.format(name="REDIS_SENTINEL_PASSWORD")
    )

    redis_prefix: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.:-]{0,64}$",
        description="Start of all names of keys in Redis, such as `radiology:`. Deployments that share a database of "
        "Redis need different ones.",
    )

    postgres_server: str = Field("127.0.0.1", description="Postgres host.")
    postgres_port: Port = Field(5432, description="Postgres port.")
    postgres_user: str = Field("inference", description="Postgres user.")
    postgres_password: SecretStr = Field(SecretStr(""), description="Postgres password.")
    postgres_password_file: Path | None = Field(None, description=_SECRET_FILE.format(name="POSTGRES_PASSWORD"))
    postgres_db: str = Field("inference", description="Postgres database.")
    postgres_sslmode: Literal["disable", "prefer", "require", "verify-full"] = Field(
        "prefer",
        description="TLS mode of the Postgres connection, as in libpq. Only `verify-full` protects against an attacker "
        "on the network.",
    )
    postgres_pooler: bool = Field(
        False,
        description="Whether POSTGRES_SERVER is a connection pooler such as PgBouncer, which passes no time limits on: "
        "each transaction then sets its own. Not for `migrate`, which connects to Postgres itself.",
    )

    minio_endpoint: str = Field(
        "127.0.0.1:9000",
        pattern=r"^[^/\s]+$",
        description="Address of MinIO or another S3 service, as host:port without a scheme.",
    )
    minio_access_key: SecretStr = Field(SecretStr(""), description="MinIO access key.")
    minio_access_key_file: Path | None = Field(None, description=_SECRET_FILE.format(name="MINIO_ACCESS_KEY"))
    minio_secret_key: SecretStr = Field(SecretStr(""), description="MinIO secret key.")
    minio_secret_key_file: Path | None = Field(None, description=_SECRET_FILE.format(name="MINIO_SECRET_KEY"))
    minio_secure: bool = Field(False, description="Whether to connect to MinIO with TLS.")
    minio_region: str = Field("us-east-1", description="S3 region. MinIO's own default is us-east-1.")
    minio_input_bucket: str = Field("volumes", description="Bucket of the input, unless the request names another one.")
    minio_output_bucket: str = Field("masks", description="Bucket of the results.")
    input_buckets: list[str] = Field(
        [],
        description="Further buckets that a request may name for its input, as a JSON array. Every other bucket but "
        "MINIO_INPUT_BUCKET is refused, whatever the credentials allow.",
    )
    input_prefixes: list[Prefix] = Field(
        [],
        description="Prefixes below which the key of every input must lie, as a JSON array. If empty, any key is "
        "allowed. The Python client uploads below `uploads/`.",
    )
    output_prefix_root: Prefix | None = Field(
        None,
        description="Prefix below which all results are stored: a request's output prefix must begin with it, and it "
        "is the default. If unset, any output prefix is allowed.",
    )

    tls_ca_path: Path | None = Field(
        None,
        description="PEM file with the certificate authorities that are trusted for TLS connections to Redis, Postgres "
        "and MinIO. If unset, the authorities that this machine trusts.",
    )

    models_path: Path = Field(
        default_factory=bundled_models_path,
        description="Folder of the models: `<name>/<version>/manifest.json`. If unset, the models that come with the "
        "installation.",
    )
    models_bucket: str | None = Field(
        None,
        description="Bucket of the stored models, which workers fetch when a job needs them. It is of its own: neither "
        "jobs nor upstreams may write to it. If unset, workers run the models under MODELS_PATH alone.",
    )
    models_prefix: Prefix | None = Field(
        None, description="Prefix of the stored models in MODELS_BUCKET. If unset, they are at the top of the bucket."
    )
    models_cache_path: Path | None = Field(
        None,
        description="Folder, on a disk of this machine, that keeps fetched models. Workers on one machine may share "
        "it. If unset, the folder `inference-service-models` in WORK_PATH, or in the system's temporary folder.",
    )
    models_cache_bytes: PositiveInt = Field(
        2**34,
        description="Largest size of all fetched models in bytes, and of one of them. Those that were not used for "
        "the longest time make room for others.",
    )
    onnx_providers: list[str] = Field(
        [CUDA, CPU],
        description="ONNX Runtime execution providers to use, as a JSON array, best first. Those that do not work on "
        "this machine are skipped.",
    )
    onnx_precision: Precision = Field(
        "fp32",
        description="Precision that networks compute in. bf16 applies where the provider (OpenVINO), the CPU and the "
        "model's manifest allow it; all other networks run in fp32.",
    )
    window_batch: PositiveInt = Field(
        1, description="Number of windows in one run of the network. More than 1 may be faster on a GPU."
    )
    gpu_tf32: bool = Field(
        True, description="Whether an NVIDIA GPU may compute fp32 networks in TF32, as PyTorch does for convolutions."
    )
    gpu_memory_limit_mb: PositiveInt | None = Field(
        None, description="Upper limit of the GPU memory of one loaded model, in MiB. If unset, there is no limit."
    )
    gpu_blending: Literal["host", "device"] = Field(
        "host",
        description="Memory in which the logits of overlapping windows are added up: the worker's (`host`) or the "
        "GPU's (`device`). `device` needs three times the size of one window's depth of logits in GPU memory; where "
        "that does not fit, `host` is used.",
    )
    tensorrt_cache_path: Path | None = Field(
        None,
        description="Folder that keeps the engines built by TensorRT, where that provider is requested. A build takes "
        "minutes. If unset, each process builds its own.",
    )
    require_gpu: bool = Field(
        False,
        description="Whether a worker of role gpu refuses to start if no requested GPU provider works, and refuses "
        "models that do not run on the GPU.",
    )
    intra_op_threads: PositiveInt | None = Field(
        None, description="Threads of one job. If unset, the worker's CPUs divided by its concurrency."
    )

    worker_concurrency: PositiveInt | None = Field(
        None, description="Number of jobs that one worker runs at a time. If unset, 1 for role gpu and 2 for role cpu."
    )
    work_path: Path | None = Field(
        None,
        description="Folder for temporary files of jobs. It should be on a disk rather than in memory, as logits that "
        "do not fit into memory are written there. If unset, the system's temporary folder.",
    )
    health_path: Path | None = Field(
        None,
        description="File that a worker touches while it consumes messages; the command `health` checks its age. If "
        "unset, no file is written.",
    )
    metrics_port: Port | None = Field(
        None, description="Port on which a worker serves Prometheus metrics. If unset, no metrics are served."
    )
    metrics_host: str = Field("127.0.0.1", description="Address that METRICS_PORT is bound to.")

    gateway_host: str = Field(
        "127.0.0.1",
        description="Address that the HTTP gateway listens on. While there are no tokens, it is 127.0.0.1.",
    )
    gateway_port: Port = Field(8080, description="Port that the HTTP gateway listens on.")
    gateway_tls_cert: Path | None = Field(
        None, description="PEM file with the gateway's certificate and its chain. If unset, the gateway speaks HTTP."
    )
    gateway_tls_key: Path | None = Field(None, description="PEM file with the key of GATEWAY_TLS_CERT.")
    gateway_proxies: list[str] = Field(
        [],
        description="Addresses or networks of proxies whose X-Forwarded-Proto and X-Forwarded-For the gateway trusts, "
        "as a JSON array.",
    )

    webhook_prefixes: list[str] = Field(
        [],
        description="Prefixes of the URLs that jobs submitted over HTTP may name as webhooks, as a JSON array such as "
        '`["https://ris.example/hooks/"]`. If empty, none is allowed.',
    )
    webhook_secret: SecretStr | None = Field(
        None, description="Secret of at least 16 characters by which the gateway signs its calls of webhooks."
    )
    webhook_secret_file: Path | None = Field(None, description=_SECRET_FILE.format(name="WEBHOOK_SECRET"))
    webhook_private_addresses: bool = Field(
        False, description="Whether a webhook may lead to an address that is not public, as in a hospital's network."
    )

    submitted_by: str | None = Field(
        None,
        pattern=SUBMITTER_PATTERN,
        description="Name of this upstream, such as `pacs-gateway`: the Python client records it in the jobs that it "
        "submits. Letters, digits and `._@:/-`, at most 100; no patient data. If unset, no name is recorded.",
    )
    tenant: Tenant | None = Field(
        None,
        description="Tenant of this upstream, such as `radiology`, in whose name the Python client submits jobs. If "
        "unset, the jobs have no tenant.",
    )
    tenants: dict[Tenant, Share] = Field(
        {},
        description="Tenants and their shares of each queue, as a JSON object such as "
        '`{"radiology": 3, "research": 1}`. '
        "While all have jobs waiting, a worker takes three of radiology for one of research. Jobs without a tenant "
        "have a share of 1. If empty, jobs are taken in the order in which they were sent.",
    )
    completion_events: bool = Field(
        False,
        description="Whether workers add an event to the Redis stream `completions` when a job ends, for upstreams "
        "that do not reach Postgres. The stream keeps the last 10,000.",
    )

    max_attempts: PositiveInt = Field(
        3, description="Number of attempts that a job gets if the error is transient, such as an outage."
    )
    retry_delay_s: Seconds = Field(
        2.0, description="Seconds before the second attempt of a job; doubled before each further attempt."
    )
    outage_patience_s: Seconds = Field(
        60.0, description="Seconds that an attempt waits for MinIO or Postgres during an outage before it fails."
    )
    lease_s: Seconds = Field(
        30.0,
        description="Seconds after which a running job without a renewed lease counts as lost and gets its next "
        "attempt. Leases are renewed at least three times in this period.",
    )
    sweep_period_s: Seconds = Field(
        5.0, description="Seconds between two sweeps of a worker: it reports itself alive and recovers orphaned jobs."
    )
    shutdown_grace_s: Seconds = Field(
        60.0,
        description="Seconds that a stopping worker lets its jobs run on. Unfinished jobs then go to other workers.",
    )
    time_limit_s: PositiveInt = Field(
        3600,
        description="Seconds after which a running job fails with time_limit. A model's manifest can only set a lower "
        "limit.",
    )

    visibility_timeout_s: PositiveInt = Field(
        300,
        description="Seconds after which Redis delivers an unacknowledged message again. It may be shorter than a job: "
        "redelivery is harmless, as the lease makes a job run once. It bounds the delay if a worker dies before it "
        "writes the job's row.",
    )

    retention_days: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = Field(
        None,
        description="Days after which workers delete the rows of finished jobs and their transitions, as `prune` does; "
        "at least 1. If unset, they are kept.",
    )
    retention_results: bool = Field(
        False, description="Whether the results of these jobs are deleted, too. Otherwise they stay in the bucket."
    )

    priority_max_depth: PositiveInt | None = Field(
        20,
        description="An urgent job is sent to the overflow queue if at least this many jobs wait in the priority "
        "queue, fewer jobs wait in the overflow queue, and a worker of role cpu is alive. Only the Python client and "
        "the sweep check this.",
    )
    cpu_standby_s: Seconds = Field(
        30.0,
        description="Seconds without a sign of life after which a worker counts as dead. Then others no longer leave "
        "jobs to it, and workers of role cpu take urgent jobs too if no live worker of role gpu is left. At least "
        "twice SWEEP_PERIOD_S.",
    )

    max_input_bytes: PositiveInt = Field(
        4 * 2**30,
        description="Largest input in bytes: of an object, of all objects under a prefix, and of archives once "
        "unpacked.",
    )
    max_voxels: PositiveInt = Field(
        2**29, description="Largest volume in voxels, both as read and after resampling to the model's spacing."
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Lowest level that is logged.")
    log_format: Literal["text", "json"] = Field(
        "text", description="Log format: `text` for people, `json` for one JSON object a line."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_secret_files(cls, values: dict[str, object]) -> dict[str, object]:
        files = {name: values[f"{name}_file"] for name in _SECRETS if values.get(f"{name}_file")}
        for name, path in files.items():
            if values.get(name):
                raise ValueError(f"{name.upper()} and {name.upper()}_FILE are both set: set only one of them")
            try:
                values = {**values, name: Path(str(path)).read_text(encoding="utf-8").rstrip("\r\n")}
            except (OSError, UnicodeError) as error:
                raise ValueError(f"{name.upper()}_FILE cannot be read: {type(error).__name__}") from None
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.cpu_standby_s < 2 * self.sweep_period_s:
            raise ValueError(
                "CPU_STANDBY_S must be at least twice SWEEP_PERIOD_S, the interval at which workers report themselves"
            )
        if self.models_bucket in {self.minio_input_bucket, self.minio_output_bucket, *self.input_buckets}:
            raise ValueError("MODELS_BUCKET must be a bucket of its own: it also is one of the inputs or the results")
        if self.webhook_prefixes and self.webhook_secret is None:
            raise ValueError("WEBHOOK_PREFIXES needs WEBHOOK_SECRET, by which receivers know the sender")
        return self

    @property
    def effective_onnx_providers(self) -> list[str]:
        """The requested execution providers that work on this machine, in the requested order; always ends with CPU."""
        # The one import from a package above: only the engine can probe a provider.
        from inference_service.engine.providers import usable_providers

        usable = usable_providers()
        requested = dict.fromkeys(self.onnx_providers)
        return [name for name in requested if name in usable and name != CPU] + [CPU]

    @property
    def gpu_options(self) -> GpuOptions:
        """The options for NVIDIA GPUs."""
        limit_mb = self.gpu_memory_limit_mb
        return GpuOptions(
            tf32=self.gpu_tf32,
            memory_limit_bytes=None if limit_mb is None else limit_mb * 2**20,
            aggregate_on_device=self.gpu_blending == "device",
            tensorrt_cache=self.tensorrt_cache_path,
        )

    @property
    def own_models_path(self) -> Path:
        """`models_path`, to install models in.

        Raises:
            ConfigurationError: It is a folder of the installed package, which the next installation replaces.
        """
        if self.models_path.is_relative_to(_PACKAGE):
            raise ConfigurationError(
                "set MODELS_PATH to a folder of yours, and the model is installed there: unset, it is a folder of the "
                "installed package, which the next installation replaces"
            )
        return self.models_path

    @property
    def usable_work_path(self) -> Path | None:
        """`work_path`, checked to be writable.

        Raises:
            ConfigurationError: It is not a writable folder.
        """
        if self.work_path is not None and not (self.work_path.is_dir() and os.access(self.work_path, os.W_OK)):
            raise ConfigurationError(f"WORK_PATH: {self.work_path} is not a writable folder")
        return self.work_path

    @property
    def usable_models_cache_path(self) -> Path:
        """The folder of fetched models, which is made if it does not exist.

        Raises:
            ConfigurationError: It cannot be written; or it is the default one and a link, or of another user, who could
                change it.
        """
        default = (self.work_path or Path(tempfile.gettempdir())) / "inference-service-models"
        path = self.models_cache_path or default
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"MODELS_CACHE_PATH: {path} cannot be made: {error.strerror}") from error
        if not os.access(path, os.W_OK):
            raise ConfigurationError(f"MODELS_CACHE_PATH: {path} is not a writable folder")
        if self.models_cache_path is None and (path.is_symlink() or path.stat().st_uid != os.geteuid()):
            raise ConfigurationError(f"{path} is a link, or belongs to another user: set MODELS_CACHE_PATH")
        return path

    @property
    def broker_url(self) -> str:
        """The Redis URL for Celery, with the password."""
        password = None if self.redis_password is None else self.redis_password.get_secret_value()
        return broker_url(self.redis_url.get_secret_value(), password)

    @property
    def redis_tls(self) -> bool:
        """Whether connections to Redis, and to its sentinels, use TLS."""
        return uses_tls(self.redis_url.get_secret_value())


@cache
def get_settings() -> Settings:
    """The settings of this process, read from the environment on first use."""
    return Settings()
