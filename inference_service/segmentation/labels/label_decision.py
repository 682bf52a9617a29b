"""Decides the label of each voxel from its logits or probabilities. Pure numerics."""

from collections.abc import Sequence
from math import log

import numpy as np
from numpy.typing import NDArray

from inference_service.contract.part import OutputChannel, Part


def decide_labels(
    logits: NDArray[np.float32], part: Part, *, values: Sequence[int], dtype: type[np.unsignedinteger]
) -> NDArray[np.unsignedinteger]:
    """Decides labels from the values of output channels.

    Args:
        logits: Shape (channels, ...); probabilities if `gives_probabilities(part)`.
        part: For "softmax", the output with the highest value decides, the channel with the lowest number of equal
            ones; for "sigmoid", the last output whose probability is above its threshold. Outputs without a value are
            left out.
        values: The label of each output, in the order of `deciding_outputs(part)`.
        dtype: Unsigned integer type that holds the labels.

    Returns:
        Labels, shape (...); 0 where no channel of a sigmoid is above its threshold.
    """
    outputs = deciding_outputs(part)
    channels = [output.channel for output in outputs]
    if channels != list(range(len(logits))):
        logits = logits[channels]
    # Of the outputs that qualify, the one with the highest rank decides. No branch depends on the values, so that
    # noise takes no longer than smooth logits.
    if part.activation == "sigmoid":
        qualify = logits > _thresholds(outputs, part).reshape(-1, *[1] * (logits.ndim - 1))
        by_rank = np.array([0, *values], dtype=dtype)
        ranks = np.arange(1, len(by_rank))
    else:
        qualify = logits == logits.max(axis=0)
        by_rank = np.array(values, dtype=dtype)[::-1]
        ranks = np.arange(len(by_rank))[::-1]
    ranks = ranks.astype(np.min_scalar_type(len(by_rank))).reshape(-1, *[1] * (logits.ndim - 1))
    ranked = qualify.view(np.uint8) * ranks
    labels: NDArray[np.unsignedinteger] = by_rank.take(ranked.max(axis=0))
    return labels


def deciding_outputs(part: Part) -> list[OutputChannel]:
    """Returns the outputs that have a value, in the order of their rank: that of their channels for a softmax."""
    outputs = [output for output in part.outputs if output.value is not None]
    return outputs if part.activation == "sigmoid" else sorted(outputs, key=lambda output: output.channel)


def gives_probabilities(part: Part) -> bool:
    """Returns True if labels are decided from probabilities, because these are averaged or interpolated."""
    return "probabilities" in (part.average, part.interpolate)


def probabilities(logits: NDArray[np.float32], part: Part, *, axis: int) -> NDArray[np.float32]:
    """Applies the activation of a part.

    Args:
        logits: Any shape; changed in place.
        part: Gives the activation.
        axis: The axis of the channels.

    Returns:
        The same array.
    """
    if part.activation == "sigmoid":
        # Exponentials of negative values alone, which cannot overflow.
        small = np.exp(-np.abs(logits))
        np.divide(np.where(logits >= 0, np.float32(1), small), 1 + small, out=logits)
        return logits
    logits -= logits.max(axis=axis, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=axis, keepdims=True)
    return logits


def background_value(part: Part) -> float:
    """Returns the value of all output channels that stands for background: 0 (MONAI), or less where 0 is a label."""
    thresholds = _thresholds(part.outputs, part) if part.activation == "sigmoid" else ()
    return min([0.0, *map(float, thresholds)])


def _thresholds(outputs: Sequence[OutputChannel], part: Part) -> NDArray[np.float32]:
    """The threshold of each output, as a logit unless the values are probabilities; 0.5 is exactly the logit 0."""
    thresholds = [output.threshold for output in outputs]
    if gives_probabilities(part):
        return np.array(thresholds, dtype=np.float32)
    return np.array([log(threshold / (1 - threshold)) for threshold in thresholds], dtype=np.float32)
