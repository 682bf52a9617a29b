import pytest
from pydantic import ValidationError

from inference_service.contract.model_index import ModelIndex

FILE = {"sha256": "0" * 64, "size_bytes": 3}


def index(**files: object) -> ModelIndex:
    return ModelIndex.model_validate({"name": "ct-lung", "version": "1", "files": {"manifest.json": FILE, **files}})


@pytest.mark.parametrize(
    "name", ["../model.onnx", "a/b", "/etc/passwd", "..", ".", ".hidden", "a\n", "a\\b", "", "ümlaut", "x" * 129]
)
def test_files_have_plain_names(name: str) -> None:
    with pytest.raises(ValidationError):
        index(**{name: FILE})


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../other"},
        {"version": "1/2"},
        {"files": {}},
        {"files": {"model.onnx": FILE}},
        {"files": {"manifest.json": {**FILE, "size_bytes": -1}}},
        {"files": {"manifest.json": {**FILE, "size_bytes": 2**60}}},
        {"files": {"manifest.json": {**FILE, "sha256": "../../x"}}},
        {"files": {"manifest.json": FILE, **{f"f{number}": FILE for number in range(1000)}}},
        {"unknown": 1},
    ],
)
def test_an_index_that_cannot_be_one_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ModelIndex.model_validate({**index().model_dump(), **changes})


def test_the_digest_identifies_the_content_whatever_the_order_of_files() -> None:
    first = index(a=FILE, b=FILE)
    assert first.digest == index(b=FILE, a=FILE).digest
    assert first.digest != index(a=FILE, b={**FILE, "size_bytes": 4}).digest
    assert first.size_bytes == 9
    assert ModelIndex.model_validate_json(first.content()) == first
