"""Connections to the real servers."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from inference_service.core.settings import Settings
from inference_service.jobs.database import Database, connect
from inference_service.jobs.object_storage import Storage


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    with closing(connect(settings)) as opened:
        yield opened


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings)
