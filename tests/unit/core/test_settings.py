from pathlib import Path

import pytest
from pydantic import Secret, SecretStr, ValidationError
from pydantic_settings import SettingsError

from inference_service.core import settings as settings_module
from inference_service.core.errors import ConfigurationError
from inference_service.core.execution import CPU, CUDA, TENSORRT
from inference_service.core.settings import Settings, get_settings

# Each value differs from its default.
VALUES: dict[str, tuple[str, object]] = {
    "REDIS_URL": ("rediss://:pw@redis.example:6380/2", Secret("rediss://:pw@redis.example:6380/2")),
    "REDIS_PASSWORD": ("redis-secret", SecretStr("redis-secret")),
    "REDIS_SENTINEL_MASTER": ("queues", "queues"),
    "REDIS_SENTINEL_USERNAME": ("service", "service"),
    "REDIS_SENTINEL_PASSWORD": ("sentinel-secret", SecretStr("sentinel-secret")),
    "POSTGRES_SSLMODE": ("verify-full", "verify-full"),
    "TLS_CA_PATH": ("/etc/ca.pem", Path("/etc/ca.pem")),
    "POSTGRES_SERVER": ("db.example", "db.example"),
    "POSTGRES_PORT": ("5433", 5433),
    "POSTGRES_USER": ("segmenter", "segmenter"),
    "POSTGRES_PASSWORD": ("postgres-secret", SecretStr("postgres-secret")),
    "REDIS_PREFIX": ("radiology:", "radiology:"),
    "POSTGRES_POOLER": ("true", True),
    "POSTGRES_DB": ("segmentation", "segmentation"),
    "MINIO_ENDPOINT": ("s3.example:443", "s3.example:443"),
    "MINIO_ACCESS_KEY": ("access-secret", SecretStr("access-secret")),
    "MINIO_SECRET_KEY": ("minio-secret", SecretStr("minio-secret")),
    "MINIO_SECURE": ("true", True),
    "MINIO_REGION": ("eu-central-1", "eu-central-1"),
    "MINIO_INPUT_BUCKET": ("scans", "scans"),
    "MINIO_OUTPUT_BUCKET": ("results", "results"),
    "INPUT_BUCKETS": ('["research", "archive"]', ["research", "archive"]),
    "INPUT_PREFIXES": ('["ct/", "uploads"]', ["ct/", "uploads"]),
    "OUTPUT_PREFIX_ROOT": ("site-a/masks", "site-a/masks"),
    "MODELS_PATH": ("/srv/models", Path("/srv/models")),
    "MODELS_BUCKET": ("models", "models"),
    "MODELS_PREFIX": ("of/research", "of/research"),
    "MODELS_CACHE_PATH": ("/srv/cache", Path("/srv/cache")),
    "MODELS_CACHE_BYTES": ("3000", 3000),
    "ONNX_PROVIDERS": (f'["{TENSORRT}", "{CUDA}"]', [TENSORRT, CUDA]),
    "ONNX_PRECISION": ("bf16", "bf16"),
    "WINDOW_BATCH": ("4", 4),
    "GPU_TF32": ("false", False),
    "GPU_MEMORY_LIMIT_MB": ("8000", 8000),
    "GPU_BLENDING": ("device", "device"),
    "TENSORRT_CACHE_PATH": ("/srv/engines", Path("/srv/engines")),
    "REQUIRE_GPU": ("1", True),
    "INTRA_OP_THREADS": ("3", 3),
    "WORKER_CONCURRENCY": ("4", 4),
    "WORK_PATH": ("/var/tmp/work", Path("/var/tmp/work")),
    "HEALTH_PATH": ("/run/worker.health", Path("/run/worker.health")),
    "METRICS_PORT": ("9100", 9100),
    "METRICS_HOST": ("192.0.2.1", "192.0.2.1"),
    "GATEWAY_HOST": ("192.0.2.2", "192.0.2.2"),
    "GATEWAY_PORT": ("8443", 8443),
    "GATEWAY_TLS_CERT": ("/run/cert.pem", Path("/run/cert.pem")),
    "GATEWAY_TLS_KEY": ("/run/key.pem", Path("/run/key.pem")),
    "GATEWAY_PROXIES": ('["192.0.2.0/24"]', ["192.0.2.0/24"]),
    "WEBHOOK_PREFIXES": ('["https://ris.example/"]', ["https://ris.example/"]),
    "WEBHOOK_SECRET": ("webhook-secret-of-a-test", SecretStr("webhook-secret-of-a-test")),
    "WEBHOOK_PRIVATE_ADDRESSES": ("true", True),
    "SUBMITTED_BY": ("pacs-gateway", "pacs-gateway"),
    "TENANT": ("radiology", "radiology"),
    "TENANTS": ('{"radiology": 3, "research": 1}', {"radiology": 3, "research": 1}),
    "COMPLETION_EVENTS": ("true", True),
    "MAX_ATTEMPTS": ("5", 5),
    "RETRY_DELAY_S": ("0.5", 0.5),
    "OUTAGE_PATIENCE_S": ("9", 9.0),
    "SWEEP_PERIOD_S": ("2.5", 2.5),
    "VISIBILITY_TIMEOUT_S": ("90", 90),
    "RETENTION_DAYS": ("90.5", 90.5),
    "RETENTION_RESULTS": ("true", True),
    "PRIORITY_MAX_DEPTH": ("3", 3),
    "CPU_STANDBY_S": ("15", 15.0),
    "LEASE_S": ("12.5", 12.5),
    "SHUTDOWN_GRACE_S": ("7", 7.0),
    "TIME_LIMIT_S": ("60", 60),
    "MAX_INPUT_BYTES": ("1000", 1000),
    "MAX_VOXELS": ("2000", 2000),
    "LOG_LEVEL": ("DEBUG", "DEBUG"),
    "LOG_FORMAT": ("json", "json"),
}


