"""The scans of a folder, each a file, a sub-folder, or files that belong together.

Names decide, as an upstream has no readers of images. Of the content, only the UID is read by which slices of one DICOM
series side by side are refused.
"""

import hashlib
import os
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inference_service.core.errors import BadRequest, InputNotFound, MixedSeries
from inference_service.core.files import MAX_CHANNELS, list_input, other_names
from inference_service.core.scratch_space import scratch_folder

# Endings of files that lie beside scans.
_OTHER_ENDINGS = {
    *(".bval", ".bvec", ".csv", ".htm", ".html", ".jpeg", ".jpg", ".json", ".jsonl", ".log", ".md", ".pdf", ".png"),
    *(".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml"),
}
# The endings that the name of a scan leaves out.
_SCAN_ENDING = re.compile(
    r"\.(?:nii|nrrd|nhdr|mha|mhd|hdr|img|dcm|ima|zip|tar)(?:\.(?:gz|bz2|xz|zst))?\Z|\.tgz\Z", re.IGNORECASE
)
_NUMBERED = re.compile(r"(.+)_([0-9]{4})\Z", re.DOTALL)
# File names have at most 255 bytes; a folder of an unfinished result has a longer name.
_MAX_NAME_BYTES = 200
# Characters that some file system or shell does not take, and names that begin as a hidden file or an option.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\ud800-\udfff]|^[-.]|[. ]\Z')
_DICOM_START_BYTES = 32_768
_DICOM_PREAMBLE_BYTES = 128
# SeriesInstanceUID in little endian: its tag, its length with or without the value representation, and its value.
_SERIES_UID = re.compile(rb"\x20\x00\x0e\x00(?:UI..|..\x00\x00)([0-9.]{1,64})", re.DOTALL)


@dataclass(frozen=True)
class FolderScan:
    """One scan of a folder.

    Attributes:
        name: Its name, unique in the folder, and safe as the name of a folder.
        paths: Its file or sub-folder; or its files, one for each channel.
    """

    name: str
    paths: tuple[Path, ...]

    def fingerprint(self) -> str:
        """Identifies the files by name, size and time of their last change, without reading them.

        Raises:
            InputNotFound, InputTooLarge: See `list_input`.
            OSError: A file cannot be found.
        """
        digest = hashlib.sha256()
        for path in self.paths:
            for file in list_input(path, max_bytes=sys.maxsize):
                status = file.stat()
                digest.update(os.fsencode(file.relative_to(path.parent)))
                digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    @contextmanager
    def source(self, work_path: Path | None) -> Iterator[Path]:
        """Yields the one path that a reader or an upload takes; for several channels a folder of links to the files.

        Args:
            work_path: The folder for temporary files; None: the system's.
        """
        if len(self.paths) == 1:
            yield self.paths[0]
            return
        with scratch_folder(work_path) as folder:
            for path in self.paths:
                for file in list_input(path, max_bytes=sys.maxsize):
                    (folder / file.name).symlink_to(file.absolute())
            yield folder


@dataclass(frozen=True)
class ScanFolder:
    """The content of a folder.

    Attributes:
        scans: Its scans, by name.
        others: Names of files that are no scans, such as tables. Hidden files are not among them.
    """

    scans: tuple[FolderScan, ...]
    others: tuple[str, ...]


def list_scans(folder: Path, *, channels: int | None = None, reserved: Sequence[str] = ()) -> ScanFolder:
    """Lists the scans of a folder.

    Each sub-folder is one scan, and each file, but a header and the file with its voxels are one. Files that differ in
    _0000, _0001 and so on alone, as nnU-Net numbers channels, are one if the numbers have no gap. Hidden entries and
    files with the endings of texts, tables and pictures are left out.

    Args:
        folder: The folder.
        channels: The number of the model's channels, if it is known: for a model of one channel no files belong
            together by their numbers.
        reserved: Names that no scan gets.

    Raises:
        InputNotFound: There is no such folder, or no scan in it.
        BadRequest: It is a file.
        MixedSeries: Several of its files are of one DICOM series.
    """
    if not folder.exists():
        raise InputNotFound("there is no such folder")
    if not folder.is_dir():
        raise BadRequest("--each takes a folder of scans, and this is a file")
    entries = [Path(entry) for entry in os.scandir(folder) if not entry.name.startswith((".", "__MACOSX"))]
    others = [path for path in entries if _is_other(path)]
    left_out = {path.name for path in others}
    scans = _without_data([path for path in entries if path.name not in left_out])
    if not scans:
        raise InputNotFound("the folder holds no scan: expected one file or sub-folder for each")
    _check_series([path for path in scans if path.is_file()])
    named = _named(_grouped(sorted(scans), channels), reserved)
    return ScanFolder(tuple(sorted(named, key=lambda scan: scan.name)), tuple(sorted(left_out)))


