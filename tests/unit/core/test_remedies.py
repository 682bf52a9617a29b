import pytest

from inference_service.core.errors import ErrorCode
from inference_service.core.remedies import REMEDIES, remedy


def test_every_code_has_a_remedy_of_one_or_two_sentences() -> None:
    assert REMEDIES.keys() == set(ErrorCode)
    for text in REMEDIES.values():
        assert text[0].isupper()
        assert text.endswith(".")
        assert len(text) < 200


@pytest.mark.parametrize("code", [None, "of_a_later_version"])
def test_there_is_no_remedy_without_a_known_error(code: str | None) -> None:
    assert remedy(code) is None
    assert remedy("time_limit") == REMEDIES[ErrorCode.TIME_LIMIT]
