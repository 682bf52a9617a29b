"""Rules of workers: they take messages, claim jobs, run attempts and record outcomes."""

from collections.abc import Iterator

from protocol_model.explorer import Step
from protocol_model.protocol import (
    Setting,
    Steps,
    avoided,
    changes,
    each_attempt,
    holds,
    key,
    may_claim,
    title,
    with_attempt,
    with_history,
    with_row,
    with_state,
    with_stored_attempts,
    with_taken,
    with_waiting,
)
from protocol_model.state import FINAL, Attempt, Content, Request, World


def worker_takes_message(setting: Setting, world: World) -> Steps:
    """Redis gives a message to a worker, and keeps it as unacknowledged."""
    for job, waiting in enumerate(world.waiting):
        if waiting:
            yield Step(f"a worker takes a message of {title(job)}", with_taken(with_waiting(world, job, -1), job, 1))


def worker_puts_message_back(setting: Setting, world: World) -> Steps:
    """A message goes back to its queue: Postgres does not answer, or the job is left to another worker."""
    for job, taken in enumerate(world.taken):
        if taken:
            yield Step(
                f"a worker puts a message of {title(job)} back", with_waiting(with_taken(world, job, -1), job, 1)
            )


def worker_records_job(setting: Setting, world: World) -> Steps:
    """The row of a message that came without one is created."""
    for job, taken in enumerate(world.taken):
        row = world.database.rows[job]
        exists = row.state not in ("absent", "pruned")
        if taken and (not exists or (row.state in FINAL and not setting.protocol.creation_keeps_a_row)):
            created = with_state(world, job, "queued", attempt=0, returned=0, cancel_requested=False, result=0)
            created = with_row(created, job, avoided=frozenset())
            yield Step(f"a worker records {title(job)}", created, changes("job_store.create", "absent", "queued"))


def worker_claims(setting: Setting, world: World) -> Steps:
    """The claim of a due or orphaned job starts an attempt, or ends a job that gets none. Other jobs need no work.

    A worker that the job avoids puts the message back, which changes nothing.
    """
    for job, taken in enumerate(world.taken):
        row = world.database.rows[job]
        if not taken or row.state in ("absent", "pruned"):
            continue
        handled = with_taken(world, job, -1)
        orphaned = row.state == "running" and row.expired
        if not (orphaned or (row.state == "queued" and row.due)):
            yield Step(f"a worker has nothing to do for a message of {title(job)}, and acknowledges it", handled)
            continue
        exhausted = row.attempt - row.returned >= setting.scenario.max_attempts and setting.protocol.claim_heeds_limit
        if orphaned and row.cancel_requested and setting.protocol.requeue_heeds_cancellation:
            ended = with_state(handled, job, "cancelled")
            yield Step(f"a claim ends {title(job)}", ended, changes("attempts.claim", row.state, "cancelled"))
        elif exhausted:
            ended = with_state(handled, job, "failed")
            yield Step(f"a claim ends {title(job)}", ended, changes("attempts.claim", row.state, "failed"))
        else:
            way = ("running", "queued", "running") if orphaned else ("queued", "running")
            for worker in range(setting.scenario.workers):
                if may_claim(setting, world, job, worker):
                    claimed = _claimed(setting, world, job, worker)
                    yield Step(
                        f"{title(job, len(world.attempts[job]) + 1)} is claimed by worker {worker}",
                        claimed,
                        changes("attempts.claim", *way),
                    )


def _claimed(setting: Setting, world: World, job: int, worker: int) -> World:
    row = world.database.rows[job]
    number = len(world.attempts[job]) + 1
    barred = avoided(setting, world, job)
    claimed = with_state(
        with_taken(world, job, -1), job, "running", attempt=row.attempt + 1, holder=number, avoided=barred
    )
    started = (*world.attempts[job], Attempt(worker=worker))
    claimed = claimed._replace(attempts=(*world.attempts[:job], started, *world.attempts[job + 1 :]))
    if row.cancel_requested or world.history[job].cancelled:
        claimed = with_history(claimed, job, started_after_cancel=True)
    return claimed


