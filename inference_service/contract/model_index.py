"""The index of a stored model: `index.json`, which lists the files of a version. Without it there is no version."""

from hashlib import sha256
from typing import Annotated, Self

from pydantic import Field, model_validator

from inference_service.contract.manifest import MANIFEST_FILE
from inference_service.contract.manifest_types import Sha256, Strict
from inference_service.contract.part import FileName
from inference_service.contract.task_message import NAME_PATTERN, VERSION_PATTERN

INDEX_FILE = "index.json"
_MAX_FILES = 1000
_MAX_FILE_BYTES = 2**40


class IndexedFile(Strict):
    """A file of a stored model."""

    sha256: Sha256
    size_bytes: int = Field(ge=0, le=_MAX_FILE_BYTES)


class ModelIndex(Strict):
    """The files of one version of a model, all in one folder."""

    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=VERSION_PATTERN)
    files: Annotated[dict[FileName, IndexedFile], Field(min_length=1, max_length=_MAX_FILES)]

    @model_validator(mode="after")
    def _has_manifest(self) -> Self:
        if MANIFEST_FILE not in self.files:
            raise ValueError(f"a model has a {MANIFEST_FILE}")
        return self

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}"

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of the version's manifest."""
        return self.files[MANIFEST_FILE].sha256

    @property
    def size_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size_bytes for file in self.files.values())

    @property
    def digest(self) -> str:
        """Identifies the content of the version: names, sizes and hashes of all files."""
        return sha256(self.content()).hexdigest()

    def content(self) -> bytes:
        """Returns the index as it is stored."""
        ordered = self.model_copy(update={"files": dict(sorted(self.files.items()))})
        return ordered.model_dump_json(indent=1).encode() + b"\n"
