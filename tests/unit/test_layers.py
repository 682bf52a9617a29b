import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "inference_service"
NAME = PACKAGE.name

# Third-party libraries, and the modules that import them.
HOMES: dict[str, set[str]] = {
    "PIL": {"segmentation.preview.legend", "segmentation.preview.page"},
    "alembic": {"jobs.database"},
    "backports": {"formats.decompression"},
    "celery": {"jobs.queues.celery_app", "worker.task", "worker.main"},
    "highdicom": {"formats.dicom.segmentation_writer", "formats.dicom.source_references"},
    "isal": {"formats.nifti", "formats.raster.writer", "formats.decompression"},
    "kombu": {"jobs.queues.celery_app", "worker.messages.redis_transport"},
    "minio": {"jobs.storage.object_storage", "embedded.servers"},
    "dynamic_network_architectures": {"importers.isolated.nnunet_network"},
    "nnunetv2": {
        "importers.isolated.nnunet_plans",
        "importers.isolated.nnunet_predictor",
        "importers.isolated.totalsegmentator_predictor",
    },
    "totalsegmentator": {"importers.isolated.totalsegmentator_predictor"},
    "nibabel": {
        "importers.isolated.nnunet_predictor",
        "formats.analyze",
        "formats.nifti",
        "formats.nifti_geometry",
        "formats.nifti_header",
    },
    "opentelemetry": {"core.tracing"},
    "monai": {"importers.isolated.builders", "importers.isolated.monai_evaluator"},
    "onnx": {"importers.isolated.export", "importers.isolated.onnx_graph"},
    "onnxruntime": {"engine.session", "engine.provider_probe", "importers.isolated.export"},
    "psycopg2": {"jobs.database", "embedded.postgres"},
    "imagecodecs": {"formats.dicom.pixels.encoded_frames"},
    "pydicom": {
        "formats.dicom.attributes",
        "formats.dicom.file_check",
        "formats.dicom.frame_attributes",
        "formats.dicom.functional_groups",
        "formats.dicom.header",
        "formats.dicom.pixels.offset_table",
        "formats.dicom.pixels.decoder",
        "formats.dicom.pixels.encoded_frames",
        "formats.dicom.pydicom_errors",
        "formats.dicom.segmentation_writer",
        "formats.dicom.source_references",
        "formats.dicom.transfer_syntax",
        "formats.dicom.value_type",
    },
    "anyio": {
        "gateway.app",
        "gateway.background",
        "gateway.downloads",
        "gateway.events",
        "gateway.health",
        "gateway.jobs_api",
        "gateway.submission.form",
        "gateway.gateway",
        "gateway.results_api",
        "gateway.submission.submitting",
        "gateway.submission.uploading",
        "gateway.webhooks.calls",
        "gateway.webhooks.delivery",
    },
    "httpx": {"gateway.background", "gateway.webhooks.calls", "gateway.webhooks.delivery"},
    "multipart": {"gateway.submission.form"},
    "prometheus_client": {"gateway.observation", "worker.metrics"},
    "h11": {"gateway.server"},
    "uvicorn": {"gateway.server"},
    "redis": {
        "embedded.servers",
        "jobs.queues.celery_app",
        "jobs.queues.redis_state",
        "jobs.queues.refusals",
        "worker.messages.redis_transport",
    },
    "scipy": {
        "segmentation.preparation.crop",
        "segmentation.preparation.intensities",
        "segmentation.labels.native_grid",
        "imaging.components",
        "imaging.interpolation",
        "imaging.regridding",
        "imaging.resampling",
        "imaging.run_length",
        "segmentation.labels.postprocessing",
    },
    "sqlalchemy": {
        "jobs.schema",
        "jobs.database",
        "jobs.grants",
        "jobs.gateway.job_events",
        "jobs.job_store",
        "jobs.workers.model_summaries",
        "client",
        "gateway.submission.acceptance",
        "jobs.gateway.limits",
        "jobs.gateway.tokens",
        "jobs.gateway.uploads",
        "jobs.gateway.webhooks",
        "jobs.attempts",
        "jobs.completion_events",
        "jobs.recovery",
        "jobs.redis_ownership",
        "jobs.resubmission",
        "jobs.retention",
        "jobs.storage.audit",
        "jobs.state_machine",
        "jobs.storage.stored_attempts",
        "jobs.workers.worker_registry",
        "worker.metrics",
    },
    "tenacity": {"core.retry"},
    "threadpoolctl": {"segmentation.resources"},
    "torch": {
        "importers.isolated.builders",
        "importers.isolated.checkpoints",
        "importers.isolated.export",
        "importers.isolated.instance_norm",
        "importers.isolated.monai_evaluator",
        "importers.isolated.nnunet_network",
        "importers.isolated.nnunet_predictor",
        "importers.isolated.totalsegmentator_predictor",
    },
    "yaml": {"importers.monai.config_file"},
}
# The base installation, which a client uses, lacks these.
WORKERS_PART = (
    "PIL",
    "numpy",
    "scipy",
    "nibabel",
    "pydicom",
    "highdicom",
    "gdcm",
    "imagecodecs",
    "onnxruntime",
    "isal",
    "backports",
    "alembic",
    "threadpoolctl",
    "prometheus_client",
    "opentelemetry",
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts}


@cache
def imported(module: str) -> set[str]:
    """Full names of the modules and attributes that a module imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = [NAME, *module.split(".")][: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("library", HOMES)
def test_each_library_is_imported_by_its_home_modules_only(library: str) -> None:
    users = {module for module in MODULES if library in {name.split(".")[0] for name in imported(module)}}
    assert users == HOMES[library]


def run_without_the_workers_part(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({WORKERS_PART!r}))\nsys.argv[0] = 'inference-service'\n"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", blocked + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        timeout=60,
    )


def test_a_client_needs_only_the_base_installation() -> None:
    ended = run_without_the_workers_part("from inference_service import Client; Client(); print('made')")
    assert (ended.stderr, ended.stdout) == ("", "made\n")


def test_the_command_line_starts_with_the_base_installation() -> None:
    ended = run_without_the_workers_part("from inference_service.cli.main import main; main()", "--help")
    assert (ended.stderr, ended.returncode) == ("", 0)
    assert "submit" in ended.stdout


def test_segment_names_the_missing_installation_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").touch()
    ended = run_without_the_workers_part(
        "from inference_service.cli.main import main; main()",
        "segment",
        str(tmp_path / "scan.nii"),
        str(tmp_path / "out"),
        "--model",
        "ct-tissue",
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert "is not installed" in line
    assert "inference-service[cpu]" in line
    assert not (tmp_path / "out").exists()
