import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "inference_service"
NAME = PACKAGE.name

# A module imports from lower levels only; each stands on the lowest that it can.
LEVELS: tuple[set[str], ...] = (
    {
        "codestream",
        "commands.__init__",
        "decide",
        "errors",
        "health",
        "logs",
        "machine",
        "paint",
        "parallel",
        "patience",
        "runs",
        "server_process",
        "stages",
        "transport",
        "volume",
        "windows",
        "workspace",
    },
    {
        "archives",
        "complaints",
        "embedded_postgres",
        "image",
        "memory",
        "modality",
        "nifti",
        "phantom",
        "providers",
        "regions",
        "regrid",
        "request",
        "resample",
        "sums",
        "views",
    },
    {"candidates", "consumer", "dicom", "embedded", "manifest", "mapping", "series", "sessions", "settings", "shear"},
    {
        "crop",
        "device_sums",
        "inference",
        "models",
        "pixels",
        "postprocess",
        "preprocess",
        "queues",
        "report",
        "storage",
        "tables",
        "trial",
    },
    {"dicom_seg", "engine", "jobs", "legend", "reference", "slices", "workers"},
    {"attempts", "deployment", "dicom_volume", "dispatch", "display", "preview"},
    {"client", "lease", "readers", "stack", "sweep"},
    {"__init__", "commands.jobs", "demo", "metrics", "pipeline"},
    {"local", "results"},
    {"commands.local", "supervisor", "tasks"},
    {"worker"},
    {"commands.operations"},
    {"cli"},
    {"__main__"},
)
# Third-party libraries, and the modules that know them.
HOMES: dict[str, set[str]] = {
    "PIL": {"legend", "preview"},
    "alembic": {"tables"},
    "celery": {"consumer", "queues", "tasks", "worker"},
    "highdicom": {"dicom_seg"},
    "isal": {"nifti"},
    "kombu": {"consumer", "queues", "transport"},
    "minio": {"storage", "embedded"},
    "nibabel": {"nifti"},
    "onnxruntime": {"sessions", "trial"},
    "psycopg2": {"tables", "embedded_postgres"},
    "imagecodecs": {"pixels"},
    "pydicom": {"dicom", "dicom_seg", "pixels"},
    "prometheus_client": {"metrics"},
    "redis": {"embedded", "queues", "transport"},
    "scipy": {"crop", "mapping", "regions", "resample", "runs", "postprocess"},
    "sqlalchemy": {"tables", "jobs", "attempts", "sweep", "workers", "metrics"},
    "tenacity": {"patience"},
    "threadpoolctl": {"pipeline"},
}
# What the image goes through, and what none of it may know of.
NUMERICS = {
    "volume", "windows", "crop", "decide", "resample", "preprocess", "inference", "mapping", "postprocess",
    "nifti", "parallel", "memory", "readers", "engine", "pipeline", "archives", "image", "dicom",
    "codestream", "pixels", "candidates", "series", "slices", "regrid", "shear", "dicom_volume", "modality",
    "runs", "regions", "report", "views", "paint", "legend", "preview",
    "dicom_seg",
}  # fmt: skip
INFRASTRUCTURE = {"settings", "queues", "storage", "tables", "jobs", "attempts", "client", "lease", "tasks", "worker"}

# A client's installation lacks these.
WORKERS_PART = (
    "PIL",
    "numpy",
    "scipy",
    "nibabel",
    "pydicom",
    "highdicom",
    "gdcm",
    "onnxruntime",
    "isal",
    "alembic",
    "threadpoolctl",
    "prometheus_client",
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts}


@cache
def imported(module: str) -> set[str]:
    """Full names of all that a module imports, inside functions too, and perhaps of attributes of it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = [NAME, *module.split(".")][: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def own_imports(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    inside = {name.removeprefix(f"{NAME}.") for name in imported(module)}
    return {name for name in inside if name in MODULES} - {module}


def everything_behind(module: str) -> set[str]:
    found: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        waiting |= own_imports(name) - found
        found |= own_imports(name)
    return found


LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}


def test_every_module_has_one_level() -> None:
    assert set(LEVEL) == set(MODULES)
    assert len(LEVEL) == sum(len(modules) for modules in LEVELS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_and_no_level_is_higher_than_needed(module: str) -> None:
    below = {other: LEVEL[other] for other in own_imports(module)}
    assert {other for other, level in below.items() if level >= LEVEL[module]} == set()
    assert LEVEL[module] == max(below.values(), default=-1) + 1


def test_the_reading_of_imports_sees_what_there_is() -> None:
    assert {"errors", "settings", "tables", "storage"} <= own_imports("deployment")
    assert "client" in own_imports("__init__")
    assert "pipeline" in everything_behind("cli")


@pytest.mark.parametrize("library", HOMES)
def test_each_library_stays_at_home(library: str) -> None:
    users = {module for module in MODULES if library in {name.split(".")[0] for name in imported(module)}}
    assert users == HOMES[library]


@pytest.mark.parametrize("module", sorted(NUMERICS))
def test_numerics_know_nothing_of_queue_database_and_storage(module: str) -> None:
    assert everything_behind(module) & INFRASTRUCTURE == set()


def run_without_the_workers_part(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({WORKERS_PART!r}))\nsys.argv[0] = 'inference-service'\n"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", blocked + code, *arguments],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=60,
    )  # fmt: skip


def test_a_client_needs_the_base_installation_only() -> None:
    ended = run_without_the_workers_part("from inference_service import Client; Client(); print('made')")
    assert (ended.stderr, ended.stdout) == ("", "made\n")


def test_the_command_line_starts_with_the_base_installation() -> None:
    ended = run_without_the_workers_part("from inference_service.cli import main; main()", "--help")
    assert (ended.stderr, ended.returncode) == ("", 0)
    assert "submit" in ended.stdout


def test_segment_says_in_one_sentence_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").touch()
    ended = run_without_the_workers_part(
        "from inference_service.cli import main; main()",
        "segment", str(tmp_path / "scan.nii"), str(tmp_path / "out"), "--model", "ct-tissue",
    )  # fmt: skip
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert "is not installed" in line
    assert "inference-service[cpu]" in line
    assert not (tmp_path / "out").exists()
