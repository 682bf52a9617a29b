"""Compares the rows of succeeded jobs with the stored objects: finds missing, changed, refused and unclaimed ones."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, islice
from uuid import UUID

from sqlalchemy import select

from inference_service.contract.result_files import ALL_RESULT_FILES
from inference_service.core.errors import InputNotFound, StorageRefused
from inference_service.core.files import Checksum
from inference_service.core.retry import retrying
from inference_service.jobs.database import Database, is_database_outage
from inference_service.jobs.job_store import Job, succeeded_after
from inference_service.jobs.schema import JobRow, StoredAttemptRow
from inference_service.jobs.storage.object_storage import Storage
from inference_service.jobs.storage.stored_attempts import StoredAttempt

# Few, as findings appear after each batch.
_JOBS_AT_ONCE = 50
_KEYS_AT_ONCE = 1000
_CONCURRENT_REQUESTS = 8
_ATTEMPT_KEY = re.compile(
    r"(?:.+/)?(?P<job_id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/[0-9]+-(?P<token>[0-9a-f]{32})/(?:"
    + "|".join(re.escape(file) for file in ALL_RESULT_FILES.values())
    + ")"
)


class Problem(StrEnum):
    """The kinds of findings."""

    MISSING = "missing"
    """A row names the object, and it does not exist."""
    CHANGED = "changed"
    """The object is not the one that the row describes."""
    REFUSED = "refused"
    """The storage refuses to read the object, for example for a right that is missing."""
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

    @property
    def unclaimed_attempt(self) -> StoredAttempt | None:
        """The attempt that has stored an unclaimed object; None for another finding."""
        match = _ATTEMPT_KEY.fullmatch(self.key)
        if self.problem is not Problem.UNCLAIMED or match is None:
            return None
        return StoredAttempt(UUID(match["token"]), self.job_id, f"{self.bucket}/{self.key.rpartition('/')[0]}")


@dataclass(frozen=True)
class _NamedObject:
    job_id: UUID
    bucket: str
    key: str
    checksum: Checksum | None


class Audit:
    """One comparison of all rows of succeeded jobs with the objects, and its figures. Jobs may run meanwhile.

    Args:
        database: The jobs' database.
        storage: The object storage.
        bucket: The bucket in which unclaimed objects are looked for.
        sizes_only: Whether to compare the objects' sizes only, instead of downloading each object.
        outage_patience_s: How long to wait for Postgres in an outage. The storage has a limit of its own.
    """

    def __init__(
        self,
        database: Database,
        storage: Storage,
        *,
        bucket: str,
        sizes_only: bool = False,
        outage_patience_s: float = 0.0,
    ) -> None:
        self._database = database
        self._storage = storage
        self._bucket = bucket
        self._sizes_only = sizes_only
        self._retrying = retrying(is_database_outage, timeout_s=outage_patience_s)
        self.jobs = 0
        """Number of succeeded jobs so far."""
        self.objects = 0
        """Number of objects that their rows name."""
        self.without_checksum = 0
        """Number of these whose rows are of a version that recorded no checksums."""
        self.without_row = 0
        """Number of objects of jobs that have no row: they were pruned without their results, or the row was lost."""

    def findings(self) -> Iterator[Finding]:
        """Compares.

        Yields:
            The objects that do not fit the rows, each soon after it is found.

        Raises:
            StorageUnavailable: The object storage does not answer, or refuses access to the bucket.
            DatabaseUnavailable: Postgres does not answer.
        """
        self._storage.require_bucket(self._bucket)
        yield from self._damaged_objects()
        keys = self._storage.list_keys(self._bucket)
        while batch := list(islice(keys, _KEYS_AT_ONCE)):
            yield from self._unclaimed_objects(batch)

    def _damaged_objects(self) -> Iterator[Finding]:
        last = UUID(int=0)
        with ThreadPoolExecutor(_CONCURRENT_REQUESTS, "audit") as pool:
            while jobs := self._retrying(succeeded_after, self._database, last, limit=_JOBS_AT_ONCE):
                named = [item for job in jobs for item in _named_objects(job)]
                problems = pool.map(self._problem, named)
                found = [
                    Finding(problem, item.job_id, item.bucket, item.key)
                    for item, problem in zip(named, problems, strict=True)
                    if problem is not None
                ]
                self.jobs += len(jobs)
                self.objects += len(named)
                self.without_checksum += sum(item.checksum is None for item in named)
                yield from self._retrying(_still_named, self._database, found)
                last = jobs[-1].id

    def _problem(self, item: _NamedObject) -> Problem | None:
        try:
            if item.checksum is None or self._sizes_only:
                size_bytes = self._storage.size(item.bucket, item.key)
                same = item.checksum is None or size_bytes == item.checksum.size_bytes
            else:
                same = self._storage.checksum(item.bucket, item.key) == item.checksum
        except InputNotFound:
            return Problem.MISSING
        except StorageRefused:
            return Problem.REFUSED
        return None if same else Problem.CHANGED

    def _unclaimed_objects(self, keys: Sequence[str]) -> Iterator[Finding]:
        for key, job_id, has_row in self._retrying(_unnamed, self._database, keys):
            if not self._is_there_still(key):
                continue
            if has_row:
                yield Finding(Problem.UNCLAIMED, job_id, self._bucket, key)
            else:
                self.without_row += 1

    def _is_there_still(self, key: str) -> bool:
        """Returns False if a listed object was removed meanwhile."""
        try:
            return self._storage.exists(self._bucket, key)
        except StorageRefused:
            return True


def _named_objects(job: Job) -> Iterator[_NamedObject]:
    result = dict(job.result or {})
    bucket = result.pop("bucket", "")
    for name, key in result.items():
        yield _NamedObject(job.id, bucket, key, (job.checksums or {}).get(name))


def _still_named(database: Database, findings: Sequence[Finding]) -> list[Finding]:
    """Leaves out findings whose rows were removed meanwhile, together with their objects."""
    if not findings:
        return []
    statement = select(JobRow.id).where(JobRow.id.in_({finding.job_id for finding in findings}))
    with database.connection() as connection:
        present = set(connection.execute(statement).scalars())
    return [finding for finding in findings if finding.job_id in present]


def _unnamed(database: Database, keys: Sequence[str]) -> list[tuple[str, UUID, bool]]:
    """Finds the keys of attempts that neither a row nor the table of stored attempts has.

    Returns:
        Each key, its job, and whether that job has a row.
    """
    of_attempts = {
        key: (UUID(match["job_id"]), UUID(match["token"])) for key in keys if (match := _ATTEMPT_KEY.fullmatch(key))
    }
    job_ids = {job_id for job_id, _ in of_attempts.values()}
    tokens = {token for _, token in of_attempts.values()}
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
    return [
        (key, job_id, job_id in with_row)
        for key, (job_id, token) in of_attempts.items()
        if key not in named and token not in recorded
    ]
