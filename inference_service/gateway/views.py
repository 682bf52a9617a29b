"""The answers of the gateway, and the body of a submission, as they are in JSON."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from inference_service.contract.model_summary import ModelSummary
from inference_service.contract.task_message import SegmentRequest
from inference_service.core.files import Checksum
from inference_service.jobs.gateway.tokens import TokenRole
from inference_service.jobs.gateway.webhooks import WebhookState
from inference_service.jobs.job_store import Transition
from inference_service.jobs.schema import JobState

_JOB_ID = "5f0c6a0e-5d52-4b60-9a57-0a3a2f1c9d10"
_REQUEST: JsonDict = {"input": {"key": "uploads/8d1c.nii.gz"}, "model": "ct-chest", "priority": "urgent"}


class Submission(BaseModel):
    """A job to submit: the keyword arguments of the task message, with an id that may be left out."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"example": {"job_id": _JOB_ID, "request": _REQUEST}}
    )

    request: SegmentRequest
    job_id: UUID | None = Field(None, description="Id of the job; default: a new one. The same id is one job.")
    webhook: str | None = Field(
        None,
        max_length=2000,
        description="URL below one of WEBHOOK_PREFIXES, to which the job's end is reported as in Standard Webhooks.",
    )


class JobView(BaseModel):
    """A job's row."""

    model_config = ConfigDict(from_attributes=True, frozen=True)

    id: UUID
    state: JobState
    request: dict[str, Any] | None = Field(description="The request; null where the message broke the contract.")
    submitted_by: str | None = Field(description="Name of the upstream.")
    tenant: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    queue: str | None = Field(description="Queue of the job's last message.")
    attempt: int
    cancel_requested: bool
    lease_owner: str | None = Field(description="Worker that runs the job, or ran it last.")
    stage: str | None
    progress: float = Field(description="From 0 to 1.")
    model_name: str | None
    model_version: str | None
    model_sha256: str | None
    manifest_sha256: str | None
    precision: str | None
    providers: list[str] | None = Field(description="Execution providers that were used.")
    timings_s: dict[str, float] | None = Field(description="Seconds of each stage.")
    result: dict[str, str] | None = Field(description="Bucket, and keys of the stored objects by their names.")
    checksums: dict[str, Checksum] | None
    warnings: list[dict[str, str]] | None
    error_code: str | None
    error_message: str | None
    remedy: str | None = Field(description="What to do about the error, in a sentence for people.")


class JobDetail(JobView):
    """A job's row, the changes of its state, oldest first, and its webhook."""

    transitions: list[Transition]
    webhook: WebhookState | None
    model_modality: str | None = Field(description="Modality of the model; null where no worker has recorded it.")


class JobPage(BaseModel):
    """Some jobs, the newest first."""

    jobs: list[JobView]
    next: str | None = Field(description="Value of `after` for the next page; null on the last one.")


class ModelView(BaseModel):
    """A model that live workers can run: they have it installed, or it is stored in MODELS_BUCKET."""

    name: str
    version: str
    manifest_sha256: str
    workers: list[str] = Field(description="Names of these workers.")
    summary: ModelSummary | None = Field(
        description="The fields of the model's manifest by which people choose it; null until one of these workers "
        "has recorded them. Workers of earlier versions record none."
    )


class Queues(BaseModel):
    """How much waits."""

    messages: dict[str, int] | None = Field(
        description="Messages in each queue, or a tenant's list of it; null while Redis does not answer."
    )
    queued_jobs: int
    running_jobs: int


class Health(BaseModel):
    """Whether the gateway reaches what it needs."""

    database: bool
    storage: bool
    queues: bool = Field(description="Whether Redis answers. Without it, jobs are accepted and wait in Postgres.")


class Session(BaseModel):
    """The caller of a request, and the limits and the version of the service."""

    name: str = Field(description="The upstream that the token belongs to.")
    role: TokenRole
    needs_token: bool = Field(description="False while there are no tokens, and only this machine can ask.")
    max_input_bytes: int = Field(description="Largest size of a scan, of all its files together.")
    version: str = Field(description="Version of the gateway.")
