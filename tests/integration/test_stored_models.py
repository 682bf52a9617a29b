"""Stored models on a real S3 server: pushed by one machine, fetched by the jobs of another one."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import Result
from fault_proxies import HttpAnswer, HttpRequest, StorageProxy
from faults import wait_for
from jobs_in_process import Request, get, run
from sqlalchemy import delete, func, select

from inference_service.contract.model_summary import ModelSummary
from inference_service.core.errors import ModelNotFound
from inference_service.core.settings import Settings
from inference_service.embedded.servers import Servers
from inference_service.embedded.stack import settings_for
from inference_service.engine.model_registry import Model, read_model
from inference_service.jobs.database import Database
from inference_service.jobs.job_store import Job
from inference_service.jobs.schema import JobRow, JobState
from inference_service.jobs.storage.object_storage import Storage
from inference_service.model_store.stored_models import StoredModels
from inference_service.worker import deployment
from inference_service.worker.model_summaries import SummaryReader
from inference_service.worker.self_test import SelfTest
from inference_service.worker.task import TaskHandler

MODEL = "ct-tissue"
BUCKET = "models"
FILES = [f"{MODEL}/1/{name}" for name in ("README.md", "manifest.json", "model.onnx")]
MakeHandler = Callable[..., TaskHandler]


class CuttingProxy(StorageProxy):
    """A proxy that ends the answers to some requests early."""

    cut: Callable[[HttpRequest], bool] = staticmethod(lambda request: False)

    def pass_on(self, request: HttpRequest) -> HttpAnswer:
        answer = super().pass_on(request)
        return HttpAnswer(answer.status, answer.headers, answer.body[:100]) if self.cut(request) else answer


@pytest.fixture
def proxy(servers: Servers) -> Iterator[CuttingProxy]:
    made = CuttingProxy(servers.s3.port)
    with made.running():
        yield made


@pytest.fixture
def stored(servers: Servers, storage: Storage) -> StoredModels:
    """The stored models of one test."""
    storage.ensure_bucket(BUCKET)
    return StoredModels(storage, BUCKET, f"tests/{uuid4()}")


@pytest.fixture
def model(stored: StoredModels) -> Model:
    found = read_model(Path(os.environ["MODELS_PATH"]) / MODEL / "1")
    assert stored.push(found)
    return found


@dataclass(frozen=True)
class OtherMachine:
    """A machine that has no models of its own, and reaches the storage through the proxy.

    Attributes:
        settings: Its settings, where they differ from those of the tests.
        folder: The folder of its files.
    """

    settings: dict[str, object]
    folder: Path
    proxy: CuttingProxy
    make_handler: MakeHandler
    database: Database
    request: Request
    network_sha256: str

    def handler(self, **settings: object) -> TaskHandler:
        """Starts a worker on it."""
        return self.make_handler(**{**self.settings, **settings})

    def run(self, **settings: object) -> Job:
        """Runs a job on it."""
        return run(self.handler(**settings), self.database, self.request)

    @property
    def fetches(self) -> int:
        """How often it has fetched the model's network."""
        return sum(request.is_for("GET", self.network_sha256) for request in self.proxy.requests)

    @property
    def cached(self) -> list[str]:
        """The files in its cache, without locks and sizes."""
        cache = self.folder / "cache"
        files = (path.relative_to(cache) for path in cache.rglob("*") if path.is_file())
        return sorted("/".join(path.parts[1:]) for path in files if path.name not in ("lock", "size"))


@pytest.fixture
def elsewhere(stored: StoredModels, proxy: CuttingProxy, tmp_path: Path) -> dict[str, object]:
    """The settings of another machine."""
    return {
        "minio_endpoint": proxy.endpoint,
        "models_path": tmp_path / "none",
        "models_bucket": BUCKET,
        "models_prefix": stored.address.removeprefix(f"s3://{BUCKET}/"),
        "models_cache_path": tmp_path / "cache",
    }


@pytest.fixture
def machine(
    elsewhere: dict[str, object],
    model: Model,
    proxy: CuttingProxy,
    make_handler: MakeHandler,
    database: Database,
    request_for_scan: Request,
    tmp_path: Path,
) -> OtherMachine:
    """Another machine, once the model is stored."""
    sha256 = model.manifest.networks_sha256
    return OtherMachine(elsewhere, tmp_path, proxy, make_handler, database, request_for_scan, sha256)


