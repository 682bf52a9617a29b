"""Fixtures that the tests of several models share."""

from pathlib import Path

import pytest

REAL_SCANS = Path(__file__).parents[2] / "shared" / "data" / "totalsegmentator"


@pytest.fixture(scope="session")
def real_scans() -> Path:
    """The folder of real CTs, which lies outside the repository."""
    if not REAL_SCANS.is_dir():
        pytest.skip(f"the real CTs are not here: {REAL_SCANS}")
    return REAL_SCANS
