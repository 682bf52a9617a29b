"""The task message, which an upstream in any language sends to have a scan segmented.

`docs/task-message.schema.json` is the JSON Schema that is generated from this module.
"""

import json
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Literal, Self, cast, get_args
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.config import JsonDict

from inference_service.contract.slice_selection import (
    MAX_SELECTED_ATTRIBUTES,
    SELECTABLE,
    SelectValue,
    check_selection,
)
from inference_service.core.errors import BadRequest
from inference_service.core.files import MAX_CHANNELS

# Names and versions become parts of a path; the patterns keep it inside the models folder.
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
VERSION_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,9}){0,2}$"

Tolerance = Literal["uneven_spacing", "gantry_tilt", "unusual_extent", "analyze_orientation"]
OutputFormat = Literal["nifti", "dicom-seg", "dicom-labelmap", "nrrd", "mha"]

TASK_NAME = "inference_service.segment"
CANCEL_TASK_NAME = "inference_service.cancel"
"""The task of a message that cancels a job. Its keyword argument is the `job_id`."""
MAX_MESSAGE_BYTES = 256 * 1024
"""Most bytes of a message in its queue, with everything that a Celery client adds to the arguments."""
UPLOAD_PREFIX = "uploads/"
"""The prefix of all uploads of Python clients, each under a random key."""

# Below this location of a request are the names of channels.
_CHANNELS = ("input", "channels")
# S3 allows 1024 bytes; a prefix is extended by the name of a result.
_MAX_KEY_BYTES = 900


class Priority(StrEnum):
    """The urgency of a job, which decides its queue."""

    URGENT = "urgent"
    ROUTINE = "routine"


def _plain_key(key: str) -> str:
    if len(key.encode()) > _MAX_KEY_BYTES:
        raise ValueError(f"an object key must have at most {_MAX_KEY_BYTES} bytes")
    parts = key.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in key or re.search(r"[\x00-\x1f\x7f]", key):
        raise ValueError(
            "an object key must not contain an empty, '.' or '..' part, a backslash or a control character"
        )
    return key


def _with_nifti(formats: tuple[OutputFormat, ...]) -> tuple[OutputFormat, ...]:
    """Adds nifti, and removes duplicates and order, so that equal requests compare equal."""
    return tuple(form for form in get_args(OutputFormat) if form == "nifti" or form in formats)


def _distinct(tolerances: tuple[Tolerance, ...]) -> tuple[Tolerance, ...]:
    """Removes duplicates and order, so that equal requests compare equal and take the same space."""
    return tuple(tolerance for tolerance in get_args(Tolerance) if tolerance in tolerances)


def _s3_bucket(name: str) -> str:
    if any(pair in name for pair in ("..", ".-", "-.")) or re.fullmatch(r"[0-9]+(\.[0-9]+){3}", name):
        raise ValueError("a bucket name must not contain '..', '.-' or '-.' and must not be an IP address")
    return name


ObjectKey = Annotated[
    str,
    Field(
        min_length=1, description="At most 900 bytes, without empty, . or .. parts, backslashes and control characters."
    ),
    AfterValidator(_plain_key),
]
BucketName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"), AfterValidator(_s3_bucket)]
Selection = Annotated[dict[str, SelectValue], BeforeValidator(check_selection)]
ChannelName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""The name of an input channel in a model's manifest."""
_KEY = (
    "Key of a NIfTI, NRRD, MetaImage or DICOM file, or of a zip or tar of files; or a prefix, ending in /, of such "
    "files."
)


