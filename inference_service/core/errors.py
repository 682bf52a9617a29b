"""The errors of the service and their codes, which are stable: upstreams and operators rely on them.

    ServiceError
    ├── PermanentError              the same job fails again: never retried
    │   ├── BadRequest              bad_request
    │   ├── InputError
    │   │   ├── InputNotFound       input_not_found
    │   │   ├── InputTooLarge       input_too_large
    │   │   ├── InputCorrupt        input_corrupt
    │   │   ├── UnsupportedFormat   unsupported_format
    │   │   ├── NotAVolume          not_a_volume
    │   │   ├── UnsupportedTransferSyntax  unsupported_transfer_syntax
    │   │   ├── MixedSeries         mixed_series
    │   │   ├── MissingSlices       missing_slices
    │   │   ├── InconsistentGeometry  inconsistent_geometry
    │   │   ├── GantryTilt          gantry_tilt
    │   │   └── ModalityMismatch    modality_mismatch
    │   ├── ModelError
    │   │   ├── ModelNotFound       model_not_found
    │   │   └── ModelInvalid        model_invalid
    │   ├── ResultDamaged           result_damaged
    │   ├── OutOfMemory             out_of_memory
    │   ├── TimeLimit               time_limit
    │   ├── JobCancelled            cancelled
    │   ├── InternalError           internal_error
    │   └── ConfigurationError      internal_error
    └── TransientError              another attempt may succeed: retried
        ├── StorageUnavailable      storage_unavailable
        │   └── StorageRefused      storage_unavailable
        ├── DatabaseUnavailable     database_unavailable
        ├── QueueUnavailable        queue_unavailable
        │   └── OtherRedisInUse     queue_unavailable
        ├── EmbeddedServerError     embedded_server_error
        ├── WorkerLost              worker_lost
        └── GpuError                retried on a CPU
            ├── GpuOutOfMemory      out_of_memory
            └── GpuFailed           worker_lost

The message of a ServiceError is public: a sentence with the value and the remedy, without paths, secrets and patient
data. Only an EmbeddedServerError, which appears on the operator's terminal alone, names folders and logs. Details for
the operator are in the exception's cause, which is logged.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from traceback import extract_tb
from typing import ClassVar


class ErrorCode(StrEnum):
    """The error codes of job rows and of the command line; the values are part of the contract.

    The codes of COMMAND_LINE_CODES appear on the command line only.
    """

    BAD_REQUEST = "bad_request"
    INPUT_NOT_FOUND = "input_not_found"
    INPUT_TOO_LARGE = "input_too_large"
    INPUT_CORRUPT = "input_corrupt"
    UNSUPPORTED_FORMAT = "unsupported_format"
    NOT_A_VOLUME = "not_a_volume"
    UNSUPPORTED_TRANSFER_SYNTAX = "unsupported_transfer_syntax"
    MIXED_SERIES = "mixed_series"
    MISSING_SLICES = "missing_slices"
    INCONSISTENT_GEOMETRY = "inconsistent_geometry"
    GANTRY_TILT = "gantry_tilt"
    MODALITY_MISMATCH = "modality_mismatch"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_INVALID = "model_invalid"
    OUT_OF_MEMORY = "out_of_memory"
    TIME_LIMIT = "time_limit"
    WORKER_LOST = "worker_lost"
    CANCELLED = "cancelled"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    DATABASE_UNAVAILABLE = "database_unavailable"
    QUEUE_UNAVAILABLE = "queue_unavailable"
    EMBEDDED_SERVER_ERROR = "embedded_server_error"
    RESULT_DAMAGED = "result_damaged"
    INTERNAL_ERROR = "internal_error"


COMMAND_LINE_CODES = frozenset({ErrorCode.QUEUE_UNAVAILABLE, ErrorCode.EMBEDDED_SERVER_ERROR, ErrorCode.RESULT_DAMAGED})
"""Codes of the client and the command line, which no job row has."""


class ServiceError(Exception):
    """The base of all errors that the service raises deliberately."""

    code: ClassVar[ErrorCode]

    @property
    def message(self) -> str:
        """The public sentence."""
        return str(self)


class PermanentError(ServiceError):
    """The same job would fail again, so the job is not retried."""


class TransientError(ServiceError):
    """Another attempt may succeed, so the job is retried."""


class BadRequest(PermanentError):
    """The request does not follow the contract."""

    code = ErrorCode.BAD_REQUEST


@dataclass(frozen=True)
class SliceGroup:
    """Slices of a series that may be an acquisition of their own.

    Attributes:
        select: The value of `input.select` that selects them.
        slices: Their number.
        attributes: Values of further attributes that they agree in, and the other groups do not.
    """

    select: Mapping[str, int | float | str | None]
    slices: int
    attributes: Mapping[str, int | float | str | None]


class InputError(PermanentError):
    """The input cannot be segmented."""

    def __init__(self, message: str = "", groups: Sequence[SliceGroup] = ()) -> None:
        """Makes the error.

        Args:
            message: The public sentence.
            groups: The groups of slices of which `input.select` may choose one. Their values may be any text: they are
                for the terminal of the person who holds the input, and for no row and no log.
        """
        super().__init__(message)
        self.groups = tuple(groups)


class InputNotFound(InputError):
    """There is no object at the bucket and key of the request."""

    code = ErrorCode.INPUT_NOT_FOUND


class InputTooLarge(InputError):
    """The input exceeds a size limit of this deployment."""

    code = ErrorCode.INPUT_TOO_LARGE


class InputCorrupt(InputError):
    """The file is truncated or damaged, or its content does not match its name."""

    code = ErrorCode.INPUT_CORRUPT


class UnsupportedFormat(InputError):
    """The service does not read files of this format."""

    code = ErrorCode.UNSUPPORTED_FORMAT


class NotAVolume(InputError):
    """The image is not a single scalar 3-D volume."""

    code = ErrorCode.NOT_A_VOLUME


class UnsupportedTransferSyntax(InputError):
    """The service does not decode the DICOM transfer syntax of the pixels."""

    code = ErrorCode.UNSUPPORTED_TRANSFER_SYNTAX


class MixedSeries(InputError):
    """The input has several series, and the request does not select one."""

    code = ErrorCode.MIXED_SERIES

    def __init__(self, message: str, slices: Mapping[str, int] | None = None) -> None:
        """Makes the error.

        Args:
            message: The public sentence.
            slices: Number of slices of each series by its SeriesInstanceUID. A UID may identify a patient: it is for
                the terminal of the person who holds the input, and for no row and no log.
        """
        super().__init__(message)
        self.slices = slices or {}


class MissingSlices(InputError):
    """The series has gaps where slices are missing."""

    code = ErrorCode.MISSING_SLICES


class InconsistentGeometry(InputError):
    """The position of the voxels in space is missing from the input or contradictory."""

    code = ErrorCode.INCONSISTENT_GEOMETRY


class GantryTilt(InputError):
    """The slices are not stacked perpendicular to their planes."""

    code = ErrorCode.GANTRY_TILT


class ModalityMismatch(InputError):
    """The scan's modality is not the model's."""

    code = ErrorCode.MODALITY_MISMATCH


class ModelError(PermanentError):
    """The model cannot be used."""


class ModelNotFound(ModelError):
    """No model with this name and version is installed."""

    code = ErrorCode.MODEL_NOT_FOUND


class ModelInvalid(ModelError):
    """The model's manifest is invalid or does not match its network."""

    code = ErrorCode.MODEL_INVALID


