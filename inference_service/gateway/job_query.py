"""The jobs that a call asks for, by the parameters of its query."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Query
from pydantic import AfterValidator, AwareDatetime

from inference_service.contract.task_message import NAME_PATTERN
from inference_service.gateway.gateway import Reader
from inference_service.jobs.job_store import JobFilter
from inference_service.jobs.schema import JobState


def in_utc(time: datetime) -> datetime:
    """Returns a time in UTC, as Postgres takes fewer time zones than a caller may send.

    Raises:
        ValueError: It has no year there.
    """
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("expected a time between the years 1 and 9999") from None


Time = Annotated[AwareDatetime, AfterValidator(in_utc)]


def _visible_filter(
    caller: Reader,
    state: Annotated[list[JobState] | None, Query(description="May be repeated: jobs in one of these states.")] = None,
    model: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
    created_from: Time | None = None,
    created_before: Time | None = None,
) -> JobFilter:
    return JobFilter(state, model, caller.visible_name, created_from, created_before)


VisibleJobs = Annotated[JobFilter, Depends(_visible_filter)]
"""The jobs of the query that the caller may see, as a parameter of a call."""
