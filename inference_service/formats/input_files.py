"""The files of an input: those of a folder or a zip, and the ones among them that hold a volume."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from inference_service.contract.report import InputFormat
from inference_service.core.errors import InputCorrupt, InputNotFound
from inference_service.core.files import list_files
from inference_service.formats.dicom.file_check import looks_like_dicom
from inference_service.formats.nifti import looks_like_nifti
from inference_service.formats.raster.reader import METAIMAGE, NRRD, find_headers
from inference_service.formats.zip_input import looks_like_zip, unpack

_UNZIPPED_FOLDER = "unpacked"


def input_files(path: Path, work_folder: Path, max_bytes: int) -> Sequence[Path]:
    """Returns the files of an input; a zip among them is unpacked if no other file holds a volume.

    Args:
        path: A file, a zip of files, or a folder of them.
        work_folder: An existing folder into which a zip is unpacked; its files are left there.
        max_bytes: Limit on the files together.

    Raises:
        InputError: There are no files, or too many, or the zip is damaged.
    """
    files = list_files(path, max_bytes=max_bytes) if path.is_dir() else [path]
    zips = [path for path in files if looks_like_zip(path)]
    others = [path for path in files if path not in zips]
    if len(zips) == 1 and not _may_hold_volume(others):
        files = [*unpack(zips[0], work_folder / _UNZIPPED_FOLDER, max_bytes=max_bytes), *others]
    if not files:
        raise InputNotFound("the input contains no file")
    return files


def volume_files(files: Sequence[Path]) -> dict[InputFormat, list[Path]]:
    """Returns the files that begin with the header of a volume, by format; DICOM is left out."""
    return {
        "nifti": nifti_files(files),
        "nrrd": find_headers(files, NRRD),
        "metaimage": find_headers(files, METAIMAGE),
    }


def nifti_files(files: Sequence[Path]) -> list[Path]:
    """Returns the NIfTI files among several; empty files, and gzipped files that cannot be decompressed, are none."""
    found = []
    for path in files:
        with suppress(InputCorrupt):
            if looks_like_nifti(path):
                found.append(path)
    return found


def _may_hold_volume(files: Sequence[Path]) -> bool:
    return any(looks_like_dicom(path) for path in files) or any(volume_files(files).values())
