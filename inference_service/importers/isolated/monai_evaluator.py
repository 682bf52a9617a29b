"""Runs a bundle as MONAI does: its own transforms and inferer, made by MONAI from its config."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch, list_data_collate
from monai.inferers import utils as window_module
from numpy.typing import NDArray

from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolated import Arguments
from inference_service.importers.isolated.builders import build
from inference_service.importers.isolated.report import WindowProgress, tell_progress


def run_bundle(task: Arguments) -> dict[str, object]:
    """Segments a scan with a bundle.

    Args:
        task: `config`, from `monai.reference`; `builder` and `network` as in `build`; `images`, keys of the network's
            input; `outputs`, as in a manifest; `scans`, a path for each channel; `target`, the path of the mask; and
            `logits`, a path for the network's output, if it is wanted.
    """
    parser = ConfigParser(cast("dict[str, Any]", task["config"]))
    tell_progress("loading", 0.0)
    network = build(str(task["builder"]), cast("Arguments", task["network"]))
    preprocessing, inferer, postprocessing = map(
        parser.get_parsed_content, ("preprocessing", "inferer", "postprocessing")
    )
    tell_progress("preparing", 0.1)
    scans = [str(path) for path in cast("Sequence[str]", task["scans"])]
    images = [str(key) for key in cast("Sequence[str]", task["images"])]
    item = (
        dict(zip(images, scans, strict=True)) if len(images) > 1 else {images[0]: scans if len(scans) > 1 else scans[0]}
    )
    batch = list_data_collate([preprocessing(item)])
    image = batch["image" if "image" in batch else images[0]]
    # An inferer without windows ignores it.
    inferer.progress = True
    window_module.tqdm = WindowProgress("running the network", 0.2, 0.9)
    with torch.inference_mode():
        batch["pred"] = inferer(image.float(), network)
    if task.get("logits"):
        np.save(str(task["logits"]), np.asarray(batch["pred"])[0])
        np.save(f"{task['logits']}.image.npy", np.asarray(image)[0])
    tell_progress("postprocessing", 0.9)
    prediction = postprocessing(decollate_batch(batch)[0])["pred"]
    mask = _labels(np.asarray(prediction), cast("Sequence[Mapping[str, Any]]", task["outputs"]))
    np.save(str(task["target"]), mask)
    return {"shape": list(mask.shape)}


def _labels(prediction: NDArray[np.float32], outputs: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    """The labels (i, j, k) of a prediction (channels, i, j, k): one channel of labels, or one of 0 and 1 for each."""
    if prediction.shape[0] == 1 and not (len(outputs) == 1 and outputs[0].get("value") != 1):
        return np.asarray(prediction[0])
    if prediction.shape[0] != len(outputs):
        raise ModelInvalid(f"the bundle gives {prediction.shape[0]} channels where {len(outputs)} were expected")
    mask = np.zeros(prediction.shape[1:], dtype=np.float32)
    for output in outputs:
        if output.get("value") is not None:
            mask[prediction[output["channel"]] > 0] = output["value"]
    return mask
