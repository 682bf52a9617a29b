"""Every error of the service, each with the stable code that upstreams and operators rely on.

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
        ├── EmbeddedServerError     embedded_server_error
        ├── WorkerLost              worker_lost
        └── GpuError                retried on a CPU
            ├── GpuOutOfMemory      out_of_memory
            └── GpuFailed           worker_lost

The message of a ServiceError is public: a sentence with the value and the remedy, free of paths, secrets and patient
data. Only an EmbeddedServerError, which is shown on the operator's terminal alone, names folders and logs. What only
the operator may see travels as the exception's cause and ends in the log.
"""

from enum import StrEnum
from typing import ClassVar


class ErrorCode(StrEnum):
    """The codes of rows and of the command line; the values are part of the contract.

    `queue_unavailable` and `embedded_server_error` are in no row.
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
    INTERNAL_ERROR = "internal_error"


class ServiceError(Exception):
    """The base of all errors that this service raises on purpose."""

    code: ClassVar[ErrorCode]

    @property
    def message(self) -> str:
        """The public sentence."""
        return str(self)


class PermanentError(ServiceError):
    """The same job would fail in the same way again."""


class TransientError(ServiceError):
    """Another attempt may succeed."""


class BadRequest(PermanentError):
    """The request does not follow the contract."""

    code = ErrorCode.BAD_REQUEST


class InputError(PermanentError):
    """The volume cannot be used."""


class InputNotFound(InputError):
    """No object lies at the bucket and key of the request."""

    code = ErrorCode.INPUT_NOT_FOUND


class InputTooLarge(InputError):
    """The volume exceeds a limit of this deployment."""

    code = ErrorCode.INPUT_TOO_LARGE


class InputCorrupt(InputError):
    """The file is truncated, damaged or not what its name says."""

    code = ErrorCode.INPUT_CORRUPT


class UnsupportedFormat(InputError):
    """The file is of a kind that this service does not read."""

    code = ErrorCode.UNSUPPORTED_FORMAT


class NotAVolume(InputError):
    """The file holds an image that is not one scalar 3-D volume."""

    code = ErrorCode.NOT_A_VOLUME


class UnsupportedTransferSyntax(InputError):
    """The pixels are encoded in a way that this service does not decode."""

    code = ErrorCode.UNSUPPORTED_TRANSFER_SYNTAX


class MixedSeries(InputError):
    """The input holds several series, and the request does not say which one is meant."""

    code = ErrorCode.MIXED_SERIES


class MissingSlices(InputError):
    """The series has gaps that other slices must have filled."""

    code = ErrorCode.MISSING_SLICES


class InconsistentGeometry(InputError):
    """The input does not say where its voxels lie in space, or contradicts itself."""

    code = ErrorCode.INCONSISTENT_GEOMETRY


class GantryTilt(InputError):
    """The slices are not stacked at right angles to their planes."""

    code = ErrorCode.GANTRY_TILT


class ModalityMismatch(InputError):
    """The scan is not of the modality that the model was made for."""

    code = ErrorCode.MODALITY_MISMATCH


class ModelError(PermanentError):
    """The model cannot be used."""


class ModelNotFound(ModelError):
    """No model of that name and version is installed."""

    code = ErrorCode.MODEL_NOT_FOUND


class ModelInvalid(ModelError):
    """The model's manifest and its ONNX file do not agree with each other or with the service."""

    code = ErrorCode.MODEL_INVALID


class OutOfMemory(PermanentError):
    """The job needs more memory than this worker has."""

    code = ErrorCode.OUT_OF_MEMORY


class TimeLimit(PermanentError):
    """The job ran longer than its limit."""

    code = ErrorCode.TIME_LIMIT


class JobCancelled(PermanentError):
    """The job was cancelled by its owner."""

    code = ErrorCode.CANCELLED


class InternalError(PermanentError):
    """Something that nobody foresaw; the worker's log holds the traceback."""

    code = ErrorCode.INTERNAL_ERROR


class ConfigurationError(PermanentError):
    """A setting or the installation is wrong, and the message names it."""

    code = ErrorCode.INTERNAL_ERROR


class StorageUnavailable(TransientError):
    """The object storage does not answer, or answers with a server error."""

    code = ErrorCode.STORAGE_UNAVAILABLE


class StorageRefused(StorageUnavailable):
    """The object storage answers and refuses the request, for example for wrong credentials."""


class DatabaseUnavailable(TransientError):
    """Postgres does not answer, or refuses the credentials."""

    code = ErrorCode.DATABASE_UNAVAILABLE


class QueueUnavailable(TransientError):
    """Redis does not answer, or refuses the credentials."""

    code = ErrorCode.QUEUE_UNAVAILABLE


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


def error_from_row(code: str, message: str) -> ServiceError:
    """Rebuilds the error that a failed job's row records; an unknown code gives InternalError.

    Where several classes share the code, it is the first of them in the order of the tree's levels.
    """
    kinds: list[type[ServiceError]] = [ServiceError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    return next((kind for kind in kinds if getattr(kind, "code", None) == code), InternalError)(message)
