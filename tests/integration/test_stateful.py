"""Random sequences of the events of jobs against the real servers, compared with a simple model of each job.

Jobs run in the test's own process, one at a time. An interruption happens while an attempt waits for the storage: there
a test can cancel the job, let another attempt overtake, or end the worker.
"""

import base64
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from uuid import UUID, uuid4

import nibabel
import numpy as np
import pytest
from faults import install_model
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from jobs_in_process import EXECUTION, get
from numpy.typing import NDArray
from redis import Redis
from sqlalchemy import delete, func, select, update

from inference_service.client import Client
from inference_service.contract.task_message import (
    InputReference,
    OutputReference,
    Priority,
    RequestOptions,
    SegmentRequest,
)
from inference_service.core.errors import BadRequest, DatabaseUnavailable, InputCorrupt, StorageUnavailable
from inference_service.core.scratch_space import ScratchSpace
from inference_service.core.settings import Settings
from inference_service.formats.nifti import write_volume
from inference_service.imaging.geometry import Volume
from inference_service.jobs import attempts, job_store
from inference_service.jobs.database import Database, connect
from inference_service.jobs.lease import Lease
from inference_service.jobs.queues.celery_app import App, make_app
from inference_service.jobs.queues.lists import QUEUES
from inference_service.jobs.queues.redis_state import fetch_redis_state
from inference_service.jobs.retention import prune
from inference_service.jobs.schema import FINAL_STATES, JobRow, JobState, StoredAttemptRow, WorkerRow
from inference_service.jobs.state_machine import NEXT_STATES
from inference_service.jobs.storage.audit import Audit, Problem
from inference_service.jobs.storage.object_storage import Storage
from inference_service.worker.job_context import JobContext
from inference_service.worker.self_test import SelfTest
from inference_service.worker.sweeper import Sweeper
from inference_service.worker.task import TaskHandler

BUCKET = "stateful"
MAX_ATTEMPTS = 2
MAX_JOBS = 3
SCANS = 2
ENDED_LONG_AGO = timedelta(days=100)
RETENTION = timedelta(days=90)


class Point(StrEnum):
    """The requests to the storage before which an attempt can be interrupted."""

    INPUT = "input"
    MASK = "mask.nii.gz"
    REPORT = "report.json"
    PREVIEW = "preview.png"


class Interruption(StrEnum):
    """The events that can interrupt an attempt."""

    NONE = "none"
    CANCELLED = "the job is cancelled"
    OVERTAKEN = "the lease expires, and another attempt ends before this one goes on"
    REPLACED = "the lease expires, and another worker takes the job and runs on"
    SWEPT = "the lease expires, and a sweep queues the job before this attempt goes on"
    OUTAGE = "the storage is away"
    HELD = "the storage does not answer, and gets the request later"
    BROKEN = "a permanent error"
    DIED = "the worker dies"
    ANSWER_LOST = "the success is recorded, and the answer of Postgres is lost"


class WorkerDied(BaseException):
    """Ends an attempt without a record, as the death of its process does."""


@dataclass(frozen=True)
class Expected:
    """The expected state of a job.

    Attributes:
        request: The job's request.
        scan: Number of the scan.
        state: The state; None once the job is pruned.
        attempts: Number of attempts that count.
        cancel_requested: Whether the cancellation of a running attempt was requested.
        expired: Whether the lease of a dead worker's attempt has expired.
    """

    request: SegmentRequest
    scan: int
    state: JobState | None = JobState.QUEUED
    attempts: int = 0
    cancel_requested: bool = False
    expired: bool = False

    @property
    def finished(self) -> bool:
        """True if the state is final."""
        return self.state in FINAL_STATES

    def claimed(self) -> "Expected":
        """After a message of the job is handled; RUNNING where that starts an attempt."""
        if self.state is None:  # a message with an unknown id is a new job
            return Expected(self.request, self.scan).claimed()
        if self.state is not JobState.QUEUED and not self.expired:
            return self
        requeued = self.recovered()
        if requeued.state is not JobState.QUEUED:
            return requeued
        return replace(requeued, state=JobState.RUNNING, attempts=self.attempts + 1)

    def recovered(self) -> "Expected":
        """After a sweep."""
        if not self.expired:
            return self
        if self.cancel_requested:
            return replace(self, state=JobState.CANCELLED, expired=False)
        return self.failed_once()

    def failed_once(self) -> "Expected":
        """After an attempt that failed for a reason that may pass."""
        state = JobState.FAILED if self.attempts >= MAX_ATTEMPTS else JobState.QUEUED
        return replace(self, state=state, expired=False)

    def attempted(self, interruption: Interruption) -> "Expected":
        """After an attempt that was started and interrupted."""
        match interruption:
            case Interruption.CANCELLED:
                return replace(self, state=JobState.CANCELLED, cancel_requested=True)
            case Interruption.BROKEN:
                return replace(self, state=JobState.FAILED)
            case Interruption.DIED:
                return self
            case Interruption.OUTAGE | Interruption.HELD | Interruption.SWEPT:
                return self.failed_once()
            case Interruption.REPLACED:
                return replace(self, expired=True).claimed()
            case Interruption.OVERTAKEN:
                again = replace(self, expired=True).claimed()
                return again.attempted(Interruption.NONE) if again.state is JobState.RUNNING else again
            case Interruption.NONE | Interruption.ANSWER_LOST:
                return replace(self, state=JobState.SUCCEEDED)


