"""The compose files render in every mode, their variables are documented, and the Dockerfiles pass hadolint."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference_service.core.settings import Settings

REPOSITORY = Path(__file__).parents[2]
FILES = [*REPOSITORY.glob("docker-compose*.yml"), *REPOSITORY.glob("docker/*.yml")]
SECRETS = dict.fromkeys(("REDIS_PASSWORD", "POSTGRES_PASSWORD", "MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"), "secret1")
MONITORING_SECRETS = {"GRAFANA_PASSWORD": "secret1", "FLOWER_BASIC_AUTH": "operator:secret1"}
WORKERS = (("cpu",), ("gpu",), ("gpu", "cpu"))
MODES = (*WORKERS, *((*mode, "monitoring") for mode in WORKERS))
SERVERS = {"redis", "postgres", "minio"}
MONITORS = {"prometheus", "grafana", "flower"}


def environment(variables: dict[str, str]) -> dict[str, str]:
    """The complete environment of a compose command, independent of the caller's."""
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}


def compose_command() -> list[str] | None:
    """Compose v2 if it is installed, else docker-compose 1."""
    if shutil.which("docker"):
        found = subprocess.run(["docker", "compose", "version"], env=environment({}), capture_output=True, check=False)
        if found.returncode == 0:
            return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


COMPOSE = compose_command()
needs_compose = pytest.mark.skipif(COMPOSE is None, reason="neither docker compose nor docker-compose is installed")


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment file that replaces the developer's .env."""
    path = tmp_path_factory.mktemp("compose") / "empty.env"
    path.touch()
    return path


def config(
    env_file: Path, mode: tuple[str, ...], variables: dict[str, str], *more: Path
) -> subprocess.CompletedProcess[str]:
    files = ["docker-compose.yml", *(f"docker-compose.{part}.yml" for part in mode), *map(str, more)]
    return subprocess.run(
        [*(COMPOSE or []), "--env-file", str(env_file), *(word for file in files for word in ("-f", file)), "config"],
        cwd=REPOSITORY,
        env=environment(variables),
        capture_output=True,
        text=True,
        check=False,
    )


