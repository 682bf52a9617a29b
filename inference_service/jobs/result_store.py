"""Where a job's results go: reserved before the work, stored after it, cleared where the job ends without them.

The reservation stands until the place is cleared, so that nothing of another job is ever removed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from uuid import UUID

from inference_service.contract.result_files import result_files
from inference_service.contract.task_message import OutputFormat
from inference_service.core.errors import BadRequest, InputNotFound
from inference_service.jobs import attempts
from inference_service.jobs.database import Database
from inference_service.jobs.object_storage import Storage

_CONTENT_TYPES = {
    ".gz": "application/gzip",
    ".json": "application/json",
    ".png": "image/png",
    ".dcm": "application/dicom",
}


class ResultStore:
    """The place of one job's results.

    Args:
        storage: Holds them.
        location: Bucket and prefix, without a final slash.
        formats: What the mask is stored as.
    """

    def __init__(self, storage: Storage, location: str, formats: Sequence[OutputFormat] = ()) -> None:
        self._storage, self._location = storage, location
        self._touched = False
        self._bucket, _, self._prefix = location.partition("/")
        self._files = result_files(formats)

    @property
    def result(self) -> dict[str, str]:
        """Bucket and keys, as a succeeded job's row has them."""
        return {"bucket": self._bucket} | {name: self._key(file) for name, file in self._files.items()}

    @property
    def _every_key(self) -> list[str]:
        """The place belongs to one job with all that results may consist of."""
        return [self._key(file) for file in result_files().values()]

    def _key(self, file: str) -> str:
        return f"{self._prefix}/{file}"

    def reserve(self, database: Database, claim: attempts.Claim) -> None:
        """Makes sure that nothing is overwritten but what an earlier attempt of the same job has left.

        Raises:
            BadRequest: The place is taken.
            StorageUnavailable: The object storage does not answer or refuses.
        """
        if claim.result_location == self._location:
            return
        # What a job without results holds it would lose to the next sweep.
        holder = attempts.find_uncleared_holder(database, self._location)
        if holder is not None:
            self.discard(database, holder, wait=True)
        # Under its own id lies what the job stored itself, before the database was restored to an earlier time.
        own = self._prefix == str(claim.job_id)
        taken = not own and any(self._storage.exists(self._bucket, key) for key in self._every_key)
        if taken or not attempts.reserve_location(database, claim, self._location):
            raise BadRequest("request.output.prefix: a result is there already, or another job is about to write it")

    def store(self, folder: Path, *, before_each: Callable[[], None]) -> None:
        """Stores the files of a folder.

        Args:
            folder: Has a file for each result.
            before_each: Called before each of them; raises where nothing may be stored any more.

        Raises:
            StorageUnavailable: The object storage does not answer or refuses.
        """
        for file in self._files.values():
            before_each()
            self._touched = True
            path = folder / file
            self._storage.store(self._bucket, self._key(file), path, content_type=_CONTENT_TYPES[path.suffix])

    def copy(self, result: Mapping[str, str], *, before_each: Callable[[], None]) -> None:
        """Copies another job's results here.

        Raises:
            InputNotFound: They are no longer there.
            StorageUnavailable: The object storage does not answer or refuses.
        """
        if not self._files.keys() <= result.keys():
            raise InputNotFound("the earlier job stored less than is stored now")
        for name, file in self._files.items():
            before_each()
            self._touched = True
            self._storage.copy(result["bucket"], result[name], self._bucket, self._key(file))

    def leave_to_sweep(self, database: Database, job_id: UUID) -> None:
        """Leaves what was stored to a sweeper, should the job have ended without results meanwhile.

        Raises:
            DatabaseUnavailable: Postgres does not answer.
        """
        if self._touched:
            attempts.reserve_for_cleanup(database, job_id, self._location)

    def discard(self, database: Database, job_id: UUID, *, wait: bool = False) -> None:
        """Removes what attempts of a job have left, and ends the reservation; the job failed or was cancelled.

        Args:
            database: Has the reservation.
            job_id: The job.
            wait: Whether to wait for another one that is at it.

        Raises:
            StorageUnavailable: The object storage does not answer or refuses.
            DatabaseUnavailable: Postgres does not.
        """
        with attempts.releasing_location(database, job_id, self._location, wait=wait) as ours:
            for key in self._every_key:
                if ours():
                    self._storage.remove(self._bucket, key)
