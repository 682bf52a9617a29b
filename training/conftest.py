"""Fixtures shared by the tests of the models."""

from pathlib import Path

import pytest

REAL_SCANS = Path(__file__).parents[2] / "shared" / "data" / "totalsegmentator"


@pytest.fixture(scope="session")
def real_scans() -> Path:
    """The folder of real CTs, which are not part of the repository."""
    if not REAL_SCANS.is_dir():
        pytest.skip(f"real CT data not found: {REAL_SCANS}")
    return REAL_SCANS