@dataclass
class World:
    """The parts of the service that the test uses, and the scans."""

    settings: Settings
    database: Database
    storage: Storage
    client: Client
    redis: Redis
    app: App
    handler: TaskHandler
    sweeper: Sweeper
    folder: Path
    scans: list[tuple[InputReference, NDArray[np.bool_]]] = field(default_factory=list)

    def reset(self) -> None:
        """Removes all jobs, messages and results."""
        self.redis.delete(*QUEUES)
        with self.database.begin() as connection:
            connection.execute(delete(JobRow))
            connection.execute(delete(StoredAttemptRow))
            connection.execute(delete(WorkerRow))
        for key in self.storage.list_keys(BUCKET):
            self.storage.remove(BUCKET, key)

    def take_message(self) -> dict[str, Any] | None:
        """Takes a message as a worker does, the urgent ones first; returns its arguments."""
        for queue in QUEUES:
            item = self.redis.rpop(queue)
            if isinstance(item, bytes):
                _, arguments, _ = json.loads(base64.b64decode(json.loads(item)["body"]))
                return dict(arguments)
        return None

    def expire(self, job_id: UUID) -> None:
        """Lets the lease of a running attempt expire now."""
        past = func.now() - timedelta(seconds=1)
        with self.database.begin() as connection:
            connection.execute(update(JobRow).where(JobRow.id == job_id).values(lease_expires_at=past))

    def sweep(self) -> None:
        """Recovers jobs and sends missing messages."""
        self.sweeper.recover_jobs()
        self.sweeper.send_missing_messages(fetch_redis_state(self.app))

    def remove_abandoned_objects(self) -> None:
        """Removes the objects of lost attempts and pruned jobs as if their time had come."""
        with self.database.begin() as connection:
            connection.execute(update(StoredAttemptRow).values(remove_after=func.now()))
        self.sweeper.remove_abandoned_objects()

    def recorded_tokens(self) -> set[str]:
        """The tokens of attempts whose objects will be removed unless they succeed."""
        with self.database.connection() as connection:
            return {token.hex for token in connection.execute(select(StoredAttemptRow.lease_token)).scalars()}


