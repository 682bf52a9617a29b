"""Ways through the model of the protocol, with the real functions of `jobs` against a real Postgres.

After each step, the row is as in the model, and a function that the model does not allow there changes nothing.
"""

import os
import random
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from protocol_model.explorer import Rule, Step
from protocol_model.protocol import Change, Protocol, Scenario, Setting, holds, may_claim
from protocol_model.scenarios import SCENARIOS, make_model
from protocol_model.state import Row, World
from protocol_model.sweep_rules import is_unsent
from sqlalchemy import delete, func, select, update

from inference_service.contract.task_message import InputReference, SegmentRequest
from inference_service.core.errors import InputCorrupt, JobCancelled, TimeLimit
from inference_service.core.files import Checksum
from inference_service.jobs import attempts, job_store, recovery, resubmission, retention
from inference_service.jobs.database import Database
from inference_service.jobs.job_store import UnsentJob
from inference_service.jobs.queues.lists import OVERFLOW_QUEUE, PRIORITY_QUEUE
from inference_service.jobs.queues.redis_state import RedisState
from inference_service.jobs.schema import JobRow, StoredAttemptRow
from inference_service.jobs.storage import stored_attempts
from inference_service.jobs.storage.stored_attempts import StoredAttempt
from inference_service.jobs.workers import worker_registry
from inference_service.jobs.workers.worker_registry import Role, WorkerIdentity

REQUEST = SegmentRequest(input=InputReference(key="ct/1.nii.gz"), model="ct-tissue")
# Random steps after each way.
MORE_STEPS = 3
LEASE_S = 600.0
WORKERS = ("w0", "w1")
# There is no standby of Postgres here.
SCENARIOS_OF_ROWS = [
    scenario for scenario in SCENARIOS if len(scenario.jobs) == 1 and not scenario.is_large and not scenario.has_replica
]
Way = tuple[tuple[str, Step[World]], ...]


@pytest.fixture(autouse=True)
def no_other_jobs(database: Database) -> None:
    """A sweep finds only the job of its own walk."""
    with database.begin() as connection:
        connection.execute(delete(JobRow))
        connection.execute(delete(StoredAttemptRow))


@pytest.mark.parametrize("scenario", SCENARIOS_OF_ROWS, ids=lambda scenario: scenario.name)
def test_the_code_follows_the_model(database: Database, scenario: Scenario) -> None:
    model = make_model(scenario, Protocol())
    randomly = random.Random(scenario.name)
    checked: set[World] = set()
    for way in ways_to_each_kind_of_step(model.rules, model.initial):
        job = RealJob(database, scenario, checked)
        world = model.initial
        for rule, step in way:
            job.follow(rule, world, step)
            world = step.state
        for _ in range(MORE_STEPS):
            possible = [(rule.name, step) for rule in model.rules for step in rule.steps(world)]
            if possible:
                rule, step = randomly.choice(possible)
                job.follow(rule, world, step)
                world = step.state
        job.delete()


def ways_to_each_kind_of_step(rules: Sequence[Rule[World]], initial: World) -> list[Way]:
    """The shortest ways to every rule with every change of states that it makes; ways within another are left out."""
    ways: dict[World, Way] = {initial: ()}
    kinds: dict[tuple[str, tuple[Hashable, ...]], Way] = {}
    waiting = deque([initial])
    while waiting:
        world = waiting.popleft()
        for rule in rules:
            for step in rule.steps(world):
                way = (*ways[world], (rule.name, step))
                kinds.setdefault((rule.name, step.details), way)
                if step.state not in ways:
                    ways[step.state] = way
                    waiting.append(step.state)
    prefixes = {way[:length] for way in kinds.values() for length in range(len(way))}
    return [way for way in kinds.values() if way not in prefixes]


def _comparable(row: Row) -> Row:
    """What a row of the model has in Postgres, where a pruned job has none."""
    return Row() if row.state == "pruned" else row._replace(result=0)


