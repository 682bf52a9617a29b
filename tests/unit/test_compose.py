"""The compose files render in every mode, their variables are documented, and the Dockerfiles pass hadolint."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from inference_service.core.settings import Settings
from inference_service.gateway.server import STOP_LIMIT_S

REPOSITORY = Path(__file__).parents[2]
FILES = [*REPOSITORY.glob("docker-compose*.yml"), *REPOSITORY.glob("docker/*.yml")]
WORKERS = (("cpu",), ("gpu",), ("gpu", "cpu"))
MODES = (*WORKERS, *((*mode, other) for mode in WORKERS for other in ("monitoring", "gateway")))
SERVERS = {"redis", "postgres", "minio"}
ONCE = {"postgres-roles", "minio-users", "migrate"}
MONITORS = {"prometheus", "grafana", "flower"}
ALL = ("gpu", "cpu", "gateway", "monitoring")


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


def config(env_file: Path, mode: tuple[str, ...], *more: Path, **variables: str) -> subprocess.CompletedProcess[str]:
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
    rendered = services(config(empty, mode))
    monitors = MONITORS if "monitoring" in mode else set()
    gateways = {"inference-gateway"} if "gateway" in mode else set()
    workers = {f"inference-worker-{part}" for part in mode if part in ("cpu", "gpu")}
    assert set(rendered) == {*SERVERS, *monitors, *gateways, *workers, *ONCE}
    for name, service in rendered.items():
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["logging"]["options"]["max-size"] == "10m"
        assert all("127.0.0.1" in str(port) for port in service.get("ports", []))
        assert service["restart"] == ("no" if name in ONCE else "unless-stopped")
        assert service["cap_drop"] == ["ALL"]
        assert (service["read_only"], service["init"]) == (True, True)
        assert service["ulimits"] == {"core": 0}
        assert "cap_add" not in service or name in SERVERS
    for worker in workers:
        assert "ports" not in rendered[worker]
        assert str(rendered[worker]["mem_limit"]) in {"16g", str(16 * 2**30)}
        assert rendered[worker]["pids_limit"] == 2048


@needs_compose
def test_only_published_services_leave_the_inner_network(empty: Path) -> None:
    done = config(empty, ALL)
    for service in services(done).values():
        assert bool(set(service["networks"]) - {"back"}) == bool(service.get("ports"))
    networks = yaml.safe_load(done.stdout)["networks"]
    assert {name for name, network in networks.items() if (network or {}).get("internal")} == {"back"}
    # A fault of Grafana, which people log in to, must not reach the servers.
    assert set(services(done)["grafana"]["networks"]) == {"monitoring"}


@needs_compose
def test_each_service_reads_the_secrets_of_its_own_identity(empty: Path) -> None:
    done = config(empty, ALL)
    assert not re.findall(r"(?:PASSWORD|SECRET_KEY|ACCESS_KEY|BASIC_AUTH): ", done.stdout)
    owners = {
        "migrate": "migrate",
        "flower": "monitoring",
        "inference-worker-cpu": "worker",
        "inference-worker-gpu": "worker",
        "inference-gateway": "gateway",
    }
    own = {"flower_basic_auth", "gateway_webhook_secret"}
    for name, owner in owners.items():
        sources = {secret["source"] for secret in services(done)[name]["secrets"]}
        assert {source.split("_")[1] for source in sources - own} == {owner}
        environment = services(done)[name]["environment"]
        files = {Path(value).name for variable, value in environment.items() if variable.endswith("_FILE")}
        assert files <= {
            secret.get("target", secret["source"]).rpartition("/")[2] for secret in services(done)[name]["secrets"]
        }


@needs_compose
def test_make_secrets_creates_every_secret(empty: Path, tmp_path: Path) -> None:
    done = config(empty, ALL, SECRETS_PATH=str(tmp_path / "secrets"))
    named = {Path(secret["file"]).name for secret in yaml.safe_load(done.stdout)["secrets"].values()}
    script = REPOSITORY / "docker" / "make-secrets.sh"
    subprocess.run([script], env=environment({"SECRETS_PATH": str(tmp_path / "secrets")}), check=True)
    assert named < {path.name for path in (tmp_path / "secrets").iterdir()}


@needs_compose
@pytest.mark.parametrize("engine", ["cpu", "openvino"])
def test_services_that_share_an_image_build_it_the_same_way(empty: Path, engine: str) -> None:
    rendered = services(config(empty, ALL, CPU_ENGINE=engine))
    for name in ("inference-worker-cpu", "inference-gateway"):
        assert rendered["migrate"]["image"] == rendered[name]["image"]
        assert rendered["migrate"]["build"] == rendered[name]["build"]
    assert rendered["migrate"]["build"]["args"] == {"ENGINE": engine}


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("docker/Dockerfile.*")), ids=lambda path: path.name)
def test_dockerfiles_pass_hadolint(path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("docker/Dockerfile.*")), ids=lambda path: path.name)
def test_images_have_an_init_an_inventory_and_a_user(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r'^ENTRYPOINT \["tini", "-s", "--", ', last, flags=re.MULTILINE)
    assert "COPY --from=build /opt/inventory /usr/share/doc/inference-service" in last
    assert "docker/inventory.sh /opt/build/bin /opt/venv/bin/python /opt/inventory" in text
    assert "\nUSER 10001:10001\n" in last


def inventory(folder: Path, *packages: str) -> subprocess.CompletedProcess[str]:
    tools = Path(sys.executable).parent
    command: list[str | Path] = [REPOSITORY / "docker" / "inventory.sh", tools, sys.executable, folder, *packages]
    return subprocess.run(command, env=environment({}), capture_output=True, text=True, check=False)


def test_the_inventory_has_every_package_of_the_image(tmp_path: Path) -> None:
    lock = (REPOSITORY / "locks" / "cpu.txt").read_text(encoding="utf-8")
    packages = [canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", lock, flags=re.MULTILINE)]
    installed = {canonicalize_name(found.name) for found in distributions()}
    done = inventory(tmp_path, *(name for name in packages if name in installed))
    assert done.returncode == 0, done.stderr
    bill = json.loads((tmp_path / "sbom.cdx.json").read_text(encoding="utf-8"))
    assert set(packages) & installed <= {canonicalize_name(component["name"]) for component in bill["components"]}
    notices = (tmp_path / "third-party-notices.txt").read_text(encoding="utf-8")
    assert "Permission is hereby granted, free of charge" in notices


def test_a_licence_that_is_not_permissive_fails_the_build(tmp_path: Path) -> None:
    done = inventory(tmp_path, "pydantic", "codespell")
    assert done.returncode != 0
    assert "codespell" in done.stderr


def test_every_variable_is_documented() -> None:
    used = {name for file in FILES for name in re.findall(r"(?<!\$)\$\{([A-Z0-9_]+)", file.read_text(encoding="utf-8"))}
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
    # The images set the paths, and the servers of these files have no TLS, no pooler and no sentinels.
    fixed = {
        "MODELS_PATH",
        "MODELS_CACHE_PATH",
        "WORK_PATH",
        "HEALTH_PATH",
        "MINIO_SECURE",
        "POSTGRES_SSLMODE",
        "TLS_CA_PATH",
    }
    fixed |= {"POSTGRES_POOLER", "REDIS_SENTINEL_MASTER", "REDIS_SENTINEL_USERNAME", "REDIS_SENTINEL_PASSWORD"}
    # This role does not use these.
    fixed |= {"REQUIRE_GPU"} if role == "cpu" else {"ONNX_PRECISION"}
    # Only upstreams use these.
    fixed |= {"SUBMITTED_BY", "TENANT"}
    # Secrets are files.
    passed = {name.removesuffix("_FILE") for name in passed}
    of_workers = {name for name in Settings.model_fields if not name.startswith(("gateway_", "webhook_"))}
    settings = {name.upper() for name in of_workers if not name.endswith("_file")}
    assert settings - passed == fixed


@pytest.mark.parametrize("engine", ["cpu", "openvino"])
def test_the_image_contains_the_gateway(engine: str) -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {Requirement(line).name for line in extras["optional-dependencies"]["gateway"]}
    lock = (REPOSITORY / "locks" / f"{engine}.txt").read_text(encoding="utf-8")
    assert needed <= set(re.findall(r"^([\w.-]+)==", lock, flags=re.MULTILINE))


def test_every_setting_of_the_gateway_reaches_it() -> None:
    text = (REPOSITORY / "docker-compose.gateway.yml").read_text(encoding="utf-8")
    passed = {name.removesuffix("_FILE") for name in re.findall(r"^      ([A-Z0-9_]+):", text, flags=re.MULTILINE)}
    settings = {name.upper() for name in Settings.model_fields if name.startswith(("gateway_", "webhook_"))}
    # A proxy adds TLS.
    assert {name.removesuffix("_FILE") for name in settings} - passed == {"GATEWAY_TLS_CERT", "GATEWAY_TLS_KEY"}


@needs_compose
def test_a_stopping_gateway_may_end_its_requests(empty: Path) -> None:
    assert services(config(empty, ALL))["inference-gateway"]["stop_grace_period"] == "20s"
    assert STOP_LIMIT_S < 20


@needs_compose
def test_a_gateway_that_only_its_own_container_reaches_is_unhealthy(empty: Path) -> None:
    check = services(config(empty, ALL))["inference-gateway"]["healthcheck"]["test"]
    assert "{socket.gethostname()}:8080/healthz" in check[-1]


@pytest.mark.parametrize("page", ["README.md", "docs/deployment.md", "docs/operations.md"])
def test_commands_name_the_files_of_their_services(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8").replace("\\\n", "")
    for command in re.findall(r"docker compose .*", text):
        for service, part in re.findall(r"\b(inference-(?:worker-)?(cpu|gpu|gateway))\b", command):
            assert f"-f docker-compose.{part}.yml" in command, (service, command)


@pytest.mark.parametrize("file", ["docker-compose.gateway.yml", "docs/deployment.md"])
def test_the_tables_are_made_before_the_first_token(file: str) -> None:
    text = (REPOSITORY / file).read_text(encoding="utf-8").partition("### HTTP gateway")
    commands = re.findall(r"run --rm migrate ?(.*)", text[2] or text[0])
    assert commands[:2] == ["", "tokens add pacs --role submit"]


def documented_override(folder: Path, number: int) -> Path:
    """An override file that docs/deployment.md shows."""
    shown = re.findall(
        r"```yaml\n((?:x-clients:|services:\n).*?)```",
        (REPOSITORY / "docs/deployment.md").read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    assert len(shown) == 2
    path = folder / "override.yml"
    path.write_text(shown[number], encoding="utf-8")
    return path


@needs_compose
def test_the_documented_override_connects_to_external_servers(empty: Path, tmp_path: Path) -> None:
    rendered = services(config(empty, ("cpu",), documented_override(tmp_path, 0)))
    given = {"POSTGRES_SERVER": "db.hospital.example", "POSTGRES_SSLMODE": "verify-full"}
    for name in ("migrate", "inference-worker-cpu"):
        assert given.items() <= rendered[name]["environment"].items()
        assert "MINIO_ENDPOINT" in rendered[name]["environment"]
        assert "/ca.pem" in str(rendered[name]["volumes"])
        assert set(rendered[name]["networks"]) == {"back", "outside"}


@needs_compose
def test_the_documented_override_encrypts_all_connections(empty: Path, tmp_path: Path) -> None:
    rendered = services(config(empty, ("cpu",), documented_override(tmp_path, 1)))
    given = {"MINIO_SECURE": "true", "POSTGRES_SSLMODE": "verify-full", "TLS_CA_PATH": "/tls/ca.pem"}
    for name in ("migrate", "inference-worker-cpu"):
        assert given.items() <= rendered[name]["environment"].items()
        assert "/tls/ca.pem" in str(rendered[name]["volumes"])
    assert rendered["inference-worker-cpu"]["environment"]["REDIS_URL"].startswith("rediss://worker@")
    assert "--port 0 --tls-port 6379" in rendered["redis"]["environment"]["REDIS_OPTIONS"]
    assert "ssl=on" in str(rendered["postgres"]["command"])
    assert "/identities" in str(rendered["postgres-roles"]["volumes"])


@needs_compose
def test_the_gpu_worker_starts_on_a_machine_without_a_gpu(empty: Path) -> None:
    with_gpu, without = (config(empty, ("gpu",), GPU_DEVICES=kind).stdout for kind in ("nvidia", "none"))
    assert "driver: nvidia" in with_gpu
    assert "inference-worker-gpu" in without
    assert "nvidia" not in without


@needs_compose
def test_the_example_without_its_comment_signs_renders_the_same(empty: Path, tmp_path: Path) -> None:
    filled = tmp_path / "filled.env"
    example = (REPOSITORY / ".env.example").read_text(encoding="utf-8")
    filled.write_text(re.sub(r"^# ([A-Z_]+=.)", r"\1", example, flags=re.MULTILINE), encoding="utf-8")
    rendered, plain = (services(config(path, ("gpu", "cpu"))) for path in (filled, empty))
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


def test_no_build_context_contains_secrets_scans_or_libraries_of_the_page() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split()
    assert {"*.env", "secrets", "deploy", ".git", "stack-data", "demo-output", "jobs.dump", "objects"} <= set(ignored)
    # A library that someone has changed while developing must not get into an image.
    assert "inference_service/gateway/page/web/vendor" in ignored
