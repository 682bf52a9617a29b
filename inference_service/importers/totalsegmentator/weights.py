"""Finds TotalSegmentator's data sets in a source, as its releases and its own folder of weights have them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from inference_service.core.errors import BadRequest, InputError, ServiceError
from inference_service.formats.archives.zip_archive import opened_zip, require_readable
from inference_service.importers.nnunet.fields import MAX_BYTES, Fields, one_line, parse_json, read_json
from inference_service.importers.nnunet.results_folder import DATASET_FILE, PLANS_FILE, find_folders
from inference_service.importers.source_files import unpack_named
from inference_service.importers.totalsegmentator.tasks import is_dataset, is_distinct, label_count

_ZIP = ".zip"
_MAX_PLANS = 8
# The keys under which nnU-Net's files name the data set.
_NAMES = {PLANS_FILE: "dataset_name", DATASET_FILE: "name"}


@dataclass(frozen=True)
class Weights:
    """The data sets in a source.

    Attributes:
        places: The folders or zips of each data set of TotalSegmentator, by its name.
        others: Names of other data sets of nnU-Net.
    """

    places: Mapping[str, Sequence[Path]]
    others: Sequence[str]

    def datasets(self, *, chosen: bool) -> Mapping[str, Path]:
        """Returns the folder or zip of each data set of TotalSegmentator.

        Args:
            chosen: Whether a task is asked for, so that other data sets do not matter.

        Raises:
            BadRequest: The source has other data sets too, or one of them twice.
        """
        if self.places and self.others and not chosen:
            raise BadRequest(
                f"the source has data sets of TotalSegmentator ({one_line(sorted(self.places))}) and others of nnU-Net "
                f"({one_line(self.others)}): choose a task of TotalSegmentator by --task, or give the folder of one "
                "data set"
            )
        for name, places in self.places.items():
            if len(places) > 1:
                found = one_line([place.name for place in places])
                raise BadRequest(f"the source has the data set {name} more than once ({found}): give one of them")
        return {name: place for name, (place,) in self.places.items()}


def find_weights(source: Path) -> Weights:
    """Finds the data sets in a source.

    A data set is TotalSegmentator's if the name of its folder or zip says so, or else its plans.json or dataset.json,
    unless it has another number of labels.

    Args:
        source: The folder of a data set, a results folder in it, or a folder with folders or zips of several.
    """
    places: dict[str, list[Path]] = {}
    others: list[str] = []
    for name, place in _named(Path(os.path.abspath(source))):
        if name is None:
            others.append(place.name)
        elif place not in places.setdefault(name, []):
            places[name].append(place)
    return Weights(places, sorted(set(others)))


def opened(dataset: str, path: Path, scratch: Path) -> Path:
    """Returns the folder of a data set, unpacked if it is a zip.

    Args:
        dataset: Its name.
        path: Its folder or zip.
        scratch: A folder for the content of a zip.

    Raises:
        InputTooLarge, InputCorrupt, UnsupportedFormat: The zip cannot be unpacked within the limits.
    """
    if path.is_dir():
        return path
    folder = scratch / "weights" / dataset
    folder.parent.mkdir(exist_ok=True)
    unpack_named(path, folder)
    return folder


def _named(source: Path) -> Iterator[tuple[str | None, Path]]:
    """The folder or zip of each data set, with its name if it is TotalSegmentator's."""
    folders = [folder.path for folder in find_folders(source)]
    names = {folder: _first(_stated(folder)) for folder in folders}
    for folder, name in names.items():
        beside = {each for path, each in names.items() if path.parent == folder.parent}
        # Results folders of several data sets may lie in one folder.
        yield name, folder if folder == source or len(beside) > 1 else folder.parent
    for path in sorted(source.glob(f"*{_ZIP}")) if source.is_dir() else ():
        if is_dataset(path.stem) and path.is_file():
            yield path.stem, path
            continue
        with suppress(InputError):
            if path.is_file() and (found := _of_zip(path)) is not None:
                yield _first(found), path


def _first(names: Sequence[str]) -> str | None:
    """The first name that is one of TotalSegmentator's data sets."""
    return next((name for name in names if is_dataset(name)), None)


def _stated(folder: Path) -> list[str]:
    """The names of the data set by the folder of a results folder and by its files, which may be damaged.

    Plans that were copied for another training keep the name, but not the number of labels. Nor has a data set of other
    people that is called as one of TotalSegmentator's.
    """
    files = {}
    for file in _NAMES:
        with suppress(ServiceError):
            files[file] = read_json(folder / file)
    labels = files[DATASET_FILE].values.get("labels") if DATASET_FILE in files else None
    count = len(labels) - 1 if isinstance(labels, dict) else None
    names = [name for file, fields in files.items() for name in _text(fields, _NAMES[file])]
    fitting = [
        name
        for name in [folder.parent.name, *names]
        if None in (count, label_count(name)) or count == label_count(name)
    ]
    # A wrong number of labels is refused later where the folder's name leaves no doubt.
    return [folder.parent.name, *fitting] if is_distinct(folder.parent.name) else fitting


def _of_zip(path: Path) -> list[str] | None:
    """The names of the data set by the folders in a zip and by its plans; None if it has no plans.

    Raises:
        InputCorrupt, UnsupportedFormat: It is damaged or encrypted.
    """
    with opened_zip(path) as archive:
        plans = [entry for entry in archive.infolist() if PurePosixPath(entry.filename).name == PLANS_FILE]
        found = [name for entry in plans[:_MAX_PLANS] for name in PurePosixPath(entry.filename).parts[:-1]]
        for entry in plans[:_MAX_PLANS]:
            require_readable(entry)
            with archive.open(entry) as file, suppress(ServiceError):
                found += _text(parse_json(file.read(MAX_BYTES), PLANS_FILE), _NAMES[PLANS_FILE])
    return found if plans else None


def _text(fields: Fields, key: str) -> list[str]:
    value = fields.values.get(key)
    return [value] if isinstance(value, str) else []
