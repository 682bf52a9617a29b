"""Connections of each kind to the real servers."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from inference_service.core.settings import Settings
from inference_service.jobs.database import connect
from inference_service.jobs.object_storage import Storage


@pytest.fixture
def database(settings: Settings) -> Iterator[Engine]:
    engine = connect(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings)
