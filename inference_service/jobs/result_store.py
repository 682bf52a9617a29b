"""The stored results of a job: its location is reserved before the work, filled after it, cleared if the job fails."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from uuid import UUID

from inference_service.contract.result_files import result_files
from inference_service.contract.task_message import OutputFormat
from inference_service.core.errors import BadRequest, InputNotFound
from inference_service.jobs import reservations
from inference_service.jobs.attempts import Claim
from inference_service.jobs.database import Database
from inference_service.jobs.object_storage import Storage

_CONTENT_TYPES = {
    ".gz": "application/gzip",
    ".json": "application/json",
    ".png": "image/png",
    ".dcm": "application/dicom",
}


class ResultStore:
    """The results of one job in the object storage.

    Args:
        storage: The object storage.
        location: Bucket and prefix, without a final slash.
        formats: The formats of the mask.
    """

    def __init__(self, storage: Storage, location: str, formats: Sequence[OutputFormat] = ()) -> None:
        self._storage = storage
        self._location = location
        self._stored_any = False
        self._bucket, _, self._prefix = location.partition("/")
        self._files = result_files(formats)

    @property
    def result(self) -> dict[str, str]:
        """Bucket and keys, as in the row of a succeeded job."""
        return {"bucket": self._bucket} | {name: self._key(file) for name, file in self._files.items()}

    @property
    def _every_key(self) -> list[str]:
        """The keys of all files that results can consist of, whatever formats the job has."""
        return [self._key(file) for file in result_files().values()]

    def _key(self, file: str) -> str:
        return f"{self._prefix}/{file}"

    def reserve(self, database: Database, claim: Claim) -> None:
        """Reserves the location, so that the job overwrites nothing but objects of its own earlier attempts.

        Raises:
            BadRequest: Another job's results are there, or will be.
            StorageUnavailable: The object storage does not answer or refuses.
        """
        if claim.result_location == self._location:
            return
        # The next sweep would clear a failed job's location and end its reservation; do it now.
        holder = reservations.find_holder_without_results(database, self._location)
        if holder is not None:
            self.discard(database, holder, wait=True)
        # Objects under the job's own id are its own: the database was restored to a time before they were recorded.
        own = self._prefix == str(claim.job_id)
        taken = not own and any(self._storage.exists(self._bucket, key) for key in self._every_key)
        if taken or not reservations.reserve(database, claim, self._location):
            raise BadRequest("request.output.prefix: a result is there already, or another job is about to write it")

    def store(self, folder: Path, *, before_each: Callable[[], None]) -> None:
        """Stores the files of a folder.

        Args:
            folder: Contains a file for each result.
            before_each: Called before each file; raises where the attempt may no longer store anything.

        Raises:
            StorageUnavailable: The object storage does not answer or refuses.
        """
        for file in self._files.values():
            before_each()
            self._stored_any = True
            path = folder / file
            self._storage.store(self._bucket, self._key(file), path, content_type=_CONTENT_TYPES[path.suffix])

    def copy(self, result: Mapping[str, str], *, before_each: Callable[[], None]) -> None:
        """Copies another job's results to this location.

        Args:
            result: Bucket and keys of the other job's results.
            before_each: Called before each object is copied; an error that it raises ends the copying.

        Raises:
            InputNotFound: At least one of the objects does not exist.
            StorageUnavailable: The object storage does not answer or refuses.
        """
        if not self._files.keys() <= result.keys():
            raise InputNotFound("the earlier job stored fewer files than this one needs")
        for name, file in self._files.items():
            before_each()
            self._stored_any = True
            self._storage.copy(result["bucket"], result[name], self._bucket, self._key(file))

    def leave_to_sweep(self, database: Database, job_id: UUID) -> None:
        """Has a sweep remove the stored objects, if the job failed or was cancelled meanwhile.

        Raises:
            DatabaseUnavailable: Postgres does not answer.
        """
        if self._stored_any:
            reservations.reserve_for_clearing(database, job_id, self._location)

    def discard(self, database: Database, job_id: UUID, *, wait: bool = False) -> None:
        """Removes the objects of a failed or cancelled job, and ends its reservation.

        Args:
            database: The jobs' database.
            job_id: The job.
            wait: Whether to wait where another process is clearing the location.

        Raises:
            StorageUnavailable: The object storage does not answer or refuses.
            DatabaseUnavailable: Postgres does not answer.
        """
        with reservations.clearing(database, job_id, self._location, wait=wait) as is_reserved:
            for key in self._every_key:
                if is_reserved():
                    self._storage.remove(self._bucket, key)
