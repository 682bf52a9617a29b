"""The client against real servers, without a worker."""

import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from uuid import uuid4

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import ValidationError
from redis import Redis

from inference_service import Client, InputReference, JobState, Priority, SegmentRequest
from inference_service.contract.task_message import parse_request
from inference_service.core.errors import BadRequest, QueueUnavailable
from inference_service.core.settings import Settings
from inference_service.embedded.servers import Servers
from inference_service.jobs.queues.celery_app import make_app
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE, PRIORITY_QUEUE
from inference_service.jobs.queues.redis_state import fetch_redis_state
from inference_service.jobs.storage.object_storage import Storage

REQUEST = SegmentRequest(input=InputReference(key="ct/1.nii.gz"), model="ct-tissue")


@pytest.fixture
def client(settings: Settings) -> Client:
    return Client(settings)


@pytest.mark.parametrize(("priority", "queue"), [(Priority.URGENT, PRIORITY_QUEUE), (Priority.ROUTINE, OVERFLOW_QUEUE)])
def test_a_job_is_recorded_and_sent_to_its_queue(
    client: Client, settings: Settings, priority: Priority, queue: str
) -> None:
    request = REQUEST.model_copy(update={"priority": priority})
    with Redis.from_url(settings.broker_url) as redis:
        redis.delete(queue)
        job_id = client.submit(request)
        (message,) = redis.lrange(queue, 0, -1)
        redis.delete(queue)
    headers = json.loads(message)["headers"]
    assert (headers["id"], headers["task"]) == (str(job_id), "inference_service.segment")
    assert json.loads(message)["content-type"] == "application/json"
    job = client.status(job_id)
    assert job is not None
    assert (job.state, parse_request(job.request), job.queue) == (JobState.QUEUED, request, queue)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"redis_password": "wrong"}, "Redis refuses the password, or asks for one"),
        ({"redis_url": "redis://127.0.0.1:1/0"}, "Redis does not answer"),
    ],
    ids=["wrong-password", "no-server"],
)
def test_the_error_says_why_redis_cannot_be_used(settings: Settings, changed: dict[str, object], reason: str) -> None:
    with pytest.raises(QueueUnavailable) as caught:
        fetch_redis_state(make_app(Settings.model_validate({**settings.model_dump(), **changed})))
    assert caught.value.message == reason


def test_a_job_records_who_submitted_it(client: Client, settings: Settings) -> None:
    named = Client(settings.model_copy(update={"submitted_by": "pacs-gateway"}))
    names = []
    for job_id in (
        client.submit(REQUEST),
        named.submit(REQUEST),
        named.submit(REQUEST, submitted_by="research/portal@2"),
    ):
        job = client.status(job_id)
        assert job is not None
        names.append(job.submitted_by)
    assert names == [None, "pacs-gateway", "research/portal@2"]


@pytest.mark.parametrize("name", ["Doe^Jane", "x" * 101, "a b", "line\n", "é"])
def test_the_name_of_a_submitter_is_bounded(client: Client, name: str) -> None:
    with pytest.raises(BadRequest, match="at most 100"):
        client.submit(REQUEST, submitted_by=name)
    with pytest.raises(ValidationError):
        Settings(submitted_by=name)


def test_submitting_the_same_job_twice_gives_one_job(client: Client) -> None:
    job_id = uuid4()
    assert client.submit(REQUEST, job_id=job_id) == client.submit(REQUEST, job_id=job_id) == job_id
    assert len(client.transitions(job_id)) == 1


