"""Rules of sweeps: they recover orphaned jobs, send missing messages, and remove what lost attempts have stored."""

from protocol_model.explorer import Step
from protocol_model.protocol import (
    Change,
    Setting,
    Steps,
    avoided,
    changes,
    holds,
    messages,
    names,
    removed_keys,
    title,
    with_cancellation,
    with_history,
    with_row,
    with_state,
    with_stored_attempts,
    with_waiting,
)
from protocol_model.state import FINAL, Request, World


def sweep_recovers(setting: Setting, world: World) -> Steps:
    """A job with an expired lease is queued again, or ends if it gets no further attempt."""
    for job, row in enumerate(world.database.rows):
        stale = row.state in FINAL and not setting.protocol.sweep_locks_rows
        if row.expired and (row.state == "running" or stale):
            yield from _requeue(
                setting, world, job, by="recovery.requeue_expired", label="a sweep finds the expired lease of"
            )


def parent_recovers(setting: Setting, world: World) -> Steps:
    """A worker notices that the process of a job died. The job is queued again, or ends by its hard time limit."""
    for job, row in enumerate(world.database.rows):
        if row.state == "running" and row.holder and world.attempts[job][row.holder - 1].step == "gone":
            yield from _requeue(setting, world, job, by="recovery.requeue_lost", label="a worker notices the death of")
            failed = with_state(world, job, "failed")
            made = changes("recovery.fail_lost", "running", "failed")
            yield Step(f"a worker has killed {title(job, row.holder)}, which ends the job", failed, made)


def _requeue(setting: Setting, world: World, job: int, *, by: str, label: str) -> Steps:
    row = world.database.rows[job]
    label = f"{label} {title(job, row.holder or None)}"
    exhausted = row.attempt - row.returned >= setting.scenario.max_attempts and setting.protocol.claim_heeds_limit
    if row.cancel_requested and setting.protocol.requeue_heeds_cancellation:
        yield Step(
            f"{label}; the job is cancelled", with_state(world, job, "cancelled"), changes(by, "running", "cancelled")
        )
    elif exhausted:
        yield Step(f"{label}; the job fails", with_state(world, job, "failed"), changes(by, "running", "failed"))
    else:
        queued = with_state(world, job, "queued", result=0, avoided=avoided(setting, world, job))
        yield Step(f"{label}; the job is queued again", queued, changes(by, "running", "queued"))


def sweep_fails_unreadable(setting: Setting, world: World) -> Steps:
    """A queued job without a request ends: no message can be made for it."""
    for job, row in enumerate(world.database.rows):
        if row.state == "queued" and not setting.scenario.jobs[job].readable:
            failed = with_state(world, job, "failed")
            made = changes("recovery.fail_unreadable", "queued", "failed")
            yield Step(f"a sweep ends {title(job)}, which has no request", failed, made)


def is_unsent(setting: Setting, world: World, job: int) -> bool:
    """Whether a sweep sends a job's message: it was never sent, its retry is due, or Redis has lost it."""
    row = world.database.rows[job]
    lost = row.sent and not any(world.waiting) and setting.protocol.sweep_resends
    wanted = lost or (not row.sent and row.due)
    return row.state == "queued" and setting.scenario.jobs[job].readable and wanted


def sweep_sends(setting: Setting, world: World) -> Steps:
    """A sweep sends a missing message. It may die before it has noted so."""
    for job in range(len(world.database.rows)):
        if is_unsent(setting, world, job) and messages(world, job) < setting.scenario.max_messages:
            sent = with_waiting(world, job, 1)
            yield Step(f"a sweep sends the message of {title(job)}", with_row(sent, job, sent=True))
            if not world.database.rows[job].sent:
                yield Step(f"a sweep sends the message of {title(job)}, and dies before it notes so", sent)


def sweep_cancels(setting: Setting, world: World) -> Steps:
    """A sweep cancels a job by a message, then removes the message. It may die in between."""
    for job, waits in enumerate(world.cancellations):
        if not waits:
            continue
        row = world.database.rows[job]
        cancelled = world
        made: tuple[Change, ...] = ()
        if row.state in ("absent", "pruned") and setting.protocol.cancellation_makes_a_row:
            cancelled = with_state(world, job, "cancelled")
            made = changes("job_store.cancel_by_message", "absent", "queued", "cancelled")
        elif row.state == "queued":
            cancelled = with_state(world, job, "cancelled")
            made = changes("job_store.cancel_by_message", "queued", "cancelled")
        elif row.state == "running":
            cancelled = with_row(world, job, cancel_requested=True)
        label = f"a sweep reads the cancellation of {title(job)}"
        yield Step(f"{label}, and removes it", _without_cancellation(cancelled, job), made)
        if setting.protocol.row_comes_before_removal:
            yield Step(f"{label}, and dies before it removes it", cancelled, made)
        else:
            yield Step(f"{label}, removes it, and dies before it writes the row", _without_cancellation(world, job))


def _without_cancellation(world: World, job: int) -> World:
    return with_history(with_cancellation(world, job, False), job, cancelled=True)


def retry_becomes_due(setting: Setting, world: World) -> Steps:
    """The delay of a retry is over."""
    for job, row in enumerate(world.database.rows):
        if row.state == "queued" and not row.due:
            yield Step(f"the retry of {title(job)} becomes due", with_row(world, job, due=True))


def sweep_removes_objects(setting: Setting, world: World) -> Steps:
    """A sweep sends the removal of the objects of an attempt that does not hold its lease any more."""
    protocol = setting.protocol
    for job, number in world.database.stored_attempts:
        known = [world.database]
        if world.replica is not None and protocol.removal_outlasts_replica:
            known.append(world.replica)
        spared = protocol.removal_spares_holders and any(holds(database.rows[job], number) for database in known)
        if world.replica is not None and protocol.pruned_results_outlast_replica:
            spared = spared or names(world.replica.rows[job], number)
        removal = Request(job, removed_keys(setting, job, number), None)
        if not spared and removal not in world.requests:
            removing = world._replace(requests=world.requests | {removal})
            yield Step(f"a sweep sends the removal of the objects of {title(job, number)}", removing)


def sweep_forgets_attempt(setting: Setting, world: World) -> Steps:
    """The storage has answered the removal, so the attempt leaves the table of stored attempts."""
    for job, number in world.database.stored_attempts:
        start = removed_keys(setting, job, number)
        removed = not any(key[: len(start)] == start for key, _ in world.objects)
        if Request(job, start, None) in world.requests and removed:
            forgotten = with_stored_attempts(world, world.database.stored_attempts - {(job, number)})
            yield Step(f"a sweep forgets {title(job, number)}", forgotten)
