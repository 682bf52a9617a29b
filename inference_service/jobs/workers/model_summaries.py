"""The summaries of models in Postgres: workers write them, and upstreams without the models' files read them."""

from collections.abc import Collection, Mapping

from pydantic import ValidationError
from sqlalchemy import Connection, column, delete, func, select, true
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert

from inference_service.contract.model_summary import ModelSummary
from inference_service.jobs.database import Database
from inference_service.jobs.schema import ModelRow, WorkerRow


def record_missing(connection: Connection, summaries: Mapping[str, ModelSummary]) -> None:
    """Records those summaries that the table lacks.

    Args:
        connection: A transaction.
        summaries: Summaries by the SHA-256 of their manifests.
    """
    known = connection.execute(select(ModelRow.manifest_sha256).where(ModelRow.manifest_sha256.in_(summaries)))
    # In one order, so that two workers never wait for each other.
    missing = sorted(summaries.keys() - set(known.scalars()))
    if missing:
        rows = [{"manifest_sha256": each, "summary": summaries[each].model_dump(mode="json")} for each in missing]
        connection.execute(upsert(ModelRow).values(rows).on_conflict_do_nothing())


def remove_unused(connection: Connection) -> None:
    """Removes the summaries of models that no recorded worker has."""
    model = func.jsonb_array_elements(WorkerRow.models).table_valued(column("value", JSONB))
    used = select(model.c.value["manifest_sha256"].astext).select_from(WorkerRow).join(model, true())
    connection.execute(delete(ModelRow).where(ModelRow.manifest_sha256.not_in(used)))


def read(database: Database, manifests: Collection[str]) -> dict[str, ModelSummary]:
    """Reads summaries by the SHA-256 of their manifests. Those that are not recorded are left out."""
    statement = select(ModelRow.manifest_sha256, ModelRow.summary).where(ModelRow.manifest_sha256.in_(manifests))
    found = {}
    with database.connection() as connection:
        for row in connection.execute(statement):
            try:
                found[row.manifest_sha256] = ModelSummary.model_validate(row.summary)
            except ValidationError:
                continue  # of a version with other fields
    return found
