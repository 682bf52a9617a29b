"""The models that the HTTP gateway lists, as workers record them in Postgres."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gateway_server import REQUEST, served
from manifests import VALID_MANIFEST
from sqlalchemy import delete, insert, select, update

from inference_service.contract.manifest import Manifest
from inference_service.contract.model_summary import ModelSummary
from inference_service.core.settings import Settings
from inference_service.jobs.database import Database
from inference_service.jobs.schema import JobRow, ModelRow, WorkerRow
from inference_service.jobs.workers.worker_registry import (
    InstalledModel,
    Role,
    WorkerIdentity,
    deregister,
    record_heartbeat,
)

LUNG = InstalledModel("ct-lung", "1", "ab" * 32)
BONE = InstalledModel("ct-bone", "1", "cd" * 32)
SUMMARY = ModelSummary.of(Manifest.model_validate(VALID_MANIFEST))


@pytest.fixture
def client(settings: Settings, database: Database) -> Iterator[httpx.Client]:
    with database.begin() as connection:
        connection.execute(delete(WorkerRow))
        connection.execute(delete(ModelRow))
    with served(settings, local=True) as address, httpx.Client(base_url=address, timeout=30) as made:
        yield made


def report_alive(database: Database, worker: str, *models: InstalledModel, summaries: bool = True) -> None:
    found = {model.manifest_sha256: SUMMARY for model in models} if summaries else {}
    record_heartbeat(database, WorkerIdentity(worker, Role.CPU, 1, []), queues=[], models=models, summaries=found)


def summaries_of(client: httpx.Client) -> dict[str, Any]:
    """The summary of each model, by its name."""
    return {model["name"]: model["summary"] for model in client.get("/v1/models").json()}


def recorded(database: Database) -> set[str]:
    with database.connection() as connection:
        return set(connection.execute(select(ModelRow.manifest_sha256)).scalars())


def test_models_are_listed_with_their_summaries(client: httpx.Client, database: Database) -> None:
    report_alive(database, "a", LUNG)
    report_alive(database, "b", LUNG)
    assert client.get("/v1/models").json() == [
        {
            "name": "ct-lung",
            "version": "1",
            "manifest_sha256": "ab" * 32,
            "workers": ["a", "b"],
            "summary": {
                "description": "Lungs.",
                "licence": "Apache-2.0",
                "intended_use": "Tests.",
                "modality": "CT",
                "channels": [{"name": "CT", "modality": "CT"}],
                "spacing_mm": [1.5, 1.0, 2.0],
                "labels": [{"value": 1, "name": "lung", "colour": [86, 180, 233]}],
                "label_count": 1,
            },
        }
    ]


def test_a_model_of_a_worker_of_an_earlier_version_has_no_summary(client: httpx.Client, database: Database) -> None:
    report_alive(database, "new", LUNG)
    report_alive(database, "old", LUNG, BONE, summaries=False)
    assert summaries_of(client) == {"ct-bone": None, "ct-lung": SUMMARY.model_dump(mode="json")}


def test_a_summary_that_is_recorded_is_not_written_again(client: httpx.Client, database: Database) -> None:
    report_alive(database, "a", LUNG)
    with database.begin() as connection:
        connection.execute(update(ModelRow).values(summary={"fields": "of another version"}))
    report_alive(database, "a", LUNG)
    with database.connection() as connection:
        assert connection.execute(select(ModelRow.summary)).scalar_one() == {"fields": "of another version"}
    assert summaries_of(client) == {"ct-lung": None}


def test_summaries_of_models_that_no_worker_has_are_removed(client: httpx.Client, database: Database) -> None:
    report_alive(database, "a", LUNG)
    report_alive(database, "b", BONE)
    assert recorded(database) == {LUNG.manifest_sha256, BONE.manifest_sha256}
    deregister(database, "b")
    report_alive(database, "a", LUNG)
    assert recorded(database) == {LUNG.manifest_sha256}
    with database.begin() as connection:
        connection.execute(
            insert(WorkerRow).values(
                name="older than migration 0007", role="cpu", concurrency=1, providers=[], queues=[]
            )
        )
    report_alive(database, "b", BONE)
    assert recorded(database) == {LUNG.manifest_sha256, BONE.manifest_sha256}


def test_a_job_has_the_modality_of_its_model(client: httpx.Client, database: Database) -> None:
    report_alive(database, "a", LUNG)
    job_id = client.post("/v1/jobs", json={"request": REQUEST}).json()["id"]
    assert client.get(f"/v1/jobs/{job_id}").json()["model_modality"] is None
    with database.begin() as connection:
        connection.execute(update(JobRow).values(manifest_sha256=LUNG.manifest_sha256))
    assert client.get(f"/v1/jobs/{job_id}").json()["model_modality"] == SUMMARY.modality