class RealJob:
    """The job of a walk in Postgres, moved by the functions that the rules of the model stand for.

    Args:
        database: The jobs' database.
        scenario: The scenario of the model.
        checked: The states that earlier jobs have passed; this one adds its own.
    """

    def __init__(self, database: Database, scenario: Scenario, checked: set[World]) -> None:
        self._checked = checked
        self._database = database
        self._scenario = scenario
        self._id = uuid4()
        for name in WORKERS[: scenario.workers]:
            worker_registry.record_heartbeat(database, WorkerIdentity(name, Role.CPU, 1, []), queues=[OVERFLOW_QUEUE])
        self._claims: list[attempts.Claim] = []
        self._transitions = 0
        self._way: list[str] = []

    def follow(self, rule: str, before: World, step: Step[World]) -> None:
        """Does what a step stands for, and checks what it did. Steps that change no row have no method here."""
        self._way.append(step.label)
        action: Callable[[World, World], None] | None = getattr(self, f"_{rule}", None)
        if action is not None:
            action(before, step.state)
        assert self.row() == _comparable(step.state.database.rows[0]), self._way
        self._check_transitions(step)
        if step.state not in self._checked:
            self._check_impossible(step.state)
            self._checked.add(step.state)

    def delete(self) -> None:
        """Removes the row, so that it is not in the way of the next walk."""
        with self._database.begin() as connection:
            connection.execute(delete(JobRow).where(JobRow.id == self._id))
            connection.execute(delete(StoredAttemptRow).where(StoredAttemptRow.job_id == self._id))

    def row(self) -> Row:
        """The row in the terms of the model."""
        columns = (
            *(JobRow.state, JobRow.attempt, JobRow.returned_attempts, JobRow.cancel_requested),
            *(JobRow.lease_token, JobRow.dispatched_at, JobRow.avoided_workers),
            (JobRow.lease_expires_at < func.now()).label("expired"),
            (JobRow.not_before > func.now()).label("early"),
        )
        with self._database.connection() as connection:
            found = connection.execute(select(*columns).where(JobRow.id == self._id)).one_or_none()
        if found is None:
            return Row()
        row = Row(found.state, found.attempt, found.returned_attempts, cancel_requested=found.cancel_requested)
        if self._scenario.workers > 1:
            row = row._replace(avoided=frozenset(map(WORKERS.index, found.avoided_workers or ())))
        if row.state == "running":
            tokens = [claim.token for claim in self._claims]
            return row._replace(holder=tokens.index(found.lease_token) + 1, expired=found.expired)
        if row.state == "queued":
            return row._replace(due=not found.early, sent=found.dispatched_at is not None)
        return row

    def _check_transitions(self, step: Step[World]) -> None:
        """Checks that the step wrote the transitions of the model."""
        if step.state.database.rows[0].state == "pruned":
            self._transitions = 0
        recorded = job_store.transitions(self._database, self._id)[self._transitions :]
        self._transitions += len(recorded)
        expected = [(change.before, change.after) for change in step.details if isinstance(change, Change)]
        assert [(str(each.from_state or "absent"), each.to_state) for each in recorded] == expected, self._way

    def _check_impossible(self, world: World) -> None:
        """Checks that the functions do nothing where the model has no such step, and which messages a sweep sends."""
        row = world.database.rows[0]
        redis = RedisState("the run", {OVERFLOW_QUEUE: world.waiting[0], PRIORITY_QUEUE: 1})
        suspects = recovery.find_suspects(self._database, redis, grace_s=-1)
        lost = [] if world.waiting[0] else suspects
        unsent = [job.id for job in recovery.find_unsent(self._database, grace_s=-1, lost=lost)]
        assert unsent == [self._id] * is_unsent(Setting(Protocol(), self._scenario), world, 0), self._way
        self._end_delay_of_removals()
        taken = iter(lambda: stored_attempts.take_abandoned(self._database), None)
        abandoned = {each.lease_token for each in taken}
        assert abandoned == {
            self._claims[number - 1].token for _, number in world.database.stored_attempts if not holds(row, number)
        }, self._way
        for number, claim in enumerate(self._claims, 1):
            if not holds(row, number):
                self._check_fenced(claim)
        if not row.expired:
            assert recovery.requeue_expired(self._database, max_attempts=self._scenario.max_attempts) == []
        if not row.expired and not (row.state == "queued" and row.due):
            assert self._claim() is None, self._way
        assert self.row() == _comparable(row), self._way

    def _check_fenced(self, claim: attempts.Claim) -> None:
        assert not attempts.renew(self._database, claim, lease_s=LEASE_S, stage=None, progress=0.0).held, self._way
        assert not stored_attempts.record(self._database, self._stored(claim)), self._way
        assert not attempts.succeed(self._database, claim, SUCCESS), self._way
        assert not attempts.fail(self._database, claim, InputCorrupt("x")), self._way
        assert not attempts.schedule_retry(self._database, claim, delay_s=1, detail="x"), self._way

    def _claim(self, worker: int = 0) -> attempts.Claim | None:
        limit = self._scenario.max_attempts
        return attempts.claim(self._database, self._id, worker=WORKERS[worker], lease_s=LEASE_S, max_attempts=limit)

    def _write(self, **values: object) -> None:
        with self._database.begin() as connection:
            connection.execute(update(JobRow).where(JobRow.id == self._id).values(values))

    def _moved(self, before: World, after: World) -> attempts.Claim:
        """The claim of the attempt that a step moves."""
        changed = zip(before.attempts[0], after.attempts[0], strict=True)
        return next(claim for claim, (old, new) in zip(self._claims, changed, strict=True) if old != new)

    # The rules of the model that change rows.

    def _client_submits(self, before: World, after: World) -> None:
        assert job_store.create(self._database, self._id, REQUEST)
        if after.database.rows[0].sent:
            self._note_sent(attempt=0)

    def _worker_records_job(self, before: World, after: World) -> None:
        assert job_store.create(self._database, self._id, REQUEST if self._scenario.jobs[0].readable else None)

    def _worker_claims(self, before: World, after: World) -> None:
        begins = len(after.attempts[0]) > len(before.attempts[0])
        for worker in range(self._scenario.workers):
            if begins and not may_claim(Setting(Protocol(), self._scenario), before, 0, worker):
                with pytest.raises(attempts.LeftToAnother):
                    self._claim(worker)
        claim = self._claim(after.attempts[0][-1].worker if begins else 0)
        assert (claim is not None) == begins
        if claim is not None:
            self._claims.append(claim)

    def _attempt_renews(self, before: World, after: World) -> None:
        claim = self._claims[before.database.rows[0].holder - 1]
        assert attempts.renew(self._database, claim, lease_s=LEASE_S, stage=None, progress=0.0).held

    def _attempt_stops(self, before: World, after: World) -> None:
        claim = self._moved(before, after)
        renewal = attempts.renew(self._database, claim, lease_s=LEASE_S, stage=None, progress=0.0)
        assert renewal.held == renewal.cancel_requested == (before.database != after.database)
        if renewal.cancel_requested:
            assert attempts.fail(self._database, claim, JobCancelled("x"))

    def _attempt_is_recorded(self, before: World, after: World) -> None:
        stored = self._stored(self._moved(before, after))
        assert stored_attempts.record(self._database, stored)
        # Again, as when Postgres fails before its answer arrives.
        assert stored_attempts.record(self._database, stored)

    def _end_delay_of_removals(self) -> None:
        with self._database.begin() as connection:
            connection.execute(update(StoredAttemptRow).values(remove_after=PAST))

    def _stored(self, claim: attempts.Claim) -> StoredAttempt:
        return StoredAttempt(claim.token, self._id, "results/x")

    def _sweep_forgets_attempt(self, before: World, after: World) -> None:
        for _, number in before.database.stored_attempts - after.database.stored_attempts:
            with self._database.begin() as connection:
                stored_attempts.forget(connection, self._claims[number - 1].token)

    def _attempt_succeeds(self, before: World, after: World) -> None:
        claim = self._moved(before, after)
        mask = f"{self._id}/{claim.attempt}-{claim.token.hex}/mask.nii.gz"
        success = replace(SUCCESS, result={"bucket": "results", "mask": mask})
        assert attempts.succeed(self._database, claim, success)

    def _attempt_fails(self, before: World, after: World) -> None:
        assert attempts.fail(self._database, self._moved(before, after), InputCorrupt("x"))

    def _attempt_is_retried(self, before: World, after: World) -> None:
        assert attempts.schedule_retry(self._database, self._moved(before, after), delay_s=LEASE_S, detail="x")

    def _worker_stops(self, before: World, after: World) -> None:
        recovery.return_jobs(self._database, worker=WORKERS[0], max_attempts=self._scenario.max_attempts)

    def _sweep_recovers(self, before: World, after: World) -> None:
        recovery.requeue_expired(self._database, max_attempts=self._scenario.max_attempts)

    def _parent_recovers(self, before: World, after: World) -> None:
        limit = self._scenario.max_attempts
        row = after.database.rows[0]
        worker = self._claims[before.database.rows[0].holder - 1].worker
        pid = os.getpid()
        if row.state == "failed" and before.database.rows[0].attempt - row.returned < limit:
            recovery.fail_lost(self._database, self._id, worker=worker, pid=pid, error=TimeLimit("x"))
        else:
            assert recovery.requeue_lost(self._database, self._id, worker=worker, pid=pid, max_attempts=limit)

    def _sweep_fails_unreadable(self, before: World, after: World) -> None:
        recovery.fail_unreadable(self._database, older_than_s=-1)

    def _sweep_sends(self, before: World, after: World) -> None:
        if after.database.rows[0].sent:
            self._note_sent(attempt=before.database.rows[0].attempt)

    def _note_sent(self, *, attempt: int) -> None:
        job = UnsentJob(self._id, {}, attempt)
        with self._database.begin() as connection:
            job_store.mark_dispatched(connection, job, queue=OVERFLOW_QUEUE, redis_run_id="the run")

    def _owner_cancels(self, before: World, after: World) -> None:
        job_store.cancel(self._database, self._id)

    def _sweep_cancels(self, before: World, after: World) -> None:
        assert job_store.cancel_by_message(self._database, self._id)

    def _machine_fails(self, before: World, after: World) -> None:
        claim = self._moved(before, after)
        assert attempts.schedule_retry(self._database, claim, delay_s=LEASE_S, detail="x", counts=False, elsewhere=True)

    def _operator_prunes(self, before: World, after: World) -> None:
        assert retention.prune(self._database, older_than=timedelta(), results=True, limit=2) == 1

    def _owner_retries(self, before: World, after: World) -> None:
        assert resubmission.queue_again(self._database, self._id)

    def _retry_becomes_due(self, before: World, after: World) -> None:
        self._write(not_before=PAST)

    def _lease_of_dead_expires(self, before: World, after: World) -> None:
        self._write(lease_expires_at=PAST)

    _attempt_freezes = _lease_of_dead_expires


PAST = func.now() - timedelta(seconds=1)
SUCCESS = attempts.Success(
    result={"bucket": "results", "mask": "x/mask.nii.gz"},
    checksums={"mask": Checksum("0" * 64, 1)},
    input_sha256="0" * 64,
    model_name="ct-tissue",
    model_version="1",
    model_sha256="0" * 64,
    manifest_sha256="0" * 64,
    precision="fp32",
    providers=[],
    warnings=[],
)
