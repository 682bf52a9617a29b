"""Finds the folder or file to give in place of a source that no importer recognises: one above it, or one in it."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from inference_service.core.errors import InputError
from inference_service.importers.monai.bundle import MonaiBundle
from inference_service.importers.nnunet.fields import one_line
from inference_service.importers.nnunet.model import KIND as NNUNET
from inference_service.importers.nnunet.results_folder import is_results_folder
from inference_service.importers.source_files import is_archive, is_checkpoint
from inference_service.importers.sources import Importer

# A file lies at most two folders below that of its model.
_LEVELS_ABOVE = 3
_LEVELS_BELOW = 4
_MAX_ENTRIES = 512
_SUFFIXES = (".zip", ".onnx", ".ts", ".pt")
_OTHER_ARCHIVES = (".tar", ".tgz", ".gz", ".xz", ".bz2", ".7z", ".rar")
# Files that are a part of a model, and what is missing beside them.
_PARTS = {
    "inference.json": "a config of a MONAI bundle, whose folder has it in configs/",
    "inference.yaml": "a config of a MONAI bundle, whose folder has it in configs/",
    "plans.pkl": "a file of nnU-Net 1; models of nnU-Net 2 can be imported",
    "plans.json": "a file of an nnU-Net results folder, which has folders fold_0, fold_1, … beside it",
    "dataset.json": "the description of nnU-Net's data; the models lie in nnUNet_results",
}


def hint(source: Path, importers: Sequence[Importer]) -> str:
    """Returns a clause with the folder or file to give in place of a source; empty if nothing is found.

    Args:
        source: A source that none of the importers recognises.
        importers: All importers.
    """
    path = Path(os.path.abspath(source))
    for folder in path.parents[:_LEVELS_ABOVE]:
        kind = NNUNET if is_results_folder(folder) else MonaiBundle.kind if MonaiBundle().recognises(folder) else None
        if kind is not None:
            return f". {path.name} is a part of the {kind} {folder.name}: give that folder"
    if found := _below(path, importers):
        names = one_line([each.relative_to(path).as_posix() for each in found])
        return f". It has {names}: give {'that' if len(found) == 1 else 'one of them'}"
    if is_checkpoint(path):
        return (
            f". {path.name} holds weights without their network: give the nnU-Net results folder or the MONAI bundle "
            "that it belongs to"
        )
    if path.is_file() and path.suffix.lower() in _OTHER_ARCHIVES:
        return f". {path.name} must be unpacked first: only zips are taken as they are"
    names_there = [each.name for each in _entries(path)] if path.is_dir() else [path.name]
    return next((f". {name} is {part}" for name, part in _PARTS.items() if name in names_there), "")


def _below(folder: Path, importers: Sequence[Importer]) -> list[Path]:
    """Sources in a folder: those of the first level that has any."""
    level = [folder]
    for _ in range(_LEVELS_BELOW):
        level = [child for each in level if each.is_dir() for child in _entries(each)][:_MAX_ENTRIES]
        if found := [each for each in level if _is_source(each, importers)]:
            return found
    return []


def _is_source(path: Path, importers: Sequence[Importer]) -> bool:
    with suppress(InputError, OSError):
        if path.is_file() and path.suffix.lower() not in _SUFFIXES:
            return False
        return is_archive(path) or any(importer.recognises(path) for importer in importers)
    return False


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:_MAX_ENTRIES]
    except OSError:
        return []
