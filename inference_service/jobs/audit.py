"""Compares the rows of succeeded jobs with the stored objects: finds missing, changed and unclaimed ones."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, islice
from uuid import UUID

from sqlalchemy import select

from inference_service.contract.result_files import result_files
from inference_service.core.errors import InputNotFound
from inference_service.core.files import Checksum
from inference_service.jobs.database import Database
from inference_service.jobs.job_store import Job, succeeded_jobs
from inference_service.jobs.object_storage import Storage
from inference_service.jobs.schema import JobRow, StoredAttemptRow

_JOBS_AT_ONCE = 500
_KEYS_AT_ONCE = 1000
_CONCURRENT_REQUESTS = 8
_ATTEMPT_KEY = re.compile(
    r"(?:.+/)?(?P<job_id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/[0-9]+-(?P<token>[0-9a-f]{32})/(?:"
    + "|".join(re.escape(file) for file in result_files().values())
    + ")"
)


class Problem(StrEnum):
    """The kinds of findings."""

    MISSING = "missing"
    """A row names the object, and it does not exist."""
    CHANGED = "changed"
    """The object is not the one that the row describes."""
    UNCLAIMED = "unclaimed"
    """The row of the object's job does not name it, and no sweep will remove it."""


@dataclass(frozen=True)
class Finding:
    """An object that does not fit the rows.

    Attributes:
        problem: The kind of the finding.
        job_id: The job that names the object, or whose attempt has stored it.
        bucket: The object's bucket.
        key: The object's key.
    """

    problem: Problem
    job_id: UUID
    bucket: str
    key: str


@dataclass
class Audit:
    """The outcome of an audit.

    Attributes:
        jobs: Number of succeeded jobs.
        objects: Number of objects that their rows name.
        without_checksum: Number of these whose rows are of a version that recorded no checksums.
        without_row: Number of objects of jobs that have no row: they were pruned without their results, or the row
            was lost.
        findings: The objects that do not fit.
    """

    jobs: int = 0
    objects: int = 0
    without_checksum: int = 0
    without_row: int = 0
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class _NamedObject:
    job_id: UUID
    bucket: str
    key: str
    checksum: Checksum | None


def audit(database: Database, storage: Storage, *, bucket: str, sizes_only: bool = False) -> Audit:
    """Compares all rows of succeeded jobs with the objects. Jobs may run meanwhile.

    Args:
        database: The jobs' database.
        storage: The object storage.
        bucket: The bucket in which unclaimed objects are looked for.
        sizes_only: Whether to compare the objects' sizes only, instead of downloading each object.

    Raises:
        StorageUnavailable: The object storage does not answer or refuses.
        DatabaseUnavailable: Postgres does not answer.
    """
    outcome = Audit()
    with ThreadPoolExecutor(_CONCURRENT_REQUESTS, "audit") as pool:
        for jobs in succeeded_jobs(database, at_once=_JOBS_AT_ONCE):
            named = [item for job in jobs for item in _named_objects(job)]
            problems = pool.map(lambda item: _problem(storage, item, sizes_only=sizes_only), named)
            found = [
                Finding(problem, item.job_id, item.bucket, item.key)
                for item, problem in zip(named, problems, strict=True)
                if problem is not None
            ]
            outcome.jobs += len(jobs)
            outcome.objects += len(named)
            outcome.without_checksum += sum(item.checksum is None for item in named)
            outcome.findings += _still_named(database, found)
    keys = storage.list_keys(bucket)
    while batch := list(islice(keys, _KEYS_AT_ONCE)):
        for key, job_id, has_row in _unnamed(database, storage, bucket, batch):
            if has_row:
                outcome.findings.append(Finding(Problem.UNCLAIMED, job_id, bucket, key))
            else:
                outcome.without_row += 1
    return outcome


def _named_objects(job: Job) -> Iterator[_NamedObject]:
    result = dict(job.result or {})
    bucket = result.pop("bucket", "")
    for name, key in result.items():
        yield _NamedObject(job.id, bucket, key, (job.checksums or {}).get(name))


def _problem(storage: Storage, item: _NamedObject, *, sizes_only: bool) -> Problem | None:
    try:
        if item.checksum is None or sizes_only:
            size_bytes = storage.size(item.bucket, item.key)
            same = item.checksum is None or size_bytes == item.checksum.size_bytes
        else:
            same = storage.checksum(item.bucket, item.key) == item.checksum
    except InputNotFound:
        return Problem.MISSING
    return None if same else Problem.CHANGED


def _still_named(database: Database, findings: Sequence[Finding]) -> list[Finding]:
    """Leaves out findings whose rows were removed meanwhile, together with their objects."""
    if not findings:
        return []
    statement = select(JobRow.id).where(JobRow.id.in_({finding.job_id for finding in findings}))
    with database.connection() as connection:
        present = set(connection.execute(statement).scalars())
    return [finding for finding in findings if finding.job_id in present]


def _unnamed(
    database: Database, storage: Storage, bucket: str, keys: Sequence[str]
) -> Iterator[tuple[str, UUID, bool]]:
    """Finds the keys of attempts that neither a row nor the table of stored attempts has.

    Yields:
        The key, its job, and whether that job has a row.
    """
    of_attempts = {key: match for key in keys if (match := _ATTEMPT_KEY.fullmatch(key))}
    job_ids = {UUID(match["job_id"]) for match in of_attempts.values()}
    tokens = {UUID(match["token"]) for match in of_attempts.values()}
    # The attempts first: an attempt that succeeds between the two queries is then in both answers, not in neither.
    with database.connection() as connection:
        recorded = set(
            connection.execute(
                select(StoredAttemptRow.lease_token).where(StoredAttemptRow.lease_token.in_(tokens))
            ).scalars()
        )
        rows = connection.execute(select(JobRow.id, JobRow.result).where(JobRow.id.in_(job_ids))).all()
    with_row = {row.id for row in rows}
    named = set(chain.from_iterable(row.result.values() for row in rows if row.result))
    for key, match in of_attempts.items():
        if key not in named and UUID(match["token"]) not in recorded and storage.exists(bucket, key):
            job_id = UUID(match["job_id"])
            yield key, job_id, job_id in with_row