def attempt_renews(setting: Setting, world: World) -> Steps:
    """An attempt renews a lease that has expired and that nobody has taken yet."""
    for job, number, _ in each_attempt(world):
        if holds(world.database.rows[job], number) and world.database.rows[job].expired:
            yield Step(f"{title(job, number)} renews its lease", with_row(world, job, expired=False))


def attempt_stops(setting: Setting, world: World) -> Steps:
    """An attempt that finds its lease lost, or a cancellation requested, stops."""
    for job, number, _ in each_attempt(world):
        row = world.database.rows[job]
        stopped = with_attempt(world, job, number, step="ended", work=None)
        if not holds(row, number):
            yield Step(f"{title(job, number)} finds its lease lost, and stops", stopped)
        elif row.cancel_requested:
            cancelled = with_state(stopped, job, "cancelled")
            made = changes("attempts.fail", "running", "cancelled")
            yield Step(f"{title(job, number)} reads the cancellation, and ends the job", cancelled, made)


def attempt_computes(setting: Setting, world: World) -> Steps:
    """An attempt has its result in its own folder: computed, or fetched from an earlier job of the same work."""
    for job, number, attempt in each_attempt(world):
        kind = setting.scenario.jobs[job]
        if attempt.step != "claimed" or not kind.readable:
            continue
        computed = with_attempt(world, job, number, step="computed", work=kind.work)
        yield Step(f"{title(job, number)} computes its result", computed)
        for earlier, content in _reusable(setting, world, job):
            work = "a damaged copy" if content.damaged else content.work
            reused = with_attempt(world, job, number, step="computed", work=work)
            yield Step(f"{title(job, number)} takes the result of {title(earlier)}", reused)


def _reusable(setting: Setting, world: World, job: int) -> Iterator[tuple[int, Content]]:
    kinds = setting.scenario.jobs
    for earlier, row in enumerate(world.database.rows):
        same_work = kinds[earlier].work == kinds[job].work or not setting.protocol.reuse_compares_work
        if kinds[job].reuse and earlier != job and row.state == "succeeded" and same_work:
            stored = dict(world.objects).get(key(setting, earlier, row.result))
            if stored is not None and not (stored.damaged and setting.protocol.reuse_verifies):
                yield earlier, stored


def attempt_is_recorded(setting: Setting, world: World) -> Steps:
    """Under its fence, an attempt enters the table of stored attempts."""
    for job, number, attempt in each_attempt(world):
        if attempt.step == "computed" and holds(world.database.rows[job], number):
            recorded = with_attempt(world, job, number, step="recorded")
            if setting.protocol.attempt_is_recorded_before_it_stores:
                recorded = with_stored_attempts(recorded, world.database.stored_attempts | {(job, number)})
            yield Step(f"{title(job, number)} is recorded as about to store", recorded)


def attempt_sends_object(setting: Setting, world: World) -> Steps:
    """An attempt sends its object. It may have lost its lease and not know so: the keys are its own."""
    for job, number, attempt in each_attempt(world):
        if attempt.step == "recorded" and attempt.work is not None:
            put = Request(job, key(setting, job, number), Content(job, number, attempt.work))
            sent = with_attempt(world, job, number, step="sent")._replace(requests=world.requests | {put})
            yield Step(f"{title(job, number)} sends its object", sent)


def attempt_succeeds(setting: Setting, world: World) -> Steps:
    """An attempt records its success, so that the row names its object."""
    protocol = setting.protocol
    for job, number, attempt in each_attempt(world):
        row = world.database.rows[job]
        stored = attempt.step == "stored" or (attempt.step == "sent" and not protocol.objects_come_before_row)
        if stored and (
            holds(row, number) or (not protocol.attempts_are_fenced and row.state not in ("absent", "pruned"))
        ):
            ended = with_attempt(world, job, number, step="ended", work=None)
            succeeded = with_state(ended, job, "succeeded", result=number, expired=_stale(setting, world, job))
            if protocol.success_clears_record:
                succeeded = with_stored_attempts(succeeded, world.database.stored_attempts - {(job, number)})
            made = changes("attempts.succeed", "running", "succeeded")
            yield Step(f"{title(job, number)} records its success", succeeded, made)


