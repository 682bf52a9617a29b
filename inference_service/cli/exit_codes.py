"""The exit codes of `inference-service`, and the mapping from errors to them."""

from enum import IntEnum

from inference_service.core.errors import (
    BadRequest,
    GpuOutOfMemory,
    InputError,
    ModelError,
    ServiceError,
    TransientError,
)


class ExitCode(IntEnum):
    """The exit codes beside 0; the values are part of the contract."""

    FAILED = 1
    USAGE = 2
    REJECTED = 3
    UNAVAILABLE = 4


# The first class that an error belongs to decides.
_BY_CLASS = (
    # Transient for a worker, whose next attempt runs on a CPU; a command has no next attempt.
    (GpuOutOfMemory, ExitCode.FAILED),
    (TransientError, ExitCode.UNAVAILABLE),
    (BadRequest, ExitCode.REJECTED),
    (InputError, ExitCode.REJECTED),
    (ModelError, ExitCode.REJECTED),
)


def exit_code(error: ServiceError) -> ExitCode:
    """Returns the exit code of a command that ends with an error.

    >>> int(exit_code(InputError()))
    3
    """
    return next((code for error_class, code in _BY_CLASS if isinstance(error, error_class)), ExitCode.FAILED)
