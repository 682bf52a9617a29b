"""Imports models from other projects' files, and keeps the predictors of their sources."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from benchmarks.measurement import ImportedKind
from benchmarks.monai_bundle import write_monai_bundle
from benchmarks.networks import UNet
from benchmarks.nnunet_folder import write_nnunet_folder
from benchmarks.workspace import Workspace
from inference_service.core.settings import Settings
from inference_service.importers.isolation import no_progress
from inference_service.importers.model_import import import_model
from inference_service.importers.request import ImportRequest


def import_source(kind: ImportedKind, unet: UNet, weights: Path, workspace: Workspace) -> None:
    """Writes a source with the weights of a network, and imports it.

    Raises:
        ValueError: The source has no predictor of its own.
    """
    source = workspace.imported_source(kind)
    if kind == "nnunet":
        write_nnunet_folder(source, unet, weights)
    else:
        write_monai_bundle(source, unet)
    request = ImportRequest(source, name=kind, version="1", licence="Apache-2.0")
    imported = import_model(request, Settings(models_path=workspace.models), no_progress)
    reference = imported.model.reference
    if reference is None:
        raise ValueError(f"a {imported.model.kind} has no predictor of its own")
    workspace.reference(kind).write_text(json.dumps(asdict(reference), default=os.fspath), encoding="utf-8")