def _is_other(path: Path) -> bool:
    """True for a file that is no scan; a link that leads nowhere is one, so that it is not left out in silence."""
    if path.is_dir() or (path.is_symlink() and not path.exists()):
        return False
    return not path.is_file() or path.suffix.lower() in _OTHER_ENDINGS


def _without_data(paths: Sequence[Path]) -> list[Path]:
    """Leaves out files with the voxels of a header beside them."""
    data: set[str] = set()
    for path in paths:
        if not path.name.lower().removesuffix(".gz").endswith(".img"):
            data |= other_names(path.name)
    return [path for path in paths if path.is_dir() or path.name.lower() not in data]


def _grouped(paths: Sequence[Path], channels: int | None) -> list[tuple[str, tuple[Path, ...]]]:
    """Returns the name and the files of each scan; names may be equal."""
    numbered: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        if not path.is_dir() and (match := _NUMBERED.match(_stem(path))):
            numbered[match[1]][int(match[2])].append(path)
    groups: list[tuple[str, tuple[Path, ...]]] = []
    for name, files in numbered.items():
        complete = list(files) == list(range(len(files))) and all(len(each) == 1 for each in files.values())
        if complete and len(files) <= (1 if channels == 1 else MAX_CHANNELS):
            groups.append((name, tuple(each[0] for each in files.values())))
    together = {path for _, files in groups for path in files}
    return [*groups, *((_stem(path), (path,)) for path in paths if path not in together)]


def _named(groups: Sequence[tuple[str, tuple[Path, ...]]], reserved: Sequence[str]) -> Iterator[FolderScan]:
    """Gives each scan a name of its own: that of its file without the ending, or if that is taken the whole one."""
    short = Counter(_key(_safe(name)) for name, _ in groups)
    taken = {_key(name) for name in reserved}
    alone = {key for key, count in short.items() if count == 1} - taken
    taken |= alone
    for name, paths in groups:
        chosen = _safe(name)
        if _key(chosen) not in alone:
            whole = chosen = _safe(paths[0].name)
            number = 2
            while _key(chosen) in taken:
                chosen = f"{whole}-{number}"
                number += 1
            taken.add(_key(chosen))
        yield FolderScan(chosen, paths)


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else _SCAN_ENDING.sub("", path.name) or path.name


def _key(name: str) -> str:
    """Equal for names that some file systems do not tell apart."""
    return unicodedata.normalize("NFC", name).casefold()


def _safe(name: str) -> str:
    """Returns a name that is safe as the name of a folder.

    >>> _safe("-x:y."), _safe("Müller 12")
    ('_x_y_', 'Müller 12')
    """
    safe = _UNSAFE.sub("_", name)
    if len(safe.encode()) <= _MAX_NAME_BYTES:
        return safe
    mark = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f"{safe.encode()[: _MAX_NAME_BYTES - 9].decode(errors='ignore')}-{mark}"


def _check_series(files: Sequence[Path]) -> None:
    """Raises MixedSeries for slices side by side, of which each would be taken for a scan."""
    found: set[bytes] = set()
    for file in files:
        uid = _series_uid(file)
        if uid is not None and uid in found:
            raise MixedSeries(
                "several files of the folder are of one DICOM series: with --each, put each series into a sub-folder; "
                "one series alone needs no --each"
            )
        if uid is not None:
            found.add(uid)


def _series_uid(file: Path) -> bytes | None:
    """Returns the SeriesInstanceUID of a DICOM file in little endian; None for other files."""
    try:
        with file.open("rb") as stream:
            start = stream.read(_DICOM_START_BYTES)
    except OSError:
        return None  # the scan's own failure says so
    if start[_DICOM_PREAMBLE_BYTES : _DICOM_PREAMBLE_BYTES + 4] != b"DICM":
        return None
    match = _SERIES_UID.search(start)
    return match[1] if match else None
