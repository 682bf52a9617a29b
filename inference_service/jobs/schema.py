"""The tables in Postgres."""

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Index, MetaData, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class JobState(StrEnum):
    """The state of a job; `state_machine` has the changes between states."""

    QUEUED = "queued"
    """Waits for a worker, or for its next attempt to be due."""
    RUNNING = "running"
    """A worker runs it and holds its lease."""
    SUCCEEDED = "succeeded"
    """Its results are stored."""
    FAILED = "failed"
    """Ended with an error; the row has its code. It may be queued again on request."""
    CANCELLED = "cancelled"
    """Cancelled by its owner. It may be queued again on request."""


FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class Base(DeclarativeBase):
    """The declarative base. It names constraints, so that migrations can refer to them."""

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
        list[dict[str, str]]: JSONB(none_as_null=True),
    }


class JobRow(Base):
    """One job: its request, its attempts and its outcome."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="state"),
        Index(None, "state", "created_at"),
        Index("ix_jobs_input_sha256", "input_sha256", "model_sha256", postgresql_where=text("state = 'succeeded'")),
        # The next two are for workers of the version before migration 0005.
        Index("uq_jobs_output_place", "output_place", unique=True),
        Index(
            "ix_jobs_uncleared",
            "id",
            postgresql_where=text("state IN ('failed', 'cancelled') AND output_place IS NOT NULL"),
        ),
        Index(None, "created_at"),
        Index(None, "finished_at"),
        # For the search of queued jobs without a message; both are as small as the queues.
        Index("ix_jobs_unsent", "created_at", postgresql_where=text("state = 'queued' AND dispatched_at IS NULL")),
        Index(
            "ix_jobs_sent",
            "queue",
            "dispatched_at",
            postgresql_where=text("state = 'queued' AND dispatched_at IS NOT NULL"),
        ),
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
    request: Mapped[dict[str, Any] | None] = mapped_column(
        comment="null where the message broke the contract or came after the cancellation"
    )
    submitted_by: Mapped[str | None] = mapped_column(comment="name that the upstream gave itself")
    tenant: Mapped[str | None] = mapped_column(comment="tenant in whose name the job was submitted")
    traceparent: Mapped[str | None] = mapped_column(comment="W3C trace context in which the job was submitted")
    tracestate: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    queue: Mapped[str | None] = mapped_column(comment="queue of the last message, or the tenant's list of it")
    dispatched_at: Mapped[datetime | None] = mapped_column(
        comment="when that message was sent; null while one is to be sent"
    )
    # Workers of the version before migration 0004 read it, as `dispatched_to`; no other code does.
    redis_run_id: Mapped[str | None] = mapped_column(comment="run of Redis that accepted the last message")

    attempt: Mapped[int] = mapped_column(server_default="0")
    returned_attempts: Mapped[int] = mapped_column(
        server_default="0",
        comment="attempts that do not count: returned by workers that stopped or were at fault, or before a retry on "
        "request",
    )
    avoided_workers: Mapped[list[str] | None] = mapped_column(
        comment="workers that failed on the job by a fault that may be their own"
    )
    on_cpu: Mapped[bool] = mapped_column(
        server_default="false", comment="whether a GPU failed on the job or had too little memory for it"
    )
    not_before: Mapped[datetime | None] = mapped_column(comment="when the next attempt is due")
    cancel_requested: Mapped[bool] = mapped_column(server_default="false")
    lease_owner: Mapped[str | None] = mapped_column(comment="worker that runs the job, or ran it last")
    lease_pid: Mapped[int | None] = mapped_column(comment="process of that worker")
    lease_token: Mapped[UUID | None] = mapped_column(comment="the fence: each write of an attempt must present it")
    lease_expires_at: Mapped[datetime | None]

    stage: Mapped[str | None]
    progress: Mapped[float] = mapped_column(server_default="0")

    model_name: Mapped[str | None]
    model_version: Mapped[str | None]
    model_sha256: Mapped[str | None]
    manifest_sha256: Mapped[str | None]
    precision: Mapped[str | None] = mapped_column(comment="precision that the network ran in")
    providers: Mapped[list[str] | None] = mapped_column(comment="execution providers that were used")
    timings_s: Mapped[dict[str, Any] | None] = mapped_column(comment="seconds of each stage")
    result: Mapped[dict[str, Any] | None] = mapped_column(comment="bucket and keys of the stored objects")
    checksums: Mapped[dict[str, Any] | None] = mapped_column(
        comment="sha256 and size_bytes of each object of the result, by the names of the result"
    )
    warnings: Mapped[list[dict[str, str]] | None] = mapped_column(
        comment="code and message of each warning of the report"
    )
    input_sha256: Mapped[str | None] = mapped_column(comment="sha256 of the volume as it was stored")
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]

    # For workers of the version before migration 0005.
    output_place: Mapped[str | None] = mapped_column(comment="bucket and prefix reserved for the results")
    # For workers of the version before migration 0004: a trigger keeps them equal to the columns that replaced them.
    excused: Mapped[int] = mapped_column(server_default="0", comment="old name of returned_attempts")
    dispatched_to: Mapped[str | None] = mapped_column(comment="old name of redis_run_id")


class StoredAttemptRow(Base):
    """One attempt that may have stored objects and whose job does not name them as its result."""

    __tablename__ = "stored_attempts"

    lease_token: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID]
    location: Mapped[str] = mapped_column(comment="bucket and folder of the attempt's objects")
    remove_after: Mapped[datetime] = mapped_column(
        index=True, comment="when the objects are removed, unless the attempt still runs"
    )


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


class DeploymentRow(Base):
    """The deployment whose jobs the database has; the only row."""

    __tablename__ = "deployment"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    redis: Mapped[str | None] = mapped_column(comment="run, database and key prefix of the Redis that its workers use")


class WorkerRow(Base):
    """One worker that was alive within the last day."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    concurrency: Mapped[int]
    providers: Mapped[list[str]] = mapped_column(comment="execution providers in use")
    queues: Mapped[list[str]] = mapped_column(comment="queues that the worker consumes, in order")
    models: Mapped[list[dict[str, str]] | None] = mapped_column(
        comment="name, version and manifest_sha256 of each installed model"
    )
    paused: Mapped[str | None] = mapped_column(comment="why the worker takes no jobs; null while it does")
    redis: Mapped[str | None] = mapped_column(comment="run, database and key prefix of the Redis that it uses")
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now(), comment="time of the last heartbeat")


