"""The objects of one attempt's results, under keys that no other attempt of any job has."""

from collections.abc import Callable, Mapping
from pathlib import Path

from inference_service.contract.result_files import ALL_RESULT_FILES
from inference_service.core.errors import ResultDamaged
from inference_service.core.files import Checksum
from inference_service.jobs.attempts import Claim
from inference_service.jobs.storage.object_storage import Storage

_CONTENT_TYPES = {
    ".gz": "application/gzip",
    ".json": "application/json",
    ".png": "image/png",
    ".dcm": "application/dicom",
}


def attempt_location(claim: Claim, bucket: str, prefix: str | None) -> str:
    """Returns the bucket and the folder of an attempt's objects.

    The object storage has no fence: a request of an attempt that has lost its lease may reach it at any time. The
    lease's token makes the folder the attempt's own, so such a request changes no other attempt's objects.

    Args:
        claim: The attempt.
        bucket: The bucket for results.
        prefix: The prefix of the request; None has the job's folder at the top of the bucket.
    """
    folders = (bucket, (prefix or "").removesuffix("/"), str(claim.job_id), f"{claim.attempt}-{claim.token.hex}")
    return "/".join(folder for folder in folders if folder)


class ResultStore:
    """The results of one attempt in the object storage.

    Args:
        storage: The object storage.
        location: Bucket and folder, see `attempt_location`.
        files: Their file names, by their keys in the job's row; for a removal all that a result may have.
    """

    def __init__(self, storage: Storage, location: str, files: Mapping[str, str] = ALL_RESULT_FILES) -> None:
        self.location = location
        self._storage = storage
        self._bucket, _, self._folder = location.partition("/")
        self._files = files

    @property
    def result(self) -> dict[str, str]:
        """Bucket and keys, as in the row of a succeeded job."""
        return {"bucket": self._bucket} | {name: self._key(file) for name, file in self._files.items()}

    def _key(self, file: str) -> str:
        return f"{self._folder}/{file}"

    def store(self, folder: Path, *, before_each: Callable[[], None]) -> dict[str, Checksum]:
        """Stores the files of a folder.

        Args:
            folder: Contains a file for each result.
            before_each: Called before each file; raises where the attempt may no longer store anything.

        Returns:
            The checksum of each object, by its name in the result.

        Raises:
            StorageUnavailable: The object storage does not answer or refuses.
        """
        checksums = {}
        for name, file in self._files.items():
            path = folder / file
            checksums[name] = Checksum.of_file(path)
            before_each()
            self._storage.store(self._bucket, self._key(file), path, content_type=_CONTENT_TYPES[path.suffix])
        return checksums

    def fetch_earlier(self, result: Mapping[str, str], checksums: Mapping[str, Checksum], folder: Path) -> None:
        """Downloads the files of this result from another job's result, and verifies them.

        Args:
            result: Bucket and keys of the other job's objects.
            checksums: Their checksums.
            folder: Gets a file for each result.

        Raises:
            InputNotFound: At least one of the objects does not exist.
            ResultDamaged: At least one of the objects is missing in the row or is not the one that the row describes.
            StorageUnavailable: The object storage does not answer or refuses.
        """
        if not self._files.keys() <= result.keys() & checksums.keys():
            raise ResultDamaged("the earlier job stored fewer files than this one needs")
        for name, file in self._files.items():
            self._storage.fetch_verified(result["bucket"], result[name], folder / file, checksums[name])

    def remove(self) -> None:
        """Removes all objects that the attempt can have stored.

        Raises:
            StorageUnavailable: The object storage does not answer or refuses.
        """
        for file in self._files.values():
            self._storage.remove(self._bucket, self._key(file))
