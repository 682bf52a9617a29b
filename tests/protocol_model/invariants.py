"""The properties of the protocol, as predicates of a state of the modelled service."""

from collections.abc import Callable, Mapping

from protocol_model.protocol import Setting, key
from protocol_model.state import FINAL, History, Row, World


def results_are_the_jobs_own(setting: Setting, world: World) -> bool:
    """The object that a succeeded job names exists, and its winning attempt stored it, from the job's own scan.

    Damage in place is no write of an attempt; the checksums in the row reveal it.
    """
    objects = dict(world.objects)
    for job, row in enumerate(world.database.rows):
        if row.state != "succeeded":
            continue
        content = objects.get(key(setting, job, row.result))
        own = content is not None and (content.job, content.attempt) == (job, row.result)
        if not own or content is None or content.work != setting.scenario.jobs[job].work:
            return False
    return True


def a_job_has_one_outcome(setting: Setting, world: World) -> bool:
    """A job ends once."""
    return all(history.outcomes <= 1 for history in world.history)


def a_pruned_job_had_its_outcome(setting: Setting, world: World) -> bool:
    """Retention removes no job that has not ended."""
    rows_and_histories = zip(world.database.rows, world.history, strict=True)
    return all(row.state != "pruned" or history.outcomes for row, history in rows_and_histories)


def attempts_stay_within_the_limit(setting: Setting, world: World) -> bool:
    """No job has more attempts than allowed; returned ones do not count."""
    return all(row.attempt - row.returned <= setting.scenario.max_attempts for row in world.database.rows)


def a_job_goes_round_the_workers(setting: Setting, world: World) -> bool:
    """A worker that lost a job gets it again only after all others have had an attempt."""
    firsts = [[attempt.worker for attempt in attempts[: setting.scenario.workers]] for attempts in world.attempts]
    return all(len(set(workers)) == len(workers) for workers in firsts)


def a_cancelled_job_starts_no_attempt(setting: Setting, world: World) -> bool:
    """No attempt starts after the cancellation was requested."""
    return not any(history.started_after_cancel for history in world.history)


def no_job_loses_objects_to_another(setting: Setting, world: World) -> bool:
    """A removal for one job never removes an object of another."""
    return not any(history.removed_by_another for history in world.history)


def every_object_is_accounted_for(setting: Setting, world: World) -> bool:
    """Every object is part of a result, or will be removed with its attempt, or has come back after its removal.

    In the last case a late PUT stored it again; `inference-service audit` finds it.
    """
    for stored_key, content in world.objects:
        row = world.database.rows[content.job]
        named = row.state == "succeeded" and row.result == content.attempt
        recorded = (content.job, content.attempt) in world.database.stored_attempts
        removed = any(
            request.content is None and stored_key[: len(request.key)] == request.key for request in world.requests
        )
        if not (named or recorded or removed):
            return False
    return True


INVARIANTS: Mapping[str, Callable[[Setting, World], bool]] = {
    function.__name__.replace("_", " "): function
    for function in (
        results_are_the_jobs_own,
        a_job_has_one_outcome,
        a_pruned_job_had_its_outcome,
        attempts_stay_within_the_limit,
        a_job_goes_round_the_workers,
        a_cancelled_job_starts_no_attempt,
        no_job_loses_objects_to_another,
        every_object_is_accounted_for,
    )
}


def is_settled(setting: Setting, world: World) -> bool:
    """The goal: each job that was accepted has ended, and neither cancellations nor objects of lost attempts wait.

    A job without a row was never accepted, or it is lost: Redis lost its message before a worker had recorded it, or
    Postgres lost its row.
    """
    ended = all(map(_has_ended, world.database.rows, world.history))
    return ended and not any(world.cancellations) and not world.database.stored_attempts


def _has_ended(row: Row, history: History) -> bool:
    if row.state == "absent":
        return not history.submitted or history.lost
    return row.state == "pruned" or row.state in FINAL