@pytest.fixture(autouse=True)
def no_variable_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv(field.upper(), raising=False)
        monkeypatch.delenv(field, raising=False)
    monkeypatch.chdir(tmp_path)


def test_every_field_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(VALUES) == {field.upper() for field in Settings.model_fields if not field.endswith("_file")}
    defaults = Settings()
    for name, (text, _) in VALUES.items():
        monkeypatch.setenv(name, text)
    settings = Settings()
    for name, (_, value) in VALUES.items():
        assert getattr(settings, name.lower()) == value, name
        assert getattr(defaults, name.lower()) != value, name


def test_defaults_connect_to_servers_on_this_machine() -> None:
    settings = Settings()
    assert settings.broker_url == "redis://127.0.0.1:6379/0"
    assert (settings.postgres_server, settings.postgres_port) == ("127.0.0.1", 5432)
    assert (settings.minio_endpoint, settings.minio_secure) == ("127.0.0.1:9000", False)
    assert (settings.minio_input_bucket, settings.minio_output_bucket) == ("volumes", "masks")
    assert settings.onnx_providers == [CUDA, CPU]
    assert (settings.require_gpu, settings.max_attempts) == (False, 3)
    # The job of a dead worker is recovered within 45 s.
    assert settings.lease_s + settings.sweep_period_s < 45
    assert settings.max_voxels == 536_870_912


