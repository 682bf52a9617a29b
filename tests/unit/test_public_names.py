"""The public names of the package, which are part of the contract."""

import subprocess
import sys

import pytest

import inference_service

PUBLIC_NAMES = [
    "ChannelReference",
    "Client",
    "ErrorCode",
    "InputReference",
    "Job",
    "JobState",
    "OutputReference",
    "Priority",
    "RequestOptions",
    "SegmentRequest",
    "ServiceError",
    "Settings",
    "Transition",
    "WarningCode",
    "Worker",
]


def test_the_public_names_are_these() -> None:
    assert inference_service.__all__ == PUBLIC_NAMES
    assert set(PUBLIC_NAMES) <= set(dir(inference_service))


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_a_public_name_is_the_class_of_that_name(name: str) -> None:
    assert getattr(inference_service, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'inference_service' has no attribute 'Nothing'"):
        _ = inference_service.Nothing


def test_the_package_imports_none_of_its_modules() -> None:
    code = (
        "import sys, inference_service; print(*(name for name in sys.modules if name.startswith('inference_service')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["inference_service"]
