"""The tables in Postgres."""

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Index, MetaData, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class JobState(StrEnum):
    """Where a job is; see `docs/task-contract.md` for the transitions."""

    QUEUED = "queued"
    """Waits for a worker, or for its next attempt."""
    RUNNING = "running"
    """A worker holds its lease."""
    SUCCEEDED = "succeeded"
    """Mask and report are stored."""
    FAILED = "failed"
    """Ended without a result; the row has the code."""
    CANCELLED = "cancelled"
    """Ended by its owner."""


FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class Base(DeclarativeBase):
    """The declarative base, with names for constraints, so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        str: Text(),
        dict[str, Any]: JSONB(none_as_null=True),
        list[str]: JSONB(none_as_null=True),
    }


class JobRow(Base):
    """One job: what was asked, who runs it, and how it ended."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="state"),
        Index(None, "state", "created_at"),
        Index("ix_jobs_input_sha256", "input_sha256", "model_sha256", postgresql_where=text("state = 'succeeded'")),
        # No two jobs write to the same place.
        Index("uq_jobs_output_place", "output_place", unique=True),
        Index(
            "ix_jobs_uncleared",
            "id",
            postgresql_where=text("state IN ('failed', 'cancelled') AND output_place IS NOT NULL"),
        ),
        Index(None, "created_at"),
        Index(None, "finished_at"),
        Index("ix_jobs_unreadable", "id", postgresql_where=text("state = 'queued' AND request IS NULL")),
        Index(
            "ix_jobs_started",
            "queue",
            "dispatched_at",
            postgresql_where=text("state <> 'queued' AND started_at IS NOT NULL"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    state: Mapped[str]
    request: Mapped[dict[str, Any] | None] = mapped_column(comment="null where the message broke the contract")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    result_location: Mapped[str | None] = mapped_column(
        "output_place", comment="bucket and prefix that its results are reserved"
    )

    queue: Mapped[str | None] = mapped_column(comment="where its message went last")
    dispatched_at: Mapped[datetime | None] = mapped_column(comment="when; null while it has yet to be sent")
    dispatched_to: Mapped[str | None] = mapped_column(comment="the run of Redis that took it")

    attempt: Mapped[int] = mapped_column(server_default="0")
    excused: Mapped[int] = mapped_column(
        server_default="0", comment="attempts given back by workers that were told to stop"
    )
    on_cpu: Mapped[bool] = mapped_column(server_default="false", comment="whether a GPU had too little memory for it")
    not_before: Mapped[datetime | None] = mapped_column(comment="when the next attempt is due")
    cancel_requested: Mapped[bool] = mapped_column(server_default="false")
    lease_owner: Mapped[str | None] = mapped_column(comment="the worker that runs it, or ran it last")
    lease_pid: Mapped[int | None] = mapped_column(comment="the process of that worker which does")
    lease_token: Mapped[UUID | None] = mapped_column(comment="what every write of an outcome must present")
    lease_expires_at: Mapped[datetime | None]

    stage: Mapped[str | None]
    progress: Mapped[float] = mapped_column(server_default="0")

    model_name: Mapped[str | None]
    model_version: Mapped[str | None]
    model_sha256: Mapped[str | None]
    providers: Mapped[list[str] | None] = mapped_column(comment="execution providers really used")
    timings_s: Mapped[dict[str, Any] | None] = mapped_column(comment="seconds of each stage")
    result: Mapped[dict[str, Any] | None] = mapped_column(comment="bucket and keys of mask and report")
    input_sha256: Mapped[str | None] = mapped_column(comment="of the volume as it was stored")
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]


class TransitionRow(Base):
    """One change of a job's state."""

    __tablename__ = "transitions"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    from_state: Mapped[str | None]
    to_state: Mapped[str]
    attempt: Mapped[int]
    worker: Mapped[str | None]
    detail: Mapped[str | None]


class WorkerRow(Base):
    """One worker that is, or lately was, alive."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    concurrency: Mapped[int]
    providers: Mapped[list[str]] = mapped_column(comment="execution providers in use")
    queues: Mapped[list[str]] = mapped_column(comment="consumed now, in order")
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now(), comment="when it last consumed")
