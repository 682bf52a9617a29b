"""Finds TotalSegmentator's data sets in a source, as its releases and its own folder of weights have them."""

from collections.abc import Mapping
from pathlib import Path

from inference_service.importers.nnunet.results_folder import find_folders
from inference_service.importers.source_files import unpack_named
from inference_service.importers.totalsegmentator.tasks import is_dataset

_ZIP = ".zip"


def find_datasets(source: Path) -> Mapping[str, Path]:
    """Finds the data sets of TotalSegmentator in a source.

    Args:
        source: The folder of a data set, a results folder in it, or a folder with folders or zips of several.

    Returns:
        The folder or zip of each data set, by its name; empty where the source has none.
    """
    if not source.is_dir():
        return {}
    source = source.resolve()
    if is_dataset(source.name):
        return {source.name: source}
    if is_dataset(source.parent.name) and find_folders(source):
        return {source.parent.name: source}
    found = {path.stem: path for path in sorted(source.glob(f"*{_ZIP}")) if path.is_file() and is_dataset(path.stem)}
    return found | {path.name: path for path in sorted(source.iterdir()) if path.is_dir() and is_dataset(path.name)}


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