class Jobs(RuleBasedStateMachine):
    """Jobs of one service, and the expected state of each."""

    world: ClassVar[World]
    jobs: Bundle[UUID] = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.world.reset()
        self.expected: dict[UUID, Expected] = {}
        self.verified: dict[UUID, job_store.Job] = {}
        self.held: list[tuple[str, Callable[[], None]]] = []
        self.removed: list[tuple[str, str]] = []
        self.unclaimed: set[str] = set()
        self.touched = False
        self.lease: Lease | None = None
        self.renewing = threading.RLock()
        self.patch = pytest.MonkeyPatch()
        self._observe()

    def _observe(self) -> None:
        """Remembers the lease of the last attempt, and each removed object."""
        enter, remove, renew = Lease.__enter__, Storage.remove, attempts.renew

        def entered(lease: Lease) -> Lease:
            self.lease = lease
            return enter(lease)

        def removed(storage: Storage, bucket: str, key: str) -> None:
            self.removed.append((bucket, key))
            remove(storage, bucket, key)

        def renewed(*arguments: Any, **options: Any) -> attempts.Renewal:
            with self.renewing:
                return renew(*arguments, **options)

        self.patch.setattr(attempts, "renew", renewed)
        self.patch.setattr(Lease, "__enter__", entered)
        self.patch.setattr(Storage, "remove", removed)

    def teardown(self) -> None:
        self.patch.undo()
        self._assert_settles()

    @precondition(lambda self: len(self.expected) < MAX_JOBS)
    @rule(
        target=jobs,
        scan=st.integers(0, SCANS - 1),
        reuse=st.booleans(),
        prefix=st.sampled_from([None, "study", "study/series"]),
        priority=st.sampled_from(Priority),
    )
    def submit(self, scan: int, reuse: bool, prefix: str | None, priority: Priority) -> UUID:
        request = SegmentRequest(
            input=self.world.scans[scan][0],
            model="quick",
            priority=priority,
            options=RequestOptions(reuse=reuse, modality_check=False),
            output=OutputReference(prefix=prefix),
        )
        job_id = self.world.client.submit(request)
        self.expected[job_id] = Expected(request, scan)
        return job_id

    @rule(job_id=jobs)
    def submit_again(self, job_id: UUID) -> None:
        known = self.expected[job_id]
        assert self.world.client.submit(known.request, job_id=job_id) == job_id
        if known.state is None:
            self.expected[job_id] = Expected(known.request, known.scan)

    @precondition(lambda self: any(self.world.redis.exists(queue) for queue in QUEUES))
    @rule(point=st.sampled_from(Point), interruption=st.sampled_from(Interruption))
    def deliver_next(self, point: Point, interruption: Interruption) -> None:
        message = self.world.take_message()
        if message is not None:
            self._deliver(message, point, interruption)

    @rule(job_id=jobs, point=st.sampled_from(Point), interruption=st.sampled_from(Interruption))
    def deliver_again(self, job_id: UUID, point: Point, interruption: Interruption) -> None:
        request = self.expected[job_id].request.model_dump(mode="json")
        self._deliver({"job_id": str(job_id), "request": request}, point, interruption)

    @rule(job_id=jobs)
    def cancel(self, job_id: UUID) -> None:
        self.world.client.cancel(job_id)
        known = self.expected[job_id]
        if known.state is JobState.QUEUED:
            self.expected[job_id] = replace(known, state=JobState.CANCELLED)
        elif known.state is JobState.RUNNING:
            self.expected[job_id] = replace(known, cancel_requested=True)

    @rule(job_id=jobs)
    def retry(self, job_id: UUID) -> None:
        known = self.expected[job_id]
        if known.state is None:
            assert self.world.client.retry(job_id) is None
        elif known.state in (JobState.FAILED, JobState.CANCELLED):
            self.world.client.retry(job_id)
            self.expected[job_id] = Expected(known.request, known.scan)
        else:
            with pytest.raises(BadRequest):
                self.world.client.retry(job_id)

    @rule(job_id=jobs)
    def expire_lease_of_dead_worker(self, job_id: UUID) -> None:
        known = self.expected[job_id]
        if known.state is JobState.RUNNING:
            self.world.expire(job_id)
            self.expected[job_id] = replace(known, expired=True)

    @rule()
    def sweep(self) -> None:
        self.world.sweep()
        self.expected = {job_id: known.recovered() for job_id, known in self.expected.items()}

    @rule()
    def lose_messages(self) -> None:
        self.world.redis.delete(*QUEUES)

    @rule()
    def remove_abandoned_objects(self) -> None:
        self.touched = True
        self.world.remove_abandoned_objects()

    @precondition(lambda self: self.held)
    @rule()
    def deliver_held_requests(self) -> None:
        self.touched = True
        for key, request in self.held:
            token = key.split("/")[-2].rpartition("-")[2]
            if token not in self.world.recorded_tokens():
                self.unclaimed.add(key)
            request()
        self.held.clear()

    @precondition(lambda self: self.removed)
    @rule()
    def replay_removals(self) -> None:
        self.touched = True
        for bucket, key in list(self.removed):
            self.world.storage.remove(bucket, key)

    @rule(job_id=jobs, results=st.booleans())
    def prune(self, job_id: UUID, results: bool) -> None:
        self.touched = True
        job = job_store.get(self.world.database, job_id)
        with self.world.database.begin() as connection:
            statement = update(JobRow).where(JobRow.id == job_id)
            connection.execute(statement.values(created_at=JobRow.created_at - ENDED_LONG_AGO))
            connection.execute(statement.values(finished_at=JobRow.finished_at - ENDED_LONG_AGO))
        known = self.expected[job_id]
        pruned = prune(self.world.database, older_than=RETENTION, results=results, limit=100)
        assert pruned == known.finished
        if known.finished:
            self.expected[job_id] = replace(known, state=None)
            self.verified.pop(job_id, None)
            if not results and job is not None:
                self.unclaimed |= keys_of(job)

    def _deliver(self, message: dict[str, Any], point: Point, interruption: Interruption) -> None:
        """Handles a message, and interrupts the attempt that it starts, if it does."""
        job_id = UUID(message["job_id"])
        self.touched = True
        handle = partial(self.world.handler.handle, message, task_id=str(job_id))
        with self._interrupted(job_id, handle, point, interruption), suppress(WorkerDied):
            handle()
        known = self.expected[job_id]
        claimed = known.claimed()
        starts = claimed.attempts > known.attempts or (known.state is None and claimed.state is JobState.RUNNING)
        self.expected[job_id] = claimed.attempted(interruption) if starts else claimed

    @contextmanager
    def _interrupted(
        self, job_id: UUID, handle: Callable[[], None], point: Point, interruption: Interruption
    ) -> Iterator[None]:
        """Interrupts the first attempt of the block once."""
        fetch, store, succeed = Storage.fetch, Storage.store, attempts.succeed
        pending = [interruption]

        def interrupt(reached: str, request: Callable[[], None] | None) -> None:
            if reached == point and pending and pending != [Interruption.ANSWER_LOST]:
                self._interrupt(job_id, handle, pending.pop(), request)

        def fetch_input(storage: Storage, bucket: str, key: str, *rest: Any, **options: Any) -> None:
            if bucket != BUCKET:
                interrupt(Point.INPUT, None)
            fetch(storage, bucket, key, *rest, **options)

        def store_result(storage: Storage, bucket: str, key: str, source: Path, **options: Any) -> None:
            kept = self.world.folder / "requests" / str(uuid4())
            shutil.copy(source, kept)
            request = partial(store, storage, bucket, key, kept, **options)
            interrupt(key.rpartition("/")[2], lambda: self.held.append((key, request)))
            store(storage, bucket, key, source, **options)

        def lose_answer(*arguments: Any) -> bool:
            succeeded = succeed(*arguments)
            if pending == [Interruption.ANSWER_LOST]:
                pending.clear()
                raise DatabaseUnavailable("the answer was lost")
            return succeeded

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Storage, "fetch", fetch_input)
            patch.setattr(Storage, "store", store_result)
            patch.setattr(attempts, "succeed", lose_answer)
            yield

    def _interrupt(
        self, job_id: UUID, handle: Callable[[], None], interruption: Interruption, hold: Callable[[], None] | None
    ) -> None:
        match interruption:
            case Interruption.CANCELLED:
                self.world.client.cancel(job_id)
                self._until_stopped()
            case Interruption.OVERTAKEN:
                with self._lease_expired(job_id):
                    handle()
            case Interruption.REPLACED:
                with self._lease_expired(job_id):
                    attempts.claim(self.world.database, job_id, worker="another", lease_s=60, max_attempts=MAX_ATTEMPTS)
            case Interruption.SWEPT:
                with self._lease_expired(job_id):
                    self.world.sweeper.recover_jobs()
            case Interruption.OUTAGE | Interruption.HELD:
                if interruption is Interruption.HELD and hold is not None:
                    hold()
                raise StorageUnavailable("the storage does not answer")
            case Interruption.BROKEN:
                raise InputCorrupt("broken")
            case Interruption.DIED:
                raise WorkerDied

    @contextmanager
    def _lease_expired(self, job_id: UUID) -> Iterator[None]:
        """Lets the lease of the running attempt expire. Until the block ends, no lease is renewed."""
        with self.renewing, pytest.MonkeyPatch.context() as patch:
            patch.setattr(attempts, "renew", lambda *_, **__: attempts.Renewal(held=True, cancel_requested=False))
            self.world.expire(job_id)
            yield

    def _until_stopped(self) -> None:
        """Reports progress until the lease's thread has noticed the cancellation, and this raises."""
        assert self.lease is not None
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            self.lease.progress("fetch", 0.0)
            time.sleep(0.002)
        raise AssertionError("the attempt was not stopped")

    @invariant()
    def states_are_expected(self) -> None:
        for job_id, known in self.expected.items():
            job = self.world.client.status(job_id)
            assert (None if job is None else job.state) == known.state
            changes = self.world.client.transitions(job_id)
            states = [JobState(change.to_state) for change in changes]
            assert (states[-1] if states else None) == known.state
            assert [change.from_state for change in changes] == [None, *states[:-1]][: len(states)]
            assert all(later in NEXT_STATES[earlier] for earlier, later in pairwise(states))
            numbers = [change.attempt for change in changes if change.to_state == JobState.RUNNING]
            assert numbers == list(range(1, len(numbers) + 1))
            retries = sum(change.detail == "retried" for change in changes)
            assert sum(state in FINAL_STATES for state in states) == retries + known.finished

    @invariant()
    def results_are_the_jobs_own(self) -> None:
        for job_id, known in self.expected.items():
            if known.state is not JobState.SUCCEEDED:
                continue
            job = get(self.world.database, job_id)
            if job_id not in self.verified:
                self._assert_own_mask(job, known)
                self.verified[job_id] = job
            before = self.verified[job_id]
            assert (job.result, job.checksums) == (before.result, before.checksums)

    def _assert_own_mask(self, job: job_store.Job, known: Expected) -> None:
        with TemporaryDirectory(dir=self.world.folder) as folder:
            mask, *_ = self.world.client.result(job, Path(folder))
            labels = np.asanyarray(nibabel.Nifti1Image.from_filename(mask).dataobj)
        assert np.array_equal(labels, self.world.scans[known.scan][1])

    @invariant()
    def audit_finds_no_damage(self) -> None:
        if not self.touched:
            return
        self.touched = False
        findings = list(Audit(self.world.database, self.world.storage, bucket=BUCKET).findings())
        assert {finding.key for finding in findings if finding.problem is Problem.UNCLAIMED} <= self.unclaimed
        assert [finding for finding in findings if finding.problem is not Problem.UNCLAIMED] == []

    def _assert_settles(self) -> None:
        """Every job ends once workers and sweeps run, and no object of lost attempts is left."""
        for _ in range(MAX_ATTEMPTS + 1):
            for job_id in self.expected:
                self.expire_lease_of_dead_worker(job_id)
            self.sweep()
            while (message := self.world.take_message()) is not None:
                self._deliver(message, Point.INPUT, Interruption.NONE)
        self.states_are_expected()
        assert all(known.state is None or known.finished for known in self.expected.values())
        self.deliver_held_requests()
        # Each removes the objects of a few attempts.
        for _ in range(10):
            self.remove_abandoned_objects()
            if not self.world.recorded_tokens():
                break
        assert not self.world.recorded_tokens()
        self.results_are_the_jobs_own()
        named = {key for job in self.verified.values() for key in keys_of(job)}
        assert named <= set(self.world.storage.list_keys(BUCKET)) <= named | self.unclaimed