class ResultDamaged(PermanentError):
    """A stored object is not the one that the job's row describes."""

    code = ErrorCode.RESULT_DAMAGED


class OutOfMemory(PermanentError):
    """The job needs more memory than the worker has."""

    code = ErrorCode.OUT_OF_MEMORY


class TimeLimit(PermanentError):
    """The job exceeded its time limit."""

    code = ErrorCode.TIME_LIMIT


class JobCancelled(PermanentError):
    """The job was cancelled on request."""

    code = ErrorCode.CANCELLED


class InternalError(PermanentError):
    """An unexpected error; its traceback is in the worker's log."""

    code = ErrorCode.INTERNAL_ERROR


class ConfigurationError(PermanentError):
    """A setting or the installation is wrong, and the message names it."""

    code = ErrorCode.INTERNAL_ERROR


class StorageUnavailable(TransientError):
    """The object storage does not answer or answers with a server error, or the worker's own disk fails."""

    code = ErrorCode.STORAGE_UNAVAILABLE


class StorageRefused(StorageUnavailable):
    """The object storage answers and refuses the request, for example for wrong credentials."""


class DatabaseUnavailable(TransientError):
    """Postgres does not answer or refuses the connection."""

    code = ErrorCode.DATABASE_UNAVAILABLE


class QueueUnavailable(TransientError):
    """Redis does not answer or refuses the connection."""

    code = ErrorCode.QUEUE_UNAVAILABLE


class OtherRedisInUse(QueueUnavailable):
    """Live workers of this deployment use another Redis."""


class EmbeddedServerError(TransientError):
    """An embedded server or worker is not installed, does not start, or its folder is in use."""

    code = ErrorCode.EMBEDDED_SERVER_ERROR


class WorkerLost(TransientError):
    """The worker died while it ran the job."""

    code = ErrorCode.WORKER_LOST


class GpuError(TransientError):
    """The job failed on the GPU and may succeed on a CPU."""


class GpuOutOfMemory(GpuError):
    """The job needs more memory than the GPU has."""

    code = ErrorCode.OUT_OF_MEMORY


class GpuFailed(GpuError):
    """The GPU failed while it ran the job, and the process that used it must end."""

    code = ErrorCode.WORKER_LOST


MEMORY_ERRORS = (OutOfMemory, GpuOutOfMemory)
"""Too little memory on the CPU or on the GPU: a smaller batch, or the other memory, may do."""


@contextmanager
def naming(subject: str) -> Iterator[None]:
    """Begins the sentence of an error about the input or the request with its subject, such as a channel."""
    try:
        yield
    except (BadRequest, InputError) as error:
        error.args = (f"{subject}: {error.message}", *error.args[1:])
        raise


def redacted(error: BaseException) -> Exception:
    """Returns a cause for the log in place of an error whose text may identify a patient: its type and its line."""
    where = extract_tb(error.__traceback__)[-1]
    return RuntimeError(f"{type(error).__name__} in {where.name}, line {where.lineno}")


def error_from_row(code: str, message: str) -> ServiceError:
    """Rebuilds the error that a failed job's row records; an unknown code gives InternalError.

    Where several classes share the code, it is the first of them in the order of the tree's levels.
    """
    classes: list[type[ServiceError]] = [ServiceError]
    for each in classes:
        classes.extend(each.__subclasses__())
    return next((each for each in classes if getattr(each, "code", None) == code), InternalError)(message)
