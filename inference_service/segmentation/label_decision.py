"""Decides the label of each voxel from its logits. Pure numerics."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray


def decide_labels(
    logits: NDArray[np.float32],
    *,
    activation: Literal["softmax", "sigmoid"],
    values: Sequence[int],
    dtype: type[np.unsignedinteger],
) -> NDArray[np.unsignedinteger]:
    """Decides labels from logits.

    Args:
        logits: Shape (labels, ...).
        activation: For "softmax", the channel with the highest logit decides, the first of equal ones; for "sigmoid",
            the last channel whose probability is above one half.
        values: The label of each channel.
        dtype: Unsigned integer type that holds the labels.

    Returns:
        Labels, shape (...); 0 where no channel of a sigmoid is above one half.

    >>> logits = np.array([[5, 1, -1], [2, 1, -2]], dtype=np.float32)
    >>> decide_labels(logits, activation="softmax", values=(0, 7), dtype=np.uint8).tolist()
    [0, 0, 0]
    >>> decide_labels(logits, activation="sigmoid", values=(3, 7), dtype=np.uint8).tolist()
    [7, 7, 0]
    """
    # Of the channels that qualify, the one with the highest rank decides. No branch depends on the values, so that
    # noise takes no longer than smooth logits.
    if activation == "sigmoid":
        qualify = logits > 0
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