def test_a_job_runs_with_a_model_that_is_stored_alone(machine: OtherMachine, model: Model) -> None:
    first = machine.run()
    assert (first.state, first.error_message) == (JobState.SUCCEEDED, None)
    assert (first.model_version, first.manifest_sha256) == ("1", model.manifest_sha256)
    assert machine.cached == FILES
    again = run(machine.handler(), machine.database, {**machine.request, "model_version": "1"})
    assert again.state is JobState.SUCCEEDED
    assert machine.fetches == 1


def test_two_jobs_at_once_fetch_a_model_once(machine: OtherMachine, proxy: CuttingProxy) -> None:
    """Each handler has locks of its own, as processes have; test_model_cache.py has several processes."""
    held = proxy.hold("GET", machine.network_sha256)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(machine.run) for _ in range(2)]
        held.wait_until_arrived()
        wait_for(lambda: sum(request.is_for("GET", "/index.json") for request in proxy.requests) >= 2)
        held.release()
        assert [job.result().state for job in jobs] == [JobState.SUCCEEDED] * 2
    assert machine.fetches == 1


def test_a_long_fetch_keeps_its_lease(machine: OtherMachine, database: Database, proxy: CuttingProxy) -> None:
    with database.begin() as connection:
        connection.execute(delete(JobRow))
    held = proxy.hold("GET", machine.network_sha256)
    lease_s = 0.9
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(machine.run, lease_s=lease_s)
        held.wait_until_arrived()
        with database.connection() as connection:
            lease = select(JobRow.lease_expires_at).where(JobRow.state == JobState.RUNNING)
            first = connection.execute(lease).scalar_one()
            assert first is not None
        wait_for(lambda: _now(database) > first + timedelta(seconds=2 * lease_s))
        held.release()
        assert (job.result().state, job.result().attempt) == (JobState.SUCCEEDED, 1)


def _now(database: Database) -> datetime:
    with database.connection() as connection:
        found: datetime = connection.execute(select(func.now())).scalar_one()
        return found


def test_a_truncated_download_is_tried_again_and_leaves_nothing(
    machine: OtherMachine, database: Database, proxy: CuttingProxy
) -> None:
    proxy.cut = lambda request: request.is_for("GET", machine.network_sha256)
    handler = machine.handler()
    job = run(handler, database, machine.request)
    assert (job.state, job.attempt) == (JobState.QUEUED, 1)
    assert machine.cached == []
    proxy.cut = lambda request: False
    handler.handle({"job_id": str(job.id), "request": job.request}, task_id=str(job.id))
    assert get(database, job.id).state is JobState.SUCCEEDED


def test_without_the_storage_a_job_is_tried_again(machine: OtherMachine) -> None:
    job = machine.run(minio_endpoint="127.0.0.1:1")
    assert (job.state, job.error_code) == (JobState.QUEUED, None)


@pytest.mark.parametrize("damage", ["changed", "removed", "index"])
def test_a_changed_model_never_runs(machine: OtherMachine, storage: Storage, model: Model, damage: str) -> None:
    folder = f"{machine.settings['models_prefix']}{MODEL}/1/"
    network, changed, index_file = folder + machine.network_sha256, machine.folder / "changed", machine.folder / "index"
    content = bytearray((model.folder / "model.onnx").read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    if damage == "removed":
        storage.remove(BUCKET, network)
    elif damage == "changed":
        storage.store(BUCKET, network, changed, content_type="x/y")
    else:
        index = json.loads(storage.read(BUCKET, f"{folder}index.json", max_bytes=2**20))
        index["files"]["../../../evil"] = index["files"]["README.md"]
        index_file.write_text(json.dumps(index))
        storage.store(BUCKET, f"{folder}index.json", index_file, content_type="application/json")
    job = machine.run()
    assert (job.state, job.error_code) == (JobState.FAILED, "model_invalid")
    assert "the stored model ct-tissue 1" in str(job.error_message)
    assert machine.cached == []
    assert not list(machine.folder.rglob("evil"))


def test_a_model_larger_than_the_cache_is_not_fetched(machine: OtherMachine) -> None:
    job = machine.run(models_cache_bytes=1000)
    assert (job.state, job.error_code) == (JobState.FAILED, "model_invalid")
    assert "this worker fetches at most 1000 (MODELS_CACHE_BYTES)" in str(job.error_message)
    assert machine.fetches == 0


def test_after_a_kill_in_the_middle_of_a_pull_nothing_half_remains(
    machine: OtherMachine, proxy: CuttingProxy, servers: Servers
) -> None:
    held = proxy.hold("GET", machine.network_sha256)
    environment = {name.upper(): str(value) for name, value in machine.settings.items()}
    command = [sys.executable, "-m", "inference_service", "models", "pull", MODEL, "--cache"]
    with subprocess.Popen(command, env={**os.environ, **servers.environment, **environment}) as pulling:
        held.wait_until_arrived()
        pulling.send_signal(signal.SIGKILL)
    held.release()
    assert any(path.startswith(MODEL) or "manifest.json" in path for path in machine.cached)
    assert machine.run().state is JobState.SUCCEEDED
    assert machine.cached == FILES
    assert not list((machine.folder / "cache").glob(".*"))


def test_an_installed_version_runs_in_place_of_a_stored_one_and_that_is_logged_once(
    machine: OtherMachine, settings: Settings, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(model.folder, machine.folder / "none" / MODEL / "1")
    manifest = machine.folder / "none" / MODEL / "1" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "description": "Other tissue."}))
    installed = read_model(manifest.parent)
    job = machine.run()
    assert job.manifest_sha256 == installed.manifest_sha256 != model.manifest_sha256
    tested = SelfTest(settings.model_copy(update=machine.settings), machine.folder, worker="w")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            ((found,), complete) = tested.usable_models()
            assert (found.manifest_sha256, complete) == (installed.manifest_sha256, True)
    assert caplog.text.count("model ct-tissue 1 is also stored with another manifest: the installed one runs") == 1


