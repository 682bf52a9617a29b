"""Segments a scan as nnU-Net does: its own preprocessing, windows and export, with networks built from the plans."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolated.nnunet_network import Arguments, nnunet_network
from inference_service.importers.isolated.report import tell_progress

# Every reader writes it, whatever the scan's own format is.
_ENDING = ".nii.gz"


def run_nnunet(task: Arguments) -> dict[str, object]:
    """Segments a scan with the networks of a results folder.

    Args:
        task: `stages`, from `nnunet.model`, the first stage of a cascade first; `mirroring`, whether mirrored windows
            are averaged; `postprocessing`, lists of labels that keep their largest component; `scans`, a path for each
            channel; and `target`, the path of the mask.

    Raises:
        ModelInvalid: nnU-Net does not read the scan.
    """
    target = Path(str(task["target"]))
    scans = [str(scan) for scan in cast("Sequence[object]", task["scans"])]
    stages = cast("Sequence[Mapping[str, Any]]", task["stages"])
    labels: Path | None = None
    for number, stage in enumerate(stages):
        tell_progress(f"running {stage['configuration']}", number / len(stages))
        predictor = _predictor(stage, mirroring=bool(task["mirroring"]))
        result = target.with_name(f"{target.stem}-{number}{_ENDING}")
        _predict(predictor, scans, labels, result)
        labels = result
    mask = np.asarray(nibabel.nifti1.load(cast("Path", labels)).dataobj)
    for values in cast("Sequence[Sequence[int]]", task["postprocessing"]):
        mask = remove_all_but_largest_component_from_segmentation(mask, list(values))
    np.save(str(target), mask)
    return {"shape": list(mask.shape)}


def _predictor(stage: Mapping[str, Any], *, mirroring: bool) -> nnUNetPredictor:
    """nnU-Net's predictor with its defaults. It is not asked to find the trainer's class, whose module it would run."""
    folder = Path(stage["folder"])
    plans = PlansManager(json.loads((folder / "plans.json").read_bytes()))
    dataset = {**json.loads((folder / "dataset.json").read_bytes()), "file_ending": _ENDING}
    networks = [nnunet_network(arguments) for arguments in stage["networks"]]
    predictor = nnUNetPredictor(
        use_mirroring=mirroring, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.manual_initialization(
        networks[0],
        plans,
        plans.get_configuration(stage["configuration"]),
        [network.state_dict() for network in networks],
        dataset,
        stage["trainer"],
        tuple(stage["mirror_axes"]) or None,
    )
    return predictor


def _predict(predictor: nnUNetPredictor, scans: Sequence[str], previous: Path | None, target: Path) -> None:
    """Does what nnU-Net's predict_from_files_sequential does for one scan."""
    configuration, plans = predictor.configuration_manager, predictor.plans_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    before = None if previous is None else str(previous)
    try:
        data, labels, properties = preprocessor.run_case(scans, before, plans, configuration, predictor.dataset_json)
    except RuntimeError as error:
        if "memory" in str(error):
            raise
        raise ModelInvalid(f"nnU-Net does not read the scan: {str(error).strip().splitlines()[0][:200]}") from error
    if previous is not None:
        foreground = predictor.label_manager.foreground_labels
        data = np.vstack((data, convert_labelmap_to_one_hot(labels[0], foreground, data.dtype)))
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).cpu()
    export_prediction_from_logits(
        logits, properties, configuration, plans, predictor.dataset_json, str(target).removesuffix(_ENDING)
    )
