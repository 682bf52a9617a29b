"""Where a job's results go: reserved before the work, stored after it, cleared where the job ends without them.

The reservation stands until the place is cleared, so that nothing of another job is ever removed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import UUID

from inference_service import attempts
from inference_service.errors import BadRequest, InputNotFound
from inference_service.pipeline import MASK_FILE, PREVIEW_FILE, REPORT_FILE
from inference_service.storage import Storage
from inference_service.tables import Database

# By the key that the row has them under.
_FILES = {"mask": MASK_FILE, "report": REPORT_FILE, "preview": PREVIEW_FILE}
_CONTENT_TYPES = {MASK_FILE: "application/gzip", REPORT_FILE: "application/json", PREVIEW_FILE: "image/png"}


class Output:
    """The place of one job's results.

    Args:
        storage: Holds them.
        place: Bucket and prefix, without a final slash.
    """

    def __init__(self, storage: Storage, place: str) -> None:
        self._storage, self._place = storage, place
        self._touched = False
        self._bucket, _, prefix = place.partition("/")
        self._keys = {name: f"{prefix}/{name}" for name in _CONTENT_TYPES}

    @property
    def result(self) -> dict[str, str]:
        """Bucket and keys, as a succeeded job's row has them."""
        return {"bucket": self._bucket} | {name: self._keys[file] for name, file in _FILES.items()}

    def reserve(self, database: Database, claim: attempts.Claim) -> None:
        """Makes sure that nothing is overwritten but what an earlier attempt of the same job has left.

        Raises:
            BadRequest: The place is taken.
            StorageUnavailable: The object storage does not answer or refuses.
        """
        if claim.output_place == self._place:
            return
        taken = any(self._storage.exists(self._bucket, key) for key in self._keys.values())
        if taken or not attempts.reserve_output(database, claim, self._place):
            raise BadRequest("request.output.prefix: a result is there already, or another job is about to write it")

    def store(self, folder: Path, *, before_each: Callable[[], None]) -> None:
        """Stores the files of a folder.

        Args:
            folder: Has a file for each result.
            before_each: Called before each of them; raises where nothing may be stored any more.

        Raises:
            StorageUnavailable: The object storage does not answer or refuses.
        """
        for name, key in self._keys.items():
            before_each()
            self._touched = True
            self._storage.store(self._bucket, key, folder / name, content_type=_CONTENT_TYPES[name])

    def copy(self, result: Mapping[str, str], *, before_each: Callable[[], None]) -> None:
        """Copies another job's results here.

        Raises:
            InputNotFound: They are no longer there.
            StorageUnavailable: The object storage does not answer or refuses.
        """
        if not _FILES.keys() <= result.keys():
            raise InputNotFound("the earlier job stored less than is stored now")
        for name in _FILES:
            before_each()
            self._touched = True
            self._storage.copy(result["bucket"], result[name], self._bucket, self.result[name])

    def abandon(self, database: Database, job_id: UUID) -> None:
        """Leaves what was stored to a sweeper, should the job have ended without results meanwhile.

        Raises:
            DatabaseUnavailable: Postgres does not answer.
        """
        if self._touched:
            attempts.reserve_for_clearing(database, job_id, self._place)

    def discard(self, database: Database, job_id: UUID) -> None:
        """Removes what attempts of a job have left, and ends the reservation; the job failed or was cancelled.

        Raises:
            StorageUnavailable: The object storage does not answer or refuses.
            DatabaseUnavailable: Postgres does not.
        """
        with attempts.releasing_output(database, job_id, self._place) as ours:
            for key in self._keys.values() if ours else ():
                self._storage.remove(self._bucket, key)