class ModelRow(Base):
    """The summary of a model that a recorded worker has."""

    __tablename__ = "models"

    manifest_sha256: Mapped[str] = mapped_column(primary_key=True)
    summary: Mapped[dict[str, Any]] = mapped_column(comment="fields of the manifest by which people choose the model")


class TokenRow(Base):
    """One token of the HTTP gateway."""

    __tablename__ = "tokens"
    __table_args__ = (
        CheckConstraint("role IN ('read', 'submit', 'admin')", name="role"),
        Index(None, "secret_sha256", unique=True),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(comment="upstream whose jobs the token may see")
    role: Mapped[str]
    secret_sha256: Mapped[str] = mapped_column(comment="SHA-256 of the token itself")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    requests_per_s: Mapped[float | None] = mapped_column(comment="limits; null is no limit")
    bytes_per_day: Mapped[int | None] = mapped_column(BigInteger)
    queued_jobs: Mapped[int | None]


class UploadRow(Base):
    """One upload through the HTTP gateway within the last day."""

    __tablename__ = "uploads"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(comment="upstream that uploads")
    bucket: Mapped[str]
    prefix: Mapped[str] = mapped_column(comment="prefix of the objects' keys; no other upload has it")
    size_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    job_id: Mapped[UUID | None] = mapped_column(comment="job that is to use the upload; its row may not exist")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    remove_after: Mapped[datetime] = mapped_column(
        index=True, comment="when the objects are removed, unless the job uses them"
    )


class WebhookRow(Base):
    """One URL to which the end of a job is reported."""

    __tablename__ = "webhooks"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    url: Mapped[str]
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    tried_end: Mapped[datetime | None] = mapped_column(comment="end of the job that was reported last, or tried")
    attempts: Mapped[int] = mapped_column(server_default="0", comment="attempts to report that end")
    settled_end: Mapped[datetime | None] = mapped_column(comment="end of the job that is no longer to be reported")
    error: Mapped[str | None] = mapped_column(comment="why the last attempt failed")
