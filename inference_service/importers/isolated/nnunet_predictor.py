"""Segments a scan as nnU-Net does: its own preprocessing, windows and export, with networks built from the plans."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import torch
from nnunetv2.inference import predict_from_raw_data as window_module
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolated import Arguments
from inference_service.importers.isolated.nnunet_network import nnunet_network
from inference_service.importers.isolated.nnunet_plans import CheckedPlans
from inference_service.importers.isolated.report import WindowProgress, tell_progress

# Every reader writes it, whatever the scan's own format is.
_ENDING = ".nii.gz"
# The share of a stage at which its windows begin, and at which they end.
_WINDOWS = (0.1, 0.8)


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
        progress = _StageProgress(str(stage["configuration"]), number, len(stages))
        predictor = _predictor(stage, mirroring=bool(task["mirroring"]))
        result = target.with_name(f"{target.stem}-{number}{_ENDING}")
        _predict(predictor, scans, labels, result, progress)
        labels = result
    mask = np.asarray(nibabel.nifti1.load(cast("Path", labels)).dataobj)
    for values in cast("Sequence[Sequence[int]]", task["postprocessing"]):
        mask = remove_all_but_largest_component_from_segmentation(mask, list(values))
    np.save(str(target), mask)
    return {"shape": list(mask.shape)}


def _predictor(stage: Mapping[str, Any], *, mirroring: bool) -> nnUNetPredictor:
    """nnU-Net's predictor with its defaults. It is not asked to find the trainer's class, whose module it would run."""
    folder = Path(stage["folder"])
    plans = CheckedPlans(json.loads((folder / "plans.json").read_bytes()))
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


@dataclass(frozen=True)
class _StageProgress:
    """Tells the parent how far a stage is.

    Attributes:
        configuration: Its name.
        number: Its number, from 0 on.
        count: The number of all stages.
    """

    configuration: str
    number: int
    count: int

    def tell(self, activity: str, share: float) -> None:
        """Tells the share of the stage that is done, 0…1."""
        tell_progress(f"{activity} {self.configuration}", (self.number + share) / self.count)

    def windows(self, passes: int) -> WindowProgress:
        """Begins the windows."""
        start, stop = ((self.number + share) / self.count for share in _WINDOWS)
        return WindowProgress(f"running {self.configuration}", start, stop, passes)


def _predict(
    predictor: nnUNetPredictor, scans: Sequence[str], previous: Path | None, target: Path, progress: _StageProgress
) -> None:
    """Does what nnU-Net's predict_from_files_sequential does for one scan."""
    progress.tell("preparing the scan for", 0.0)
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
    window_module.tqdm = progress.windows(passes=len(predictor.list_of_parameters))
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).cpu()
    progress.tell("deciding the labels of", _WINDOWS[1])
    export_prediction_from_logits(
        logits, properties, configuration, plans, predictor.dataset_json, str(target).removesuffix(_ENDING)
    )
