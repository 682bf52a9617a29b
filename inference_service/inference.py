"""The sliding window: a network run over a volume in overlapping windows, its logits blended and streamed out.

Memory holds the logits of one window's depth, not of the whole volume: planes that no later window
touches leave at once.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference_service.manifest import Manifest
from inference_service.windows import WindowPlan, importance


class Network(Protocol):
    """What the engine needs of a loaded model."""

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turns windows (batch, channels, *window) into logits (batch, labels, *window)."""


def stream_logits(
    image: NDArray[np.float32],
    network: Network,
    manifest: Manifest,
    plan: WindowPlan,
    *,
    on_window: Callable[[int], None] = lambda done: None,
) -> Iterator[NDArray[np.float32]]:
    """Runs the network over an image.

    Args:
        image: Shape (i, j, k), on the model's grid and normalised.
        network: The loaded model.
        manifest: Says window, blending, labels and padding.
        plan: Where the windows lie.
        on_window: Called after each window with the number of windows done; what it raises ends the run.

    Yields:
        The blended logits of each plane along the plan's axis in order: shape (labels, h, w), h and w in array order.
    """
    if any(before or after for before, after in plan.pads):
        image = np.pad(image, plan.pads, constant_values=manifest.padding_value)
    inside = [range(before, size - after) for (before, after), size in zip(plan.pads, image.shape, strict=True)]
    inside_h, inside_w = (slice(inside[axis].start, inside[axis].stop) for axis in plan.axes[1:])
    for index, plane in enumerate(_stream_padded(image, network, manifest, plan, on_window)):
        if index in inside[plan.axis]:
            yield plane[:, inside_h, inside_w]


def _stream_padded(
    image: NDArray[np.float32],
    network: Network,
    manifest: Manifest,
    plan: WindowPlan,
    on_window: Callable[[int], None],
) -> Iterator[NDArray[np.float32]]:
    """Everything here but what the network sees has the plan's axis first: (labels, d, h, w)."""
    axis = plan.axis
    weights = np.moveaxis(importance(manifest.window, manifest.blending), axis, 0)
    image = np.moveaxis(image, axis, 0)
    depth, height, width = weights.shape
    deep, high, wide = (plan.starts[of] for of in plan.axes)
    logits = np.zeros((len(manifest.labels), depth, *image.shape[1:]), dtype=np.float32)
    total_weight = np.zeros((depth, *image.shape[1:]), dtype=np.float32)
    done = 0
    for start, following in zip(deep, [*deep[1:], image.shape[0]], strict=True):
        for top, left in product(high, wide):
            rows, columns = slice(top, top + height), slice(left, left + width)
            window = np.moveaxis(image[start : start + depth, rows, columns], 0, axis)
            result = network.run(np.ascontiguousarray(window)[np.newaxis, np.newaxis])[0]
            logits[:, :, rows, columns] += np.moveaxis(result, axis + 1, 1) * weights
            total_weight[:, rows, columns] += weights
            done += 1
            on_window(done)
        leaving = following - start
        yield from np.moveaxis(logits[:, :leaving] / total_weight[:leaving], 1, 0)
        for held in (np.moveaxis(logits, 1, 0), total_weight):
            held[: depth - leaving] = held[leaving:]
            held[depth - leaving :] = 0


def labels_from_logits(
    logits: NDArray[np.float32], manifest: Manifest, dtype: type[np.unsignedinteger]
) -> NDArray[np.unsignedinteger]:
    """Decides the label of each voxel.

    Args:
        logits: Shape (labels, h, w).
        manifest: Says the activation and each channel's label.
        dtype: What holds the label values.

    Returns:
        Shape (h, w). For softmax the label of the highest channel, the first of equals; for sigmoid the last of the
        labels above one half, 0 where there is none.
    """
    values = [label.value for label in manifest.labels]
    if manifest.activation == "sigmoid":
        labels = np.zeros(logits.shape[1:], dtype=dtype)
        for channel, value in zip(logits, values, strict=True):
            labels[channel > 0] = value
        return labels
    labels = np.full(logits.shape[1:], values[0], dtype=dtype)
    highest = logits[0].copy()
    for channel, value in zip(logits[1:], values[1:], strict=True):
        np.copyto(labels, value, where=channel > highest)
        np.maximum(highest, channel, out=highest)
    return labels
