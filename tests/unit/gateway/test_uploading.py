import anyio
import pytest

from inference_service.core.errors import BadRequest, StorageUnavailable
from inference_service.gateway.submission.uploading import BrokenUpload, _cause

REFUSED = StorageUnavailable("the storage refuses")
WRONG = BadRequest("the form is wrong")


@pytest.mark.parametrize(
    ("errors", "cause"),
    [
        ([anyio.BrokenResourceError(), REFUSED], REFUSED),
        ([WRONG, BrokenUpload()], WRONG),
        ([OSError(), REFUSED], REFUSED),
    ],
)
def test_the_error_that_ended_a_file_is_found(errors: list[Exception], cause: Exception) -> None:
    assert _cause(BaseExceptionGroup("", errors)) is cause


def test_an_upload_that_a_stopping_gateway_broke_off_may_be_sent_again() -> None:
    assert isinstance(_cause(BaseExceptionGroup("", [BrokenUpload()])), StorageUnavailable)