def test_a_worker_reports_stored_models_and_is_paused_without_any(
    settings: Settings, stored: StoredModels, model: Model, elsewhere: dict[str, object], tmp_path: Path
) -> None:
    other = settings.model_copy(update=elsewhere)
    tested = SelfTest(other, tmp_path, worker="w")
    ((found,), complete) = tested.usable_models()
    assert (found.name, found.version, found.manifest_sha256, complete) == (MODEL, "1", model.manifest_sha256, True)
    assert tested.problem(with_engine=False) is None
    stored.remove(MODEL, "1")
    assert tested.problem(with_engine=False) == "no model is installed under MODELS_PATH or MODELS_BUCKET"
    silent = SelfTest(other.model_copy(update={"minio_endpoint": "127.0.0.1:1"}), tmp_path, worker="w")
    assert silent.usable_models() == ([], False)


def test_a_worker_reads_the_summary_of_a_stored_model_without_fetching_the_network(
    machine: OtherMachine, settings: Settings, model: Model
) -> None:
    other = settings.model_copy(update=machine.settings)
    models, _ = SelfTest(other, machine.folder, worker="w").usable_models()
    read = SummaryReader(other, machine.folder, nullcontext()).read
    assert read(models) == {model.manifest_sha256: ModelSummary.of(model.manifest)}
    assert machine.fetches == 0
    silent = other.model_copy(update={"minio_endpoint": "127.0.0.1:1"})
    assert SummaryReader(silent, machine.folder, nullcontext()).read(models) == {}


def test_a_stored_model_without_its_manifest_is_read_once(
    machine: OtherMachine, settings: Settings, model: Model, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    other = settings.model_copy(update=machine.settings)
    models, _ = SelfTest(other, machine.folder, worker="w").usable_models()
    storage.remove(BUCKET, f"{machine.settings['models_prefix']}{MODEL}/1/{model.manifest_sha256}")
    reader = SummaryReader(other, machine.folder, nullcontext())
    for _ in range(2):
        assert reader.read(models) == {}
    assert caplog.text.count("the stored model ct-tissue 1 lacks its manifest.json") == 1


def test_check_counts_stored_models(
    settings: Settings, stored: StoredModels, model: Model, elsewhere: dict[str, object], tmp_path: Path
) -> None:
    other = settings.model_copy(update=elsewhere)
    expected = (
        f"0 installed, each matches its manifest; 1 stored below {stored.address}, the cache {tmp_path / 'cache'}"
    )
    assert deployment._check_models(other) == f"{expected} is writable"
    stored.remove(MODEL, "1")
    with pytest.raises(ModelNotFound, match="no model is installed under MODELS_PATH, or stored below s3://models/"):
        deployment._check_models(other)


def test_migrate_creates_the_bucket(
    servers: Servers, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = f"models-{uuid4()}"
    monkeypatch.setenv("MODELS_BUCKET", bucket)
    result = command("migrate")
    assert (result.exit_code, result.stdout) == (
        0,
        f"schema up to date; buckets volumes and masks and {bucket} exist\n",
    )
    with closing(Storage(settings_for(servers.environment))) as storage:
        storage.require_bucket(bucket)
