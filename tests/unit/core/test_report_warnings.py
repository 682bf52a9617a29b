from inference_service.core.errors import ErrorCode
from inference_service.core.report_warnings import WarningCode


def test_no_warning_has_the_code_of_an_error() -> None:
    assert not set(WarningCode) & set(ErrorCode)


def test_a_code_is_its_name_in_lower_case() -> None:
    assert all(code == code.name.lower() for code in WarningCode)