def keys_of(job: job_store.Job) -> set[str]:
    return {key for name, key in (job.result or {}).items() if name != "bucket"}


@pytest.fixture
def world(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    # Drawing the preview would take most of a job's time.
    monkeypatch.setattr("inference_service.segmentation.pipeline.draw_preview", lambda *_, **__: b"preview")
    # The lease's thread notices at once what happens to its job, and never kills this process.
    monkeypatch.setattr("inference_service.jobs.lease._RENEWAL_INTERVAL_S", 0.01)
    monkeypatch.setattr("inference_service.jobs.lease._STOP_GRACE_S", 60.0)
    install_model(tmp_path / "models", "quick", layers=0)
    (tmp_path / "requests").mkdir()
    own = settings.model_copy(
        update={
            "minio_output_bucket": BUCKET,
            "models_path": tmp_path / "models",
            "max_attempts": MAX_ATTEMPTS,
            "retry_delay_s": 0.0,
            "outage_patience_s": 1.0,
        }
    )
    with ExitStack() as stack:
        scratch_space = ScratchSpace(tmp_path)
        stack.callback(scratch_space.close)
        client = stack.enter_context(Client(own))
        redis = stack.enter_context(Redis.from_url(own.broker_url))
        app = make_app(own)
        stack.callback(app.close)
        self_test = SelfTest(own, tmp_path, worker="w")
        context = JobContext(own, EXECUTION, scratch_space, "w", self_test)
        stack.callback(context.database.close)
        database = connect(own)
        stack.callback(database.close)
        storage = Storage(own)
        storage.ensure_bucket(BUCKET)
        # A sweep finds missing messages and expired leases at once.
        sweeper = Sweeper(own.model_copy(update={"lease_s": 0.0}), app, database, storage)
        world = World(own, database, storage, client, redis, app, TaskHandler(context), sweeper, tmp_path)
        for number in range(SCANS):
            voxels = np.random.default_rng(number).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
            path = tmp_path / f"scan-{number}.nii"
            write_volume(path, Volume(np.asfortranarray(voxels), np.diag([2.0, 2.0, 2.0, 1.0])))
            world.scans.append((client.upload(path), np.greater_equal(voxels, 0)))
        yield world
        world.reset()


@pytest.mark.timeout(600)  # a failure is reduced to its shortest sequence
@pytest.mark.parametrize("examples", [14, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_jobs_do_what_the_model_says(world: World, examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Jobs, "world", world, raising=False)
    run_state_machine_as_test(
        Jobs,
        settings=hypothesis_settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