class _Part(BaseModel):
    """A part of a request.

    A worker refuses fields that it does not know. A field that a later version adds is therefore left out at its
    default, by `exclude_if`, so that workers of earlier versions accept every request that does not use it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class _ScanReference(_Part):
    """The location of a scan, and what to choose of it."""

    bucket: BucketName | None = Field(
        None,
        description="Bucket of the input: MINIO_INPUT_BUCKET, which is the default, or one of INPUT_BUCKETS.",
    )
    series: str | None = Field(
        None,
        pattern=r"^[^\x00-\x1f\x7f]{1,256}$",
        description="SeriesInstanceUID of the series to segment, as its files state it, even where that is no valid "
        "UID; required if the input has several series.",
    )
    select: Selection = Field(
        default_factory=dict,
        exclude_if=lambda selection: not selection,
        description="Attributes of the slices to segment, if the series has several acquisitions, such as "
        '{"TemporalPositionIdentifier": 2}. A slice must have all values: numbers, times as HHMMSS, or texts, of which '
        "one component suffices. null selects the slices without the attribute.",
        json_schema_extra={"propertyNames": {"enum": list(SELECTABLE)}, "maxProperties": MAX_SELECTED_ATTRIBUTES},
    )


class ChannelReference(_ScanReference):
    """The location of the scan of one channel."""

    key: ObjectKey = Field(description=_KEY)


# One of two forms; null and an empty object stand for a field that is left out.
_INPUT_FORMS: JsonDict = {
    "oneOf": [
        {"required": ["key"], "properties": {"channels": {"maxProperties": 0}}},
        {
            "required": ["channels"],
            "properties": {
                "channels": {"minProperties": 1},
                "bucket": {"type": "null"},
                "series": {"type": "null"},
                "select": {"maxProperties": 0},
            },
            "not": {"required": ["key"]},
        },
    ]
}


def _without_default(schema: JsonDict) -> None:
    schema.pop("default", None)


class InputReference(_ScanReference):
    """The location of the input: one scan or folder by its key, or a scan for each channel of the model."""

    model_config = ConfigDict(json_schema_extra=_INPUT_FORMS)

    # Empty instead of null, as upstreams rely on a text.
    key: ObjectKey = Field("", exclude_if=lambda key: not key, description=_KEY, json_schema_extra=_without_default)
    channels: dict[ChannelName, ChannelReference] = Field(
        default_factory=dict,
        max_length=MAX_CHANNELS,
        exclude_if=lambda channels: not channels,
        description="The scan of each channel, by the channel's name in the model's manifest; instead of bucket, key, "
        "series and select.",
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if bool(self.key) == bool(self.channels):
            raise ValueError("expected either key or channels")
        if self.channels and (self.bucket is not None or self.series is not None or self.select):
            raise ValueError("bucket, series and select belong to each of the channels")
        return self

    @property
    def scans(self) -> tuple[ChannelReference, ...]:
        """The reference to the only scan, or to that of each channel."""
        if self.channels:
            return tuple(self.channels.values())
        return (ChannelReference(bucket=self.bucket, key=self.key, series=self.series, select=self.select),)


class OutputReference(_Part):
    """The location and the formats of the results, in the service's MINIO_OUTPUT_BUCKET."""

    prefix: ObjectKey | None = Field(
        None,
        description="Folder of the results. Default: OUTPUT_PREFIX_ROOT, below which every prefix must lie, or the top "
        "of the bucket.",
    )
    formats: Annotated[tuple[OutputFormat, ...], AfterValidator(_with_nifti)] = Field(
        ("nifti",),
        min_length=1,
        description="Formats of the mask. nifti is always stored. nrrd adds a segmentation of 3D Slicer, and mha a "
        "MetaImage. For DICOM input, dicom-seg adds a Segmentation of "
        "type BINARY, which most viewers and archives support, and dicom-labelmap a Label Map Segmentation.",
    )
    scan: bool = Field(
        False,
        exclude_if=lambda scan: not scan,
        description="Whether to store the scan, too, as NIfTI on the grid of the mask, for viewers that do not read "
        "the input. Of several channels it is the first one.",
    )


class RequestOptions(_Part):
    """Options of a request."""

    reuse: bool = Field(
        False,
        description="Whether to take the result of an earlier job with the same input, model and options, if there is "
        "one, instead of running the model.",
    )
    tolerate: Annotated[tuple[Tolerance, ...], AfterValidator(_distinct)] = Field(
        (),
        description="Defects of the geometry that give a warning in the report, not a refusal. In a DICOM series, "
        "uneven_spacing (also missing slices, up to 10 mm) and gantry_tilt are corrected; unusual_extent believes the "
        "unit of a NIfTI file by which the scan is smaller or larger than a body or a specimen, as in micro-CT; "
        "analyze_orientation takes the axes of an Analyze file to run to the left, to the front and up.",
    )
    modality_check: bool = Field(
        True, description="Whether to refuse a scan of another modality than the model's, or a CT without HU values."
    )


class SegmentRequest(_Part):
    """The request for one job."""

    input: InputReference
    model: str = Field(pattern=NAME_PATTERN)
    model_version: str | None = Field(
        None, pattern=VERSION_PATTERN, description="Default: the highest version that is installed or stored."
    )
    priority: Priority = Priority.ROUTINE
    output: OutputReference = OutputReference()
    options: RequestOptions = RequestOptions()


class TaskMessage(_Part):
    """The keyword arguments of the Celery task `inference_service.segment`."""

    job_id: UUID = Field(
        description="Id of the job and of the Celery task. A message sent twice with the same id is one job."
    )
    request: SegmentRequest


def parse_request(request: object) -> SegmentRequest:
    """Validates a request from the queue.

    Raises:
        BadRequest: It violates the contract. The message names fields of the contract, and quotes no text of the
            sender.
    """
    try:
        text = json.dumps(request)
    except (TypeError, ValueError, RecursionError):
        # Neither this error nor the next one is chained: both quote the sender's text, and causes are logged.
        raise BadRequest("request: expected JSON values, nested as in the contract") from None
    try:
        return SegmentRequest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    raise BadRequest(_reason(first["loc"], first["type"], first["msg"]))


def _reason(location: tuple[int | str, ...], kind: str, message: str) -> str:
    """Describes an error by the names of known fields alone: other names are the sender's text."""
    public = ["request", *map(str, location)]
    if location[:2] == _CHANNELS and len(location) > len(_CHANNELS):
        public[3] = "*"
    if kind != "extra_forbidden":
        return f"{'.'.join(public)}: {message.removeprefix('Value error, ')}"
    known = ", ".join(_fields(location[:-1]))
    return f"{'.'.join(public[:-1])}: unknown field; expected no others than {known}"


def _fields(location: tuple[int | str, ...]) -> Iterable[str]:
    """Names of the fields at a location of a request."""
    if location[:2] == _CHANNELS:
        return ChannelReference.model_fields
    model: type[BaseModel] = SegmentRequest
    for name in location:
        model = cast("type[BaseModel]", model.model_fields[str(name)].annotation)
    return model.model_fields