def test_the_environment_overrides_the_dotenv_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")
    (tmp_path / ".env").write_text("POSTGRES_DB=from-file\nPOSTGRES_USER=from-file\nUNRELATED=1\n")
    monkeypatch.setenv("POSTGRES_USER", "from-environment")
    settings = Settings()
    assert (settings.postgres_db, settings.postgres_user) == ("from-file", "from-environment")


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTRA_OP_THREADS", "")
    monkeypatch.setenv("POSTGRES_PORT", "")
    assert (Settings().intra_op_threads, Settings().postgres_port) == (None, 5432)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("REDIS_URL", "http://redis.example"),
        ("REDIS_URL", "sentinel://a;redis://b"),
        ("REDIS_URL", "sentinel://a;sentinels://b"),
        ("REDIS_URL", "sentinel://:one@a;sentinel://:two@b"),
        ("REDIS_URL", "sentinel://a/0;sentinel://b/1"),
        ("REDIS_URL", "sentinel://a;"),
        ("REDIS_URL", "sentinel://a?x=1"),
        ("POSTGRES_PORT", "abc"),
        ("POSTGRES_PORT", "0"),
        ("POSTGRES_PORT", "65536"),
        ("MINIO_ENDPOINT", "http://127.0.0.1:9000"),
        ("MINIO_SECURE", "perhaps"),
        ("INPUT_BUCKETS", '{"volumes": 1}'),
        ("INPUT_PREFIXES", '[""]'),
        ("INPUT_PREFIXES", '["/ct"]'),
        ("INPUT_PREFIXES", '["ct//a"]'),
        ("OUTPUT_PREFIX_ROOT", "/"),
        ("OUTPUT_PREFIX_ROOT", "a\\b"),
        ("OUTPUT_PREFIX_ROOT", "a\nb"),
        ("ONNX_PROVIDERS", '{"CPUExecutionProvider": 1}'),
        ("ONNX_PROVIDERS", '["CPUExecutionProvider", 1]'),
        ("INTRA_OP_THREADS", "0"),
        ("WORKER_CONCURRENCY", "-1"),
        ("MAX_ATTEMPTS", "0"),
        ("RETRY_DELAY_S", "0"),
        ("RETRY_DELAY_S", "inf"),
        ("LEASE_S", "-30"),
        ("LEASE_S", "nan"),
        ("LEASE_S", "inf"),
        ("TIME_LIMIT_S", "1.5"),
        ("MAX_INPUT_BYTES", "4 GB"),
        ("MAX_VOXELS", "0"),
        ("LOG_LEVEL", "LOUD"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_an_invalid_value_is_refused_and_its_field_named(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert {problem["loc"][0] for problem in caught.value.errors()} == {name.lower()}


def test_providers_that_are_not_json_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_PROVIDERS", "CPUExecutionProvider")
    with pytest.raises(SettingsError, match="onnx_providers"):
        Settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Settings(), "postgres_port", 1)  # noqa: B010 - mypy refuses a plain assignment


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("POSTGRES_PASSWORD", "hush"),
        ("MINIO_ACCESS_KEY", "hush"),
        ("MINIO_SECRET_KEY", "hush"),
        ("REDIS_URL", "redis://:hush@127.0.0.1:6379/0"),
        ("REDIS_URL", "sentinel://:hush@127.0.0.1;sentinel://127.0.0.2"),
        ("REDIS_PASSWORD", "hush"),
        ("REDIS_SENTINEL_PASSWORD", "hush"),
    ],
)
def test_repr_and_str_contain_no_secret(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(name, text)
    settings = Settings()
    assert "hush" not in f"{settings!r} {settings}"


@pytest.mark.parametrize("url", ["redis://127.0.0.1", "http://:hush@h", "sentinel://:hush@h;sentinel://:a@h"])
def test_a_validation_error_contains_no_secret(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "hush")
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setenv("CPU_STANDBY_S", "1")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert "hush" not in str(caught.value)


SECRETS = [field.removesuffix("_file") for field in Settings.model_fields if field.endswith("_file")]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_read_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("p@ss: wörd\n", encoding="utf-8")
    monkeypatch.setenv(f"{name.upper()}_FILE", str(tmp_path / "secret"))
    assert getattr(Settings(), name) == SecretStr("p@ss: wörd")


@pytest.mark.parametrize("name", SECRETS)
def test_a_missing_secret_file_and_a_secret_set_twice_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv(f"{name.upper()}_FILE", str(tmp_path / "none"))
    with pytest.raises(ValidationError, match=f"{name.upper()}_FILE cannot be read: FileNotFoundError"):
        Settings()
    monkeypatch.setenv(name.upper(), "hush")
    with pytest.raises(ValidationError, match=f"{name.upper()} and {name.upper()}_FILE are both set"):
        Settings()


def test_every_secret_has_a_file_variable() -> None:
    secrets = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert secrets == set(SECRETS)


@pytest.mark.parametrize(
    ("requested", "usable", "expected"),
    [
        ([CUDA, CPU], [CUDA, CPU], [CUDA, CPU]),
        ([CUDA, TENSORRT, CPU], [TENSORRT, CUDA, CPU], [CUDA, TENSORRT, CPU]),
        ([TENSORRT, CUDA, CPU], [CUDA, CPU], [CUDA, CPU]),
        ([CPU, CUDA], [CUDA, CPU], [CUDA, CPU]),
        ([CUDA], [CUDA, CPU], [CUDA, CPU]),
        ([CPU, CPU], [CPU], [CPU]),
        ([CUDA], [CPU], [CPU]),
        ([], [CUDA, CPU], [CPU]),
        (["AzureExecutionProvider", CPU], [CPU], [CPU]),
        (["NoSuchProvider", CUDA], [CUDA, CPU], [CUDA, CPU]),
    ],
)
def test_effective_providers(
    monkeypatch: pytest.MonkeyPatch, requested: list[str], usable: list[str], expected: list[str]
) -> None:
    monkeypatch.setattr("inference_service.engine.providers.usable_providers", lambda: usable)
    assert Settings.model_validate({"onnx_providers": requested}).effective_onnx_providers == expected


def test_given_values_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PORT", "1111")
    monkeypatch.setenv("POSTGRES_DB", "from-environment")
    settings = Settings.model_validate({"postgres_port": "2222", "redis_url": "redis://127.0.0.1:7000/0"})
    assert (settings.postgres_port, settings.broker_url) == (2222, "redis://127.0.0.1:7000/0")
    assert settings.postgres_db == "from-environment"
    assert settings.postgres_user == "inference"


def test_get_settings_reads_the_environment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    get_settings.cache_clear()
    monkeypatch.setenv("POSTGRES_DB", "first")
    first = get_settings()
    monkeypatch.setenv("POSTGRES_DB", "second")
    assert get_settings() is first
    assert first.postgres_db == "first"
    get_settings.cache_clear()


@pytest.mark.parametrize("bucket", ["volumes", "masks", "archive"])
def test_stored_models_have_a_bucket_of_their_own(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.setenv("INPUT_BUCKETS", '["archive"]')
    monkeypatch.setenv("MODELS_BUCKET", bucket)
    with pytest.raises(ValidationError, match="MODELS_BUCKET must be a bucket of its own"):
        Settings()


def test_fetched_models_lie_in_the_work_path_unless_a_folder_is_set(tmp_path: Path) -> None:
    default = Settings(work_path=tmp_path).usable_models_cache_path
    assert default == tmp_path / "inference-service-models"
    assert default.stat().st_mode & 0o777 == 0o700
    own = tmp_path / "a" / "b"
    assert Settings(work_path=tmp_path, models_cache_path=own).usable_models_cache_path == own


def test_a_cache_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"MODELS_CACHE_PATH: .*file/cache cannot be made: Not a directory"):
        _ = Settings(models_cache_path=tmp_path / "file" / "cache").usable_models_cache_path
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ConfigurationError, match="is not a writable folder"):
        _ = Settings(models_cache_path=tmp_path).usable_models_cache_path
    monkeypatch.undo()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "inference-service-models").symlink_to(tmp_path)
    with pytest.raises(ConfigurationError, match="is a link"):
        _ = Settings(work_path=tmp_path / "work").usable_models_cache_path
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    with pytest.raises(ConfigurationError, match="belongs to another user: set MODELS_CACHE_PATH"):
        _ = Settings(work_path=tmp_path).usable_models_cache_path


def test_models_are_not_installed_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "_PACKAGE", tmp_path / "inference_service")
    monkeypatch.delenv("MODELS_PATH", raising=False)
    with pytest.raises(ConfigurationError, match="set MODELS_PATH"):
        _ = Settings().own_models_path
    assert Settings(models_path=tmp_path / "models").own_models_path == tmp_path / "models"
    # In a clone, they are those of the clone.
    (tmp_path / "pyproject.toml").touch()
    assert Settings().own_models_path == tmp_path / "models"
