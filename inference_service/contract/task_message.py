"""The task message: what an upstream sends, in any language, to have a volume segmented.

The contract is published as JSON Schema in `docs/task-message.schema.json`, generated from here.
"""

import json
import re
from enum import StrEnum
from typing import Annotated, Literal, get_args
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from inference_service.core.errors import BadRequest

# Names and versions become path components: the patterns confine them to the models' folder.
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
VERSION_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,9}){0,2}$"

Tolerance = Literal["uneven_spacing", "gantry_tilt"]
OutputFormat = Literal["nifti", "dicom-seg", "dicom-labelmap"]

TASK_NAME = "inference_service.segment"
# S3 takes 1024 bytes; a prefix is followed by the name of a result.
_MOST_KEY_BYTES = 900
_MOST_FIELD_CHARACTERS = 64


class Priority(StrEnum):
    """Which queue a job waits in."""

    URGENT = "urgent"
    ROUTINE = "routine"


def _plain_key(key: str) -> str:
    if len(key.encode()) > _MOST_KEY_BYTES:
        raise ValueError(f"an object key has at most {_MOST_KEY_BYTES} bytes")
    parts = key.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in key or re.search(r"[\x00-\x1f\x7f]", key):
        raise ValueError("an object key has no empty, '.' or '..' part, no backslash and no control character")
    return key


def _with_nifti(formats: tuple[OutputFormat, ...]) -> tuple[OutputFormat, ...]:
    """Each once and in one order, so that equal wishes compare equal."""
    return tuple(form for form in get_args(OutputFormat) if form == "nifti" or form in formats)


def _s3_bucket(name: str) -> str:
    if any(pair in name for pair in ("..", ".-", "-.")) or re.fullmatch(r"[0-9]+(\.[0-9]+){3}", name):
        raise ValueError("a bucket name has no '..', '.-' or '-.' and is no IP address")
    return name


ObjectKey = Annotated[
    str,
    Field(min_length=1, description="At most 900 bytes; no empty, . or .. part, no backslash, no control character."),
    AfterValidator(_plain_key),
]
BucketName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"), AfterValidator(_s3_bucket)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputReference(_Part):
    """Where the volume lies."""

    bucket: BucketName | None = Field(None, description="None takes the service's MINIO_INPUT_BUCKET.")
    key: ObjectKey = Field(
        description="A NIfTI file, a DICOM file, a zip of a DICOM series, or a prefix ending in / that holds one."
    )
    series: str | None = Field(
        None,
        pattern=r"^[0-9.]{1,64}$",
        description="SeriesInstanceUID of the series that is meant; needed where the input holds several.",
    )


class OutputReference(_Part):
    """Where the results go, in the service's MINIO_OUTPUT_BUCKET."""

    prefix: ObjectKey | None = Field(None, description="Folder of the results; None takes the job's id.")
    formats: Annotated[tuple[OutputFormat, ...], AfterValidator(_with_nifti)] = Field(
        ("nifti",),
        min_length=1,
        description="nifti is always stored; for an input of DICOM also dicom-seg, a Segmentation of type BINARY, "
        "which viewers and archives know best, and dicom-labelmap, a Label Map Segmentation.",
    )


class RequestOptions(_Part):
    """What a request may ask for beyond the model."""

    reuse: bool = Field(
        False,
        description="Take the result of an earlier job with the same input, model and options, where there is one, "
        "instead of running the model.",
    )
    tolerate: tuple[Tolerance, ...] = Field(
        (),
        description="What of a DICOM series' geometry is mended, with a warning in the report, rather than refused: "
        "uneven_spacing (missing slices too, up to 10 mm), gantry_tilt.",
    )
    modality_check: bool = Field(
        True, description="Whether a scan that is not of the model's modality, or a CT without HU, is refused."
    )


class SegmentRequest(_Part):
    """One job."""

    input: InputReference
    model: str = Field(pattern=NAME_PATTERN)
    model_version: str | None = Field(None, pattern=VERSION_PATTERN, description="None takes the highest installed.")
    priority: Priority = Priority.ROUTINE
    output: OutputReference = OutputReference()
    options: RequestOptions = RequestOptions()


class TaskMessage(_Part):
    """The keyword arguments of the Celery task `inference_service.segment`."""

    job_id: UUID = Field(description="Also the Celery task's id. The same one sent twice is one job.")
    request: SegmentRequest


def parse_request(request: object) -> SegmentRequest:
    """Validates a request as it came from the queue.

    Raises:
        BadRequest: It breaks the contract; the message names the field, never the value.
    """
    try:
        text = json.dumps(request)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest("request: expected JSON values, nested as the contract says") from error
    try:
        return SegmentRequest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # An unknown field's name is the sender's own text, of any length, and NUL is more than Postgres takes.
        field = ".".join(["request", *(ascii(part).strip("'")[:_MOST_FIELD_CHARACTERS] for part in first["loc"])])
        raise BadRequest(f"{field}: {first['msg'].removeprefix('Value error, ')}") from error
