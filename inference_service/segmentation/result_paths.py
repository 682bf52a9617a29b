"""The paths of a result's files on this machine, and the copying of a finished result to them."""

import gzip
import os
import shutil
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from inference_service.contract.result_files import ALL_RESULT_FILES, MASK_FILE, SCAN_FILE
from inference_service.core.errors import BadRequest, InternalError

_MASK_ENDINGS = (".nii", ".nii.gz")


@dataclass(frozen=True)
class ResultPaths:
    """The paths of a result's files: in a folder under their usual names, or a mask's path and paths beside it.

    Attributes:
        folder: The folder of all files.
        mask_name: The mask's name; None for the usual names.

    >>> ResultPaths.of(Path("out")).path("report.json").as_posix()
    'out/report.json'
    >>> ResultPaths.of(Path("out/lungs.nii.gz")).path("report.json").as_posix()
    'out/lungs.report.json'
    """

    folder: Path
    mask_name: str | None = None

    @classmethod
    def of(cls, target: Path) -> Self:
        """The paths for a target, which is a mask's path if it ends in .nii or .nii.gz, and a folder otherwise."""
        is_mask = target.name.lower().endswith(_MASK_ENDINGS) and target.name.lower() not in _MASK_ENDINGS
        return cls(target.parent, target.name) if is_mask else cls(target)

    @property
    def plain_mask(self) -> bool:
        """True if the mask's name ends in .nii, so that the mask is not compressed."""
        return self.mask_name is not None and self.mask_name.lower().endswith(".nii")

    def path(self, file: str) -> Path:
        """The path of a file of `result_files`."""
        if self.mask_name is None:
            return self.folder / file
        if file == MASK_FILE:
            return self.folder / self.mask_name
        stem = self.mask_name[: self.mask_name.lower().rindex(".nii")]
        return self.folder / f"{stem}.{file}"

    def check_free(self, files: Collection[str]) -> None:
        """Checks, before the work, that the result can be written and replaces nothing.

        Args:
            files: The names of its files, in `result_files`.

        Raises:
            BadRequest: A file of a result is there already, or the folder cannot be written to.
        """
        # The name of a scan may be that of another file, and of the input itself.
        of_results = (file for file in ALL_RESULT_FILES.values() if file != SCAN_FILE or file in files)
        paths = (self.path(file) for file in of_results)
        taken = [path.name for path in paths if os.path.lexists(path)]
        if taken:
            raise BadRequest(f"{self.folder} holds {', '.join(taken)} already; choose another OUT")
        folder = self.folder.absolute()
        existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
            raise BadRequest(f"OUT cannot be created: {existing} is not a folder that can be written to")

    def copy_from(self, source: Path, files: Iterable[str]) -> None:
        """Copies a result here from a folder that has it under the usual names; all of it or nothing.

        Args:
            source: The folder.
            files: The names of the result's files, in `result_files`.

        Raises:
            InternalError: A file cannot be written.
        """
        folder = self.folder.absolute()
        with ExitStack() as undo:
            try:
                for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
                    missing.mkdir()
                    undo.callback(missing.rmdir)
                for file in files:
                    plain = file == MASK_FILE and self.plain_mask
                    with (
                        gzip.open(source / file) if plain else (source / file).open("rb") as stream,
                        self.path(file).open("xb") as copy,
                    ):
                        undo.callback(self.path(file).unlink)
                        shutil.copyfileobj(stream, copy)
            except OSError as error:
                raise InternalError(f"{error.filename or self.folder} cannot be written: {error.strerror}") from error
            undo.pop_all()
