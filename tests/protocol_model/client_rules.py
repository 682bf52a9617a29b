"""Rules of upstreams and operators: they submit, cancel and prune jobs."""

from protocol_model.explorer import Step
from protocol_model.protocol import (
    Setting,
    Steps,
    changes,
    messages,
    title,
    with_cancellation,
    with_history,
    with_row,
    with_state,
    with_stored_attempts,
    with_waiting,
)
from protocol_model.state import FINAL, World


def client_submits(setting: Setting, world: World) -> Steps:
    """The Python client writes the row, then sends the message; it may end in between, or Redis may be down."""
    for job, kind in enumerate(setting.scenario.jobs):
        if kind.by_client and not world.history[job].submitted and world.database.rows[job].state == "absent":
            created = with_history(with_state(world, job, "queued"), job, submitted=True)
            made = changes("job_store.create", "absent", "queued")
            yield Step(f"the client records {title(job)}, but sends no message", created, made)
            sent = with_waiting(with_row(created, job, sent=True), job, 1)
            yield Step(f"the client records {title(job)} and sends its message", sent, made)


def upstream_sends(setting: Setting, world: World) -> Steps:
    """An upstream in another language sends the message alone."""
    for job, kind in enumerate(setting.scenario.jobs):
        if not kind.by_client and not world.history[job].submitted:
            sent = with_history(with_waiting(world, job, 1), job, submitted=True)
            yield Step(f"an upstream sends the message of {title(job)}", sent)


def message_is_sent_twice(setting: Setting, world: World) -> Steps:
    """An upstream sends a message again, or Redis delivers it twice."""
    for job in range(len(setting.scenario.jobs)):
        if world.history[job].submitted and 0 < messages(world, job) < setting.scenario.max_messages:
            yield Step(f"the message of {title(job)} is sent again", with_waiting(world, job, 1))


def owner_cancels(setting: Setting, world: World) -> Steps:
    """The owner cancels a job: at once if it is queued, by a request to its worker if it runs."""
    for job, row in enumerate(world.database.rows):
        if row.state == "queued":
            cancelled = with_state(world, job, "cancelled")
            yield Step(f"{title(job)} is cancelled", cancelled, changes("job_store.cancel", "queued", "cancelled"))
        elif row.state == "running" and not row.cancel_requested:
            yield Step(f"the cancellation of {title(job)} is requested", with_row(world, job, cancel_requested=True))


def upstream_cancels(setting: Setting, world: World) -> Steps:
    """An upstream sends a message that cancels a job, perhaps before the job's own message has made a row."""
    for job, history in enumerate(world.history):
        if not history.cancellation_sent:
            sent = with_history(with_cancellation(world, job, True), job, cancellation_sent=True)
            yield Step(f"an upstream sends the cancellation of {title(job)}", sent)


def owner_retries(setting: Setting, world: World) -> Steps:
    """A failed or cancelled job is queued again on request. Its outcome and its attempts no longer count."""
    for job, row in enumerate(world.database.rows):
        over = ("failed", "cancelled") if setting.protocol.retry_spares_successes else FINAL
        history = world.history[job]
        if row.state not in over or not setting.scenario.jobs[job].readable or history.retried:
            continue
        queued = with_state(world, job, "queued", returned=row.attempt, cancel_requested=False, result=0)
        queued = with_row(queued, job, avoided=frozenset())
        outcomes = history.outcomes if row.state == "succeeded" else history.outcomes - 1
        retried = with_history(queued, job, retried=True, outcomes=outcomes)
        made = changes("resubmission.queue_again", row.state, "queued")
        yield Step(f"{title(job)} is queued again on request", retried, made)


def operator_prunes(setting: Setting, world: World) -> Steps:
    """A job is pruned long after its end: its row goes, and its objects are left to the sweep that removes them."""
    protocol = setting.protocol
    for job, row in enumerate(world.database.rows):
        ended = row.state in FINAL or (row.state == "running" and not protocol.prune_keeps_unfinished)
        if ended and not (messages(world, job) and protocol.prune_outlasts_messages):
            pruned = with_state(world, job, "pruned", result=0)
            if row.result:
                pruned = with_stored_attempts(pruned, world.database.stored_attempts | {(job, row.result)})
            yield Step(f"{title(job)} is pruned", pruned)
