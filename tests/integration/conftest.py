"""Connections of each kind to the real servers."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from inference_service.settings import Settings
from inference_service.storage import Storage
from inference_service.tables import connect


@pytest.fixture
def database(settings: Settings) -> Iterator[Engine]:
    engine = connect(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings)
