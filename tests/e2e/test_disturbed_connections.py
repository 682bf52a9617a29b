"""Requests that reach the storage late or twice, and answers of Redis and Postgres that are lost or stop half-way."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from fault_proxies import StorageProxy, StreamProxy
from faults import Service, freeze, resume, start_service, wait_for
from sqlalchemy import func, select

from inference_service import Client
from inference_service.core.errors import DatabaseUnavailable
from inference_service.embedded.servers import start_servers
from inference_service.embedded.service_process import WorkerProcess
from inference_service.embedded.stack import settings_for
from inference_service.jobs.database import connect
from inference_service.jobs.schema import JobState, StoredAttemptRow
from inference_service.jobs.storage.audit import Audit, Finding, Problem
from inference_service.jobs.storage.object_storage import Storage
from inference_service.worker.deployment import prepare

pytestmark = pytest.mark.timeout(300)

MASK = "/mask.nii.gz"
ONE_ATTEMPT = ["queued", "running", "succeeded"]


@dataclass
class Proxies:
    """The service, and the proxies between it and its servers."""

    service: Service
    storage: StorageProxy
    postgres: StreamProxy
    redis: StreamProxy

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a worker or a client uses the proxies."""
        servers = self.service.servers
        return {
            "MINIO_ENDPOINT": self.storage.endpoint,
            "POSTGRES_PORT": str(self.postgres.port),
            "REDIS_URL": servers.environment["REDIS_URL"].replace(f":{servers.redis.port}/", f":{self.redis.port}/"),
        }

    def states(self, job_id: UUID) -> list[str]:
        """The states of a job in their order."""
        return [state for state, *_ in self.service.transitions(job_id)]

    def findings(self) -> list[Finding]:
        """What the audit finds."""
        settings = settings_for(self.service.servers.environment)
        with closing(connect(settings)) as database:
            return list(Audit(database, Storage(settings), bucket=settings.minio_output_bucket).findings())

    def remove_abandoned_objects(self) -> None:
        """Waits until a worker has removed the objects of all lost attempts."""
        self.service.hasten_removal()
        with closing(connect(settings_for(self.service.servers.environment))) as database:

            def removed() -> bool:
                with database.connection() as connection:
                    return connection.execute(select(func.count()).select_from(StoredAttemptRow)).scalar_one() == 0

            wait_for(removed)


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory, scan: Path) -> Iterator[Proxies]:
    folder = tmp_path_factory.mktemp("proxies")
    with ExitStack() as stack:
        servers = stack.enter_context(start_servers(folder / "servers", durable=False))
        prepare(settings_for(servers.environment))
        yield Proxies(
            stack.enter_context(start_service(servers, folder, scan)),
            stack.enter_context(StorageProxy(servers.s3.port).running()),
            stack.enter_context(StreamProxy(servers.postgres.port).running()),
            stack.enter_context(StreamProxy(servers.redis.port).running()),
        )


@pytest.fixture(scope="module")
def worker(proxies: Proxies) -> Iterator[WorkerProcess]:
    """A worker that reaches all servers through the proxies."""
    with proxies.service.worker(**proxies.environment) as running:
        yield running


@pytest.fixture
def service(proxies: Proxies) -> Iterator[Service]:
    yield proxies.service
    proxies.service.cancel_all()


def own_keys(service: Service, job_id: UUID) -> set[str]:
    result = service.finished(job_id).result
    assert result is not None
    return {key for name, key in result.items() if name != "bucket"}


def test_a_put_of_a_cancelled_attempt_arrives_late(service: Service, proxies: Proxies, worker: WorkerProcess) -> None:
    held = proxies.storage.hold("PUT", MASK)
    job_id = service.submit("quick")
    held.wait_until_arrived()
    service.client.cancel(job_id)
    assert service.finished(job_id).state is JobState.CANCELLED
    other = service.submit("quick")
    service.assert_succeeded(other)
    held.release()
    assert len(service.objects(job_id)) == 1
    assert proxies.findings() == []
    service.assert_ended(job_id, JobState.CANCELLED, "cancelled")
    service.assert_succeeded(other)


def test_a_put_of_a_frozen_attempt_arrives_late(service: Service, proxies: Proxies, worker: WorkerProcess) -> None:
    held = proxies.storage.hold("PUT", MASK)
    job_id = service.submit("quick")
    held.wait_until_arrived()
    freeze(worker)
    with service.worker():
        service.assert_succeeded(job_id)
        held.release()
        assert set(service.objects(job_id)) > own_keys(service, job_id)
        service.assert_succeeded(job_id)
        resume(worker)
        proxies.remove_abandoned_objects()
    assert set(service.objects(job_id)) == own_keys(service, job_id)
    service.assert_succeeded(job_id)
    assert proxies.findings() == []