def _stale(setting: Setting, world: World, job: int) -> bool:
    """Whether a sweep without locks may still believe that the job's lease has expired."""
    return world.database.rows[job].expired and not setting.protocol.sweep_locks_rows


def attempt_fails(setting: Setting, world: World) -> Steps:
    """An attempt ends its job with an error: its input is refused, or its message breaks the contract."""
    for job, number, attempt in each_attempt(world):
        if attempt.step == "claimed" and holds(world.database.rows[job], number):
            failed = with_state(with_attempt(world, job, number, step="ended"), job, "failed")
            yield Step(f"{title(job, number)} fails", failed, changes("attempts.fail", "running", "failed"))


def attempt_is_retried(setting: Setting, world: World) -> Steps:
    """A transient error, such as an outage of the storage, queues the job for a later attempt, if one is left."""
    for job, number, attempt in each_attempt(world):
        row = world.database.rows[job]
        left = row.attempt - row.returned < setting.scenario.max_attempts
        if attempt.step in ("claimed", "sent") and holds(row, number) and left:
            yield from _schedule_retry(setting, world, job, number, returned=row.returned)


def machine_fails(setting: Setting, world: World) -> Steps:
    """The machine of an attempt is at fault, for example its disk. The attempt does not count."""
    for job, number, attempt in each_attempt(world):
        row = world.database.rows[job]
        if attempt.step == "claimed" and holds(row, number) and row.returned < setting.scenario.max_returns:
            yield from _schedule_retry(setting, world, job, number, returned=row.returned + 1)


def _schedule_retry(setting: Setting, world: World, job: int, number: int, *, returned: int) -> Steps:
    counted = "the attempt counts" if returned == world.database.rows[job].returned else "the attempt does not count"
    label = f"{title(job, number)} meets an outage; {counted}"
    ended = with_attempt(world, job, number, step="ended", work=None)
    if world.database.rows[job].cancel_requested and setting.protocol.requeue_heeds_cancellation:
        cancelled = with_state(ended, job, "cancelled", returned=returned)
        made = changes("attempts.schedule_retry", "running", "queued", "cancelled")
        yield Step(f"{label}; the job is cancelled", cancelled, made)
    else:
        queued = with_state(ended, job, "queued", returned=returned, due=False)
        yield Step(f"{label}; a retry is scheduled", queued, changes("attempts.schedule_retry", "running", "queued"))


def worker_acknowledges(setting: Setting, world: World) -> Steps:
    """The message of an ended attempt is acknowledged."""
    for job, attempts in enumerate(world.attempts):
        for number, attempt in enumerate(attempts, 1):
            if attempt.step == "ended":
                gone = with_attempt(world, job, number, step="gone", work=None)
                yield Step(f"the message of {title(job, number)} is acknowledged", gone)


def worker_stops(setting: Setting, world: World) -> Steps:
    """A stopping worker returns its job, whose attempt does not count, and ends the process."""
    for job, number, _ in each_attempt(world):
        row = world.database.rows[job]
        if not holds(row, number) or row.returned >= setting.scenario.max_returns:
            continue
        stopped = with_waiting(with_attempt(world, job, number, step="gone", work=None), job, 1)
        if row.cancel_requested and setting.protocol.requeue_heeds_cancellation:
            made = changes("recovery.return_jobs", "running", "cancelled")
            yield Step(f"the worker of {title(job, number)} stops", with_state(stopped, job, "cancelled"), made)
        else:
            returned = with_state(stopped, job, "queued", returned=row.returned + 1)
            made = changes("recovery.return_jobs", "running", "queued")
            yield Step(f"the worker of {title(job, number)} stops, and returns the job", returned, made)
