import pytest

from inference_service.cli.exit_codes import ExitCode, exit_code
from inference_service.core.errors import (
    BadRequest,
    ConfigurationError,
    GpuFailed,
    GpuOutOfMemory,
    MissingSlices,
    ModelNotFound,
    OutOfMemory,
    QueueUnavailable,
    ServiceError,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadRequest, ExitCode.REJECTED),
        (MissingSlices, ExitCode.REJECTED),
        (ModelNotFound, ExitCode.REJECTED),
        (QueueUnavailable, ExitCode.UNAVAILABLE),
        (GpuFailed, ExitCode.UNAVAILABLE),
        (GpuOutOfMemory, ExitCode.FAILED),
        (OutOfMemory, ExitCode.FAILED),
        (ConfigurationError, ExitCode.FAILED),
    ],
)
def test_each_branch_of_errors_has_its_exit_code(error: type[ServiceError], code: ExitCode) -> None:
    assert exit_code(error("a sentence")) == code


def test_the_exit_codes_are_a_contract() -> None:
    assert {code.name: int(code) for code in ExitCode} == {"FAILED": 1, "USAGE": 2, "REJECTED": 3, "UNAVAILABLE": 4}