def test_requests_to_the_storage_that_arrive_again_change_no_result(
    service: Service, proxies: Proxies, worker: WorkerProcess
) -> None:
    held = proxies.storage.hold("PUT", "/report.json")
    job_id = service.submit("quick")
    held.wait_until_arrived()
    service.client.cancel(job_id)
    assert service.finished(job_id).state is JobState.CANCELLED
    held.release()
    service.assert_ended(job_id, JobState.CANCELLED, "cancelled")
    service.client.retry(job_id)
    assert service.finished(job_id).state is JobState.SUCCEEDED
    own = own_keys(service, job_id)
    requests = [each for each in proxies.storage.requests if str(job_id) in each.path]
    assert {each.method for each in requests} == {"PUT", "DELETE"}
    # In the reverse order, so that the objects of the cancelled attempt come back after their removal.
    for request in reversed(requests):
        assert proxies.storage.replay(request) < 300
    service.results(job_id)
    objects = service.objects(job_id)
    assert own < set(objects)
    findings = proxies.findings()
    assert {(each.problem, each.key) for each in findings} == {(Problem.UNCLAIMED, key) for key in objects.keys() - own}
    for request in requests:
        proxies.storage.replay(request)
    assert proxies.findings() == []


# The row of a succeeded job names its objects.
@pytest.mark.parametrize("written", [b"INSERT INTO stored_attempts", MASK.encode()], ids=["record", "success"])
def test_an_answer_of_postgres_to_an_attempt_is_lost(
    service: Service, proxies: Proxies, worker: WorkerProcess, written: bytes
) -> None:
    fault = proxies.postgres.cut(written, b"COMMIT")
    job_id = service.submit("quick")
    service.assert_succeeded(job_id)
    assert fault.happened.is_set()
    assert proxies.states(job_id) == ONE_ATTEMPT
    assert set(service.objects(job_id)) == own_keys(service, job_id)
    assert proxies.findings() == []


def test_the_answer_to_a_claim_is_lost(service: Service, proxies: Proxies, worker: WorkerProcess) -> None:
    fault = proxies.postgres.cut(b"lease_pid", b"COMMIT")
    job_id = service.submit("quick")
    service.assert_succeeded(job_id)
    assert fault.happened.is_set()
    # No process knows the token of the first lease, so it expires.
    assert proxies.states(job_id) == ["queued", "running", *ONE_ATTEMPT]


def test_an_answer_of_postgres_stops_half_way(service: Service, proxies: Proxies, worker: WorkerProcess) -> None:
    fault = proxies.postgres.stall(b"lease_pid", b"COMMIT")
    job_id = service.submit("quick")
    fault.wait_until_happened()
    assert service.client.status(job_id) is not None
    fault.released.set()
    service.assert_succeeded(job_id)


def test_a_submission_whose_answer_is_lost_is_repeated(
    service: Service, proxies: Proxies, worker: WorkerProcess
) -> None:
    request = service.request("quick")
    job_id = uuid4()
    with Client(settings_for({**service.servers.environment, **proxies.environment})) as client:
        fault = proxies.postgres.cut(b"INSERT INTO jobs", b"COMMIT")
        with pytest.raises(DatabaseUnavailable):
            client.submit(request, job_id=job_id)
        assert fault.happened.is_set()
        assert service.client.status(job_id) is not None
        assert client.submit(request, job_id=job_id) == job_id
    service.assert_succeeded(job_id)
    assert proxies.states(job_id) == ONE_ATTEMPT


def test_the_answer_of_redis_to_a_submission_is_lost(service: Service, proxies: Proxies, worker: WorkerProcess) -> None:
    fault = proxies.redis.cut(b"LPUSH")
    with Client(settings_for({**service.servers.environment, **proxies.environment})) as client:
        job_id = client.submit(service.request("quick"))
    service.assert_succeeded(job_id)
    assert fault.happened.is_set()
    assert proxies.states(job_id) == ONE_ATTEMPT


@pytest.mark.parametrize("cut", [True, False], ids=["is lost", "stops half-way"])
def test_an_answer_of_redis_with_a_message(
    service: Service, proxies: Proxies, worker: WorkerProcess, cut: bool
) -> None:
    job_id = uuid4()
    disturb = proxies.redis.cut if cut else proxies.redis.stall
    fault = disturb(answer=str(job_id).encode())
    service.client.submit(service.request("quick"), job_id=job_id)
    fault.wait_until_happened()
    assert service.client.status(job_id) is not None
    fault.released.set()
    service.assert_succeeded(job_id)
    assert proxies.states(job_id) == ONE_ATTEMPT
