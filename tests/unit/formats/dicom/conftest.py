from collections.abc import Callable
from pathlib import Path

import pytest

from inference_service.contract.input_options import InputOptions
from inference_service.core.memory_budget import RequireMemory, no_memory_limit
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan

MAX_VOXELS = 10**7


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Scan]:
    """Reads an input as a scan; other keywords are those of `InputOptions`."""

    def read_input(
        path: Path, *, max_bytes: int = 10**8, require_memory: RequireMemory = no_memory_limit, **options: object
    ) -> Scan:
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        limits = ReadLimits(MAX_VOXELS, max_bytes, require_memory)
        return read_scan(path, folder, limits, input_options=InputOptions(**options))  # type: ignore[arg-type]

    return read_input
