"""Segments a scan as TotalSegmentator does: by its own Python interface, which gets no access to the network."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from inference_service.core.errors import BadRequest, ModelInvalid
from inference_service.importers.isolated import Arguments
from inference_service.importers.isolated.checkpoints import load_checkpoint
from inference_service.importers.isolated.nnunet_plans import CheckedPlans
from inference_service.importers.isolated.report import WindowProgress, tell_progress

_CONFIG = {"totalseg_id": "", "send_usage_stats": False, "prediction_counter": 0, "statistics_disclaimer_shown": True}


def run_totalsegmentator(task: Arguments) -> dict[str, object]:
    """Segments a scan with weights that are there.

    Args:
        task: `results`, the results folder of each data set by its name, of those that the scan is cropped by too;
            `task`, `mode` (fast, fastest or null) and `roi` as TotalSegmentator takes them; `scans`, the path of the
            only scan; and `target`, the path of the mask.

    Raises:
        BadRequest: Weights are missing.
        ModelInvalid: TotalSegmentator refuses the scan.
    """
    target = Path(str(task["target"]))
    home = target.with_name("totalsegmentator")
    results = cast("Mapping[str, str]", task["results"])
    tell_progress("loading TotalSegmentator", 0.0)
    _write_home(home, results)
    run = _interface(home / "weights", len(results))
    (scan,) = cast("Sequence[object]", task["scans"])
    try:
        result = run(
            str(scan),
            str(home / "mask.nii.gz"),
            ml=True,
            task=str(task["task"]),
            fast=task["mode"] == "fast",
            fastest=task["mode"] == "fastest",
            roi_subset=[str(label) for label in cast("Sequence[object]", task["roi"])] or None,
            device="cpu",
            nr_thr_saving=1,
            quiet=True,
        )
    except KeyError as error:
        raise BadRequest(f"TotalSegmentator does not have the label {error}") from error
    except SystemExit as error:
        raise ModelInvalid("TotalSegmentator refuses to run; some of its tasks need a licence number") from error
    mask = np.asarray(result.dataobj)
    np.save(str(target), mask)
    return {"shape": list(mask.shape)}


def _write_home(home: Path, results: Mapping[str, str]) -> None:
    """Writes a folder of weights, and a config by which TotalSegmentator reports nothing."""
    weights = home / "weights"
    expected = _folder_names()
    for dataset, folder in results.items():
        (weights / dataset).mkdir(parents=True)
        (weights / dataset / expected.get(dataset, Path(folder).name)).symlink_to(folder)
    (home / "config.json").write_text(json.dumps(_CONFIG))
    os.environ["TOTALSEG_HOME_DIR"] = str(home)
    os.environ["TOTALSEG_WEIGHTS_PATH"] = str(weights)


def _folder_names() -> dict[str, str]:
    """The name of the results folder that TotalSegmentator looks for in each data set: with its trainer."""
    try:
        from totalsegmentator.map_tasks_config import DEFAULT_CONFIG, TASK_CONFIGS, TASK_ID_WEIGHTS_CONFIGS
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    names: dict[str, str] = {}
    for task in TASK_CONFIGS.values():
        for mode in task.get("sub_modes", {"default": task}).values():
            config = {**DEFAULT_CONFIG, **mode}
            name = f"{config['trainer']}__{config['plans'] or 'nnUNetPlans'}__{config['model']}"
            for number in config["task_id"] if isinstance(config["task_id"], list) else [config["task_id"]]:
                # Some tasks have no weights that could be downloaded.
                names.setdefault(str(TASK_ID_WEIGHTS_CONFIGS.get(number, {}).get("foldername")), name)
    return names


def _missing(error: ModuleNotFoundError) -> BadRequest:
    return BadRequest(f"{error.name} is not installed: the model is compared with the package TotalSegmentator")


def _interface(weights: Path, parts: int) -> Callable[..., Any]:
    """TotalSegmentator's function, which neither downloads, reports nor runs code of the weights.

    Args:
        weights: The folder of weights.
        parts: The number of networks that run, for the progress.
    """
    try:
        import totalsegmentator.nnunet as runs
        import totalsegmentator.python_api as interface
        from totalsegmentator.map_tasks_config import TASK_ID_WEIGHTS_CONFIGS
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    def require(task_id: int) -> None:
        name = str(TASK_ID_WEIGHTS_CONFIGS[task_id]["foldername"])
        if not (weights / name).is_dir():
            raise BadRequest(f"TotalSegmentator needs {name} for this comparison, which the source does not have")

    def send_nothing(config: object, params: object) -> None:
        """Takes the place of TotalSegmentator's usage statistics."""

    def load(path: str, **_: object) -> object:
        """Loads a checkpoint. Those that the import did not read may hold more than weights, or be missing."""
        if not Path(path).is_file():
            place = "/".join(Path(path).parts[-2:])
            raise BadRequest(f"TotalSegmentator needs {place} for this comparison, which the source does not have")
        return load_checkpoint(Path(path), loader=safe_load)

    safe_load = torch.load
    torch.load = load
    interface.download_pretrained_weights = require
    interface.send_usage_stats = send_nothing
    predictor = runs.nnunet_predict_from_raw_data
    predictor.recursive_find_trainer_class_by_name = lambda name: nnUNetTrainer
    predictor.PlansManager = CheckedPlans
    predictor.tqdm = WindowProgress("running TotalSegmentator", 0.1, 0.9, parts)
    return cast("Callable[..., Any]", interface.totalsegmentator)
