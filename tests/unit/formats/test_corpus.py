"""The corpus of hostile files: each ends as its `expected.json` states, with little memory and no file elsewhere."""

import json
import tracemalloc
from pathlib import Path

import pytest

from inference_service.core.errors import InputError
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import read_scan

CORPUS = Path(__file__).parents[2] / "corpus"
EXPECTED: dict[str, str] = json.loads((CORPUS / "expected.json").read_text())
MAX_VOXELS = 10**6
MAX_BYTES = 10**7
# An input within both limits, and the buffers of a gzip stream.
MAX_MEMORY_BYTES = 2 * MAX_BYTES


def test_every_file_of_the_corpus_has_an_expected_outcome() -> None:
    assert {path.name for path in CORPUS.iterdir()} == {*EXPECTED, "expected.json"}


def ending(source: Path, work: Path) -> str:
    try:
        read_scan(source, work, ReadLimits(MAX_VOXELS, MAX_BYTES))
    except InputError as error:
        return error.code
    return "read"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_hostile_file_ends_as_expected(tmp_path: Path, name: str) -> None:
    (tmp_path / "work").mkdir()
    source = tmp_path / "in"
    source.write_bytes((CORPUS / name).read_bytes())
    tracemalloc.start()
    try:
        assert ending(source, tmp_path / "work") == EXPECTED[name]
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY_BYTES
    finally:
        tracemalloc.stop()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "work"}
