"""The files of an input: those of a folder, an archive or a file, and the ones among them that hold a volume."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_service.contract.report import InputFormat
from inference_service.core.errors import InputCorrupt, InputNotFound, UnsupportedFormat
from inference_service.core.files import list_input
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.formats import nifti
from inference_service.formats.archives.unpacked_files import UnpackedFiles
from inference_service.formats.archives.unpacking import MAX_DEPTH, decompress, is_archive, unpack
from inference_service.formats.decompression import find_layers, read_start
from inference_service.formats.dicom.file_check import is_dicom, looks_like_dicom
from inference_service.formats.dicom.header import read_instance
from inference_service.formats.dicom.instance import ExclusionReason
from inference_service.formats.nifti_header import is_analyze
from inference_service.formats.raster.reader import METAIMAGE, NRRD, START_BYTES, find_headers
from inference_service.formats.read_limits import ReadLimits

_UNPACKED_FOLDER = "unpacked"


@dataclass(frozen=True)
class InputFiles:
    """The files of an input, unpacked and decompressed as far as the readers need it.

    Attributes:
        paths: The files.
        links: Number of symbolic links in its archives, which are not followed.
    """

    paths: Sequence[Path]
    links: int = 0

    @property
    def warnings(self) -> tuple[ReportWarning, ...]:
        """Warnings about the files."""
        if not self.links:
            return ()
        message = (
            f"symbolic links in the archive were not followed, {self.links} in all: if one leads to the first or the "
            "last slice, this slice is missing"
        )
        return (ReportWarning(WarningCode.LINKS_IGNORED, message),)


def input_files(path: Path, work_folder: Path, limits: ReadLimits) -> InputFiles:
    """Returns the files of an input; archives among them are unpacked if no other file holds a volume.

    Args:
        path: A file, an archive of files, or a folder of them.
        work_folder: An existing folder into which archives are unpacked; their files are left there.
        limits: The largest input that is read.

    Raises:
        InputError: There are no files, or too many, or an archive is damaged.
    """
    files = list_input(path, max_bytes=limits.max_bytes)
    unpacked = UnpackedFiles(work_folder / _UNPACKED_FOLDER, limits.max_bytes)
    for depth in range(MAX_DEPTH + 1):
        files = [_readable(file, unpacked) for file in files]
        archives = {file for file in files if is_archive(file)} if depth < MAX_DEPTH else set()
        if not archives or _holds_volume([file for file in files if file not in archives], limits):
            break
        files = [each for file in files for each in (unpack(file, unpacked) if file in archives else [file])]
    if not files and unpacked.links:
        raise InputNotFound(
            f"the archive has symbolic links alone, {unpacked.links} in all: pack the files they lead to"
        )
    if not files:
        raise InputNotFound("the input contains no file")
    return InputFiles(files, unpacked.links)


def volume_files(files: Sequence[Path]) -> dict[InputFormat, list[Path]]:
    """Returns the files that begin with the header of a volume, by format; DICOM is left out."""
    return {
        "nifti": nifti.find_headers(files),
        "analyze": nifti.find_headers(files, is_analyze),
        "nrrd": find_headers(files, NRRD),
        "metaimage": find_headers(files, METAIMAGE),
    }


def is_dicom_image(path: Path, limits: ReadLimits) -> bool:
    """Returns True for a DICOM file with an image, also if its header is invalid."""
    if not looks_like_dicom(path):
        return False
    instance = read_instance(path, max_bytes=limits.max_bytes, require_memory=limits.require_memory)
    return instance is not ExclusionReason.NO_IMAGE


def _holds_volume(files: Sequence[Path], limits: ReadLimits) -> bool:
    return any(volume_files(files).values()) or any(is_dicom_image(path, limits) for path in files)


def _readable(path: Path, unpacked: UnpackedFiles) -> Path:
    """A file in the form that its reader takes: DICOM, NRRD and MetaImage decompressed, and the others as they are."""
    try:
        if not find_layers(path):
            return path
        start = read_start(path, START_BYTES)
    except (InputCorrupt, UnsupportedFormat):
        return path
    wanted = is_dicom(start) or any(form.accepts(start) for form in (NRRD, METAIMAGE))
    return decompress(path, unpacked) if wanted else path
