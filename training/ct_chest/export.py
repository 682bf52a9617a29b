"""Writes `model.onnx` and `manifest.json` of trained weights: `python -m training.ct_chest.export`.

The exported network runs beside PyTorch, and the export fails where the two disagree.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from training.ct_chest.feed import CLIP_HU, SPACING_MM, WINDOW, normalised
from training.ct_chest.labels import BONE, NAMES
from training.ct_chest.manifest import manifest_text
from training.ct_chest.network import UNet
from training.ct_chest.seeds import FIRST_HELD_BACK_SEED
from training.ct_chest.synthetic.generator import make_example
from training.ct_chest.weights import BIAS, BONE_LOGIT, parameters_of

# Bound the difference of two float32 implementations: of logits, as a share of the largest; of labels.
TOLERANCE = 1e-4
MIN_SAME_LABELS = 0.9999
# Old enough for ONNX Runtime 1.18 and for the TensorRT and OpenVINO releases of its time.
OPSET = 17

_SEED = FIRST_HELD_BACK_SEED + 100


class Agreement(NamedTuple):
    """Agreement of ONNX Runtime with PyTorch.

    Attributes:
        difference: The largest difference of any logit, as a share of the largest logit.
        same_labels: Share of voxels whose largest logit is the same label's.
    """

    difference: float
    same_labels: float


def export(network: UNet, path: Path) -> Agreement:
    """Writes the network as ONNX with a free batch size, and runs it beside PyTorch.

    Raises:
        ValueError: Their logits or labels differ by more than the tolerances.
    """
    network.eval()
    volume = torch.from_numpy(_volumes())
    free = {"volume": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(
        network,
        (volume[:1],),
        path,
        dynamo=False,
        opset_version=OPSET,
        input_names=["volume"],
        output_names=["logits"],
        dynamic_axes=free,
    )
    onnx.checker.check_model(onnx.load(path), full_check=True)
    with torch.inference_mode():
        expected = network(volume).numpy()
    (found,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"volume": volume.numpy()})
    agreement = Agreement(
        float(np.abs(found - expected).max() / np.abs(expected).max()),
        float(np.mean(found.argmax(1) == expected.argmax(1))),
    )
    if not (agreement.difference <= TOLERANCE and agreement.same_labels >= MIN_SAME_LABELS):
        raise ValueError(f"expected the logits of PyTorch, within {TOLERANCE} and {MIN_SAME_LABELS}, got {agreement}")
    return agreement


def _means(weights: dict[str, torch.Tensor], parameters: dict[str, NDArray[np.float32]]) -> dict[str, torch.Tensor]:
    """Averages the weights of a network and one trained from it, after M. Wortsman et al., "Model soups", ICML 2022.

    Raises:
        ValueError: The parameters are of another network.
    """
    ours = {name: tuple(weights[name].shape) for name in parameters if name in weights}
    if ours != {name: values.shape for name, values in parameters.items()}:
        raise ValueError(
            "the weights to average are those of another network: expected parameters of the same names and shapes"
        )
    return {name: (weights[name] + torch.from_numpy(values)) / 2 for name, values in parameters.items()}


def _volumes() -> NDArray[np.float32]:
    """The middle of a synthetic chest and noise, shape (2, 1, *WINDOW), as the network sees them."""
    chest = make_example(_SEED, SPACING_MM).hu
    around = np.pad(chest, [(wanted // 2, wanted // 2) for wanted in WINDOW], constant_values=int(CLIP_HU[0]))
    middle = tuple(slice(size // 2, size // 2 + wanted) for size, wanted in zip(chest.shape, WINDOW, strict=True))
    noise = np.random.default_rng(_SEED).uniform(*CLIP_HU, WINDOW).astype(np.float32)
    return normalised(np.stack([around[middle].astype(np.float32), noise])[:, np.newaxis])


def main() -> None:
    """Writes both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument(
        "--mean-with", type=Path, help="an exported model.onnx, to write the mean of its weights and these"
    )
    parser.add_argument("--folder", type=Path, required=True, help="where both files are written")
    arguments = parser.parse_args()
    weights = torch.load(arguments.weights, weights_only=True)
    if arguments.mean_with:
        weights |= _means(weights, parameters_of(arguments.mean_with))
    network = UNet(len(NAMES))
    network.load_state_dict(weights)
    with torch.no_grad():
        network.get_parameter(BIAS)[BONE] += BONE_LOGIT
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "model.onnx"
    print(export(network, path))  # noqa: T201
    (arguments.folder / "manifest.json").write_text(manifest_text(path.read_bytes()), encoding="utf-8")


if __name__ == "__main__":
    main()
