"""The table of results: one row for each label of each finished job, sent while the reports are read."""

from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import sha256
from io import StringIO

from anyio.to_thread import run_sync
from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from inference_service.contract.results_table import (
    COLUMNS,
    ReportFigures,
    Row,
    failure_row,
    label_rows,
    write_rows,
)
from inference_service.core.errors import ErrorCode, InputNotFound, InputTooLarge, ResultDamaged
from inference_service.gateway.gateway import Gateway, InGateway
from inference_service.gateway.job_query import VisibleJobs
from inference_service.gateway.problems import PROBLEMS
from inference_service.jobs.job_store import Job, JobFilter, PagePosition
from inference_service.jobs.schema import FINAL_STATES, JobState
from inference_service.jobs.storage.object_storage import Storage

router = APIRouter(tags=["jobs"])

MAX_TABLES = 2
"""Tables of which a piece may be in memory at a time. Each of the others waits for its turn, piece by piece."""
# Jobs whose rows are in memory at a time, and reports that are read at a time.
_JOBS_AT_ONCE = 32
_READS_AT_ONCE = 4
# Of ten thousand labels. The report of a model with a hundred has 80 kB.
_MAX_REPORT_BYTES = 4 * 2**20
_CSV = "text/csv; charset=utf-8"


@router.get(
    "/v1/results.csv",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "The table."}, **PROBLEMS},
)
async def download_results(gateway: InGateway, where: VisibleJobs) -> StreamingResponse:
    """Downloads the labels of all finished jobs that the caller may see as CSV, the newest job first.

    A succeeded job has a row for each label, another one a row with its error code. The column `scan` has the job's id.
    """
    states = FINAL_STATES if where.states is None else FINAL_STATES.intersection(where.states)
    pieces = _table(gateway, replace(where, states=states))
    # An outage before the first row is an answer of its own, and no broken table.
    first = await anext(pieces)

    async def table() -> AsyncIterator[str]:
        yield first
        async for piece in pieces:
            yield piece

    headers = {"Content-Disposition": 'attachment; filename="results.csv"', "Cache-Control": "private, no-store"}
    return StreamingResponse(table(), headers=headers, media_type=_CSV)


async def _table(gateway: Gateway, where: JobFilter) -> AsyncIterator[str]:
    """Yields the table in pieces; an outage meanwhile ends it with an error, so that no caller takes it for whole."""
    head = _as_text([COLUMNS])
    after: PagePosition | None = None
    while True:
        page = partial(gateway.client.list, where=where, after=after, limit=_JOBS_AT_ONCE)
        jobs = await run_sync(page, limiter=gateway.tables)
        yield head + await run_sync(_rows_of_jobs, gateway.storage, jobs, limiter=gateway.tables)
        if len(jobs) < _JOBS_AT_ONCE:
            return
        head = ""
        after = PagePosition(jobs[-1].created_at, jobs[-1].id)


def _rows_of_jobs(storage: Storage, jobs: Sequence[Job]) -> str:
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return "".join(pool.map(partial(_rows, storage), jobs))


def _rows(storage: Storage, job: Job) -> str:
    if job.state is not JobState.SUCCEEDED:
        return _as_text([failure_row(str(job.id), job.error_code or ErrorCode.INTERNAL_ERROR)])
    try:
        return _as_text(label_rows(str(job.id), _read_report(storage, job)))
    except ResultDamaged as error:
        return _as_text([failure_row(str(job.id), error.code)])


def _read_report(storage: Storage, job: Job) -> ReportFigures:
    """Reads the report of a succeeded job.

    Raises:
        ResultDamaged: It is missing, or not the one that the job has stored.
        StorageUnavailable: The storage does not answer or refuses.
    """
    result = job.result or {}
    checksum = (job.checksums or {}).get("report")
    try:
        content = storage.read(result["bucket"], result["report"], max_bytes=_MAX_REPORT_BYTES)
        if checksum is not None and sha256(content).hexdigest() != checksum.sha256:
            raise ResultDamaged("the report is not the one that the job has stored")
        return ReportFigures.model_validate_json(content)
    except (KeyError, InputNotFound, InputTooLarge, ValidationError) as error:
        raise ResultDamaged("the report is missing, or cannot be read") from error


def _as_text(rows: Iterable[Row]) -> str:
    text = StringIO(newline="")
    write_rows(text, rows)
    return text.getvalue()