def services(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_fits_the_compose_specification(file: Path, tmp_path: Path) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / file.name
    wrong.write_text(file.read_text(encoding="utf-8").replace("services:\n", "servics:\n"))
    assert subprocess.run([*check, str(wrong)], capture_output=True, check=False).returncode != 0


@needs_compose
@pytest.mark.parametrize("mode", MODES, ids="+".join)
def test_every_mode_renders(empty: Path, mode: tuple[str, ...]) -> None:
    rendered = services(config(empty, mode, SECRETS | (MONITORING_SECRETS if "monitoring" in mode else {})))
    monitors = MONITORS if "monitoring" in mode else set()
    workers = {f"inference-worker-{part}" for part in mode if part != "monitoring"}
    assert set(rendered) == {*SERVERS, *monitors, *workers, "migrate"}
    for name, service in rendered.items():
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["logging"]["options"]["max-size"] == "10m"
        assert all("127.0.0.1" in str(port) for port in service.get("ports", []))
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
        assert service["cap_drop"] == ["ALL"]
        if name not in SERVERS:
            assert (service["read_only"], "cap_add" in service) == (True, False)
    for worker in workers:
        assert "ports" not in rendered[worker]


@needs_compose
@pytest.mark.parametrize("engine", ["cpu", "openvino"])
def test_services_that_share_an_image_build_it_the_same_way(empty: Path, engine: str) -> None:
    rendered = services(config(empty, ("gpu", "cpu"), {**SECRETS, "CPU_ENGINE": engine}))
    assert rendered["migrate"]["image"] == rendered["inference-worker-cpu"]["image"]
    assert rendered["migrate"]["build"] == rendered["inference-worker-cpu"]["build"]
    assert rendered["migrate"]["build"]["args"] == {"ENGINE": engine}


@needs_compose
@pytest.mark.parametrize("name", [*SECRETS, *MONITORING_SECRETS])
def test_an_unset_password_is_named(empty: Path, name: str) -> None:
    done = config(empty, ("cpu", "monitoring"), {**SECRETS, **MONITORING_SECRETS, name: ""})
    assert done.returncode != 0
    assert f"set {name}" in done.stderr


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("docker/Dockerfile.*")), ids=lambda path: path.name)
def test_dockerfiles_pass_hadolint(path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_every_variable_is_documented() -> None:
    used = {name for file in FILES for name in re.findall(r"\$\{([A-Z0-9_]+)", file.read_text(encoding="utf-8"))}
    example = (REPOSITORY / ".env.example").read_text(encoding="utf-8")
    assert {name for name in used if not re.search(rf"^(# )?{name}=", example, flags=re.MULTILINE)} == set()
    pages = "".join(
        (REPOSITORY / "docs" / page).read_text(encoding="utf-8") for page in ("settings.md", "deployment.md")
    )
    assert {name for name in used if f"`{name}`" not in pages} == set()


@pytest.mark.parametrize("role", ["cpu", "gpu"])
def test_every_setting_of_a_job_reaches_the_workers(role: str) -> None:
    files = [REPOSITORY / "docker/service.yml", REPOSITORY / f"docker-compose.{role}.yml"]
    passed = set(re.findall(r"^      ([A-Z0-9_]+):", "".join(map(Path.read_text, files)), flags=re.MULTILINE))
    # The images set the paths, and the servers of these files have no TLS.
    fixed = {"MODELS_PATH", "WORK_PATH", "HEALTH_PATH", "MINIO_SECURE", "POSTGRES_SSLMODE", "TLS_CA_PATH"}
    # This role does not use these.
    fixed |= {"REQUIRE_GPU"} if role == "cpu" else {"ONNX_PRECISION"}
    settings = {name.upper() for name in Settings.model_fields if not name.endswith("_file")}
    assert settings - passed == fixed


@needs_compose
def test_the_documented_override_connects_to_external_servers(empty: Path, tmp_path: Path) -> None:
    (shown,) = re.findall(
        r"```yaml\n(services:\n.*?)```",
        (REPOSITORY / "docs/deployment.md").read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    override = tmp_path / "override.yml"
    override.write_text(shown, encoding="utf-8")
    rendered = services(config(empty, ("cpu",), SECRETS, override))
    given = {"POSTGRES_SERVER": "db.hospital.example", "POSTGRES_SSLMODE": "verify-full"}
    for name in ("migrate", "inference-worker-cpu"):
        assert given.items() <= rendered[name]["environment"].items()
        assert "MINIO_ENDPOINT" in rendered[name]["environment"]
        assert "/ca.pem" in str(rendered[name]["volumes"])


@needs_compose
def test_the_gpu_worker_starts_on_a_machine_without_a_gpu(empty: Path) -> None:
    with_gpu, without = (
        config(empty, ("gpu",), {**SECRETS, "GPU_DEVICES": kind}).stdout for kind in ("nvidia", "none")
    )
    assert "driver: nvidia" in with_gpu
    assert "inference-worker-gpu" in without
    assert "nvidia" not in without


@needs_compose
def test_the_example_without_its_comment_signs_renders_the_same(empty: Path, tmp_path: Path) -> None:
    filled = tmp_path / "filled.env"
    example = (REPOSITORY / ".env.example").read_text(encoding="utf-8")
    filled.write_text(re.sub(r"^# ([A-Z_]+=.)", r"\1", example, flags=re.MULTILINE), encoding="utf-8")
    rendered, plain = (services(config(path, ("gpu", "cpu"), SECRETS)) for path in (filled, empty))
    for name, service in plain.items():
        assert rendered[name].get("volumes") == service.get("volumes")
        assert rendered[name].get("image") == service.get("image")


def test_the_example_shows_the_defaults_of_compose() -> None:
    example = (REPOSITORY / ".env.example").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^# ([A-Z_]+)=(.+)$", example, flags=re.MULTILINE))
    defaults: dict[str, str] = {}
    for file in FILES:
        defaults |= dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", file.read_text(encoding="utf-8")))
    both = defaults.keys() & shown.keys()
    assert {name: shown[name] for name in both} == {name: defaults[name] for name in both}
    assert len(both) > 30


def test_no_build_context_contains_secrets_or_scans() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split()
    assert {"*.env", ".git", "stack-data", "demo-output", "jobs.dump", "objects"} <= set(ignored)