def test_a_job_submitted_without_redis_waits_to_be_sent(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with Client(Settings.model_validate({**settings.model_dump(), "redis_url": "redis://127.0.0.1:1/0"})) as client:
        job = client.status(client.submit(REQUEST))
    assert job is not None
    assert (job.state, job.queue) == (JobState.QUEUED, None)
    assert f"job {job.id} waits in Postgres" in caplog.text


def test_an_upload_hides_the_name_of_the_file(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "Doe^Jane_19700101.nii.gz"
    path.write_bytes(b"x")
    assert "Doe" not in client.upload(path).key


def test_a_wait_times_out_and_reports_the_job(client: Client) -> None:
    job_id = client.submit(REQUEST)
    seen: list[JobState] = []
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        client.wait(job_id, timeout_s=0.1, progress=lambda job: seen.append(job.state))
    assert time.monotonic() - started < 5
    assert set(seen) == {JobState.QUEUED}
    client.cancel(job_id)
    assert client.wait(job_id, timeout_s=5).state is JobState.CANCELLED


def test_an_unknown_job_is_none_or_a_key_error(client: Client) -> None:
    assert client.status(uuid4()) is None
    assert client.cancel(uuid4()) is None
    with pytest.raises(KeyError):
        client.wait(uuid4())


def test_a_job_without_a_result_has_nothing_to_download(client: Client, tmp_path: Path) -> None:
    job = client.status(client.submit(REQUEST))
    assert job is not None
    with pytest.raises(BadRequest):
        client.result(job, tmp_path)


def test_the_newest_jobs_are_listed(client: Client) -> None:
    job_id = client.submit(REQUEST)
    assert client.list(limit=1)[0].id == job_id
    assert client.list(state=JobState.QUEUED, limit=1)[0].id == job_id


# Submits one job and prints the imported packages.
SUBMITTING = """
import sys
from inference_service import Client, InputReference, SegmentRequest

with Client() as client:
    job = client.status(client.submit(SegmentRequest(input=InputReference(key="x"), model="ct-tissue")))
    client.cancel(job.id)
print(" ".join({name.partition(".")[0] for name in sys.modules}))
"""


def installed_with(distribution: str) -> set[str]:
    """A distribution and all that it requires without any extra, by normalised name."""
    found: set[str] = set()
    waiting = {Requirement(distribution)}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(requirement.name) or []:
            needed = Requirement(text)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.add(needed)
    return found


def test_a_client_imports_only_the_base_installation(servers: Servers) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SUBMITTING],
        env={**os.environ, **servers.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    homes = metadata.packages_distributions()
    taken = {
        canonicalize_name(home)
        for module in done.stdout.split()
        for home in homes.get(module, [])
        if len(homes[module]) == 1
    }
    assert {"celery", "minio", "sqlalchemy"} <= taken
    # The first two are imported by every process of this environment, through .pth files; Celery, kombu, urllib3,
    # SQLAlchemy, and redis with OpenTelemetry import the others where they are installed.
    everywhere = {"editables", "setuptools"}
    optional = {"backports-zstd", "cryptography", "greenlet", "psutil", "pyyaml"}
    assert taken - installed_with("inference-service") <= everywhere | optional


def test_an_upload_of_a_header_includes_its_voxels(client: Client, storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "scan.hdr").write_bytes(b"header")
    (tmp_path / "scan.img").write_bytes(b"voxels")
    uploaded = client.upload(tmp_path / "scan.hdr")
    storage.fetch_folder(str(uploaded.bucket), uploaded.key, tmp_path / "fetched", max_bytes=100)
    assert [path.read_bytes() for path in sorted((tmp_path / "fetched").iterdir())] == [b"header", b"voxels"]


def test_each_channel_is_uploaded_under_a_key_of_its_own(client: Client, storage: Storage, tmp_path: Path) -> None:
    scans = {"T1": tmp_path / "Doe^Jane_1970.nii.gz", "FLAIR": tmp_path / "flair.nii.gz"}
    for name, path in scans.items():
        path.write_bytes(name.encode())
    reference = client.upload_channels(scans)
    assert list(reference.channels) == ["T1", "FLAIR"]
    for name, channel in reference.channels.items():
        assert channel.bucket == "volumes"
        assert "Doe" not in channel.key
        storage.fetch("volumes", channel.key, tmp_path / "fetched", max_bytes=10)
        assert (tmp_path / "fetched").read_bytes() == name.encode()


def test_an_upload_of_a_folder_keeps_the_endings_of_channels(client: Client, storage: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "Doe^Jane"
    folder.mkdir()
    for name in ("Doe_0001.nii.gz", "Doe_0000.nii.gz", "Doe_1970.nii.gz"):
        (folder / name).write_bytes(name.encode())
    key = client.upload(folder).key
    storage.fetch_folder("volumes", key, tmp_path / "fetched", max_bytes=1000)
    fetched = {path.name: path.read_text() for path in (tmp_path / "fetched").iterdir()}
    assert fetched == {
        "000000_0000": "Doe_0000.nii.gz", "000001_0001": "Doe_0001.nii.gz", "000002": "Doe_1970.nii.gz",
    }  # fmt: skip
