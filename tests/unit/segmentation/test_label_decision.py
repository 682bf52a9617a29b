from functools import partial

import numpy as np
import pytest

from inference_service.segmentation.label_decision import decide_labels


def test_softmax_takes_the_highest_logit_and_the_first_of_equal_ones() -> None:
    logits = np.array([[[1, 5, 2, 0, -9]], [[1, 5, 3, 0, -8]], [[0, 6, 3, 0, -7]]], dtype=np.float32)
    labels = decide_labels(logits, activation="softmax", values=(4, 300, 2), dtype=np.uint16)
    assert labels.tolist() == [[4, 2, 300, 4, 2]]
    assert labels.dtype == np.uint16


def test_sigmoid_takes_the_last_channel_above_one_half_or_0() -> None:
    logits = np.array([[[-1, 9, 9, -1, 0]], [[-1, -1, 1e-6, -1, 0]], [[-1, -1, -1, 5, 0]]], dtype=np.float32)
    labels = decide_labels(logits, activation="sigmoid", values=(5, 3, 1000), dtype=np.uint16)
    assert labels.tolist() == [[0, 5, 3, 1000, 0]]
    assert labels.dtype == np.uint16


@pytest.mark.parametrize("channels", [1, 2, 255, 256, 257, 300])
@pytest.mark.parametrize("shape", [(20, 30), (40,), (2, 3, 4), (0,)])
def test_labels_are_decided_for_any_number_of_channels(channels: int, shape: tuple[int, ...]) -> None:
    # Few levels make ties, and the first and the last channel each win at some voxels.
    logits = np.random.default_rng(0).integers(-2, channels, (channels, *shape)).astype(np.float32)
    before = logits.copy()
    values = np.random.default_rng(1).permutation(2**16)[:channels]
    decide = partial(decide_labels, values=values.tolist(), dtype=np.uint16)
    assert np.array_equal(decide(logits, activation="softmax"), values[logits.argmax(axis=0)])
    last = channels - 1 - (logits > 0)[::-1].argmax(axis=0)
    assert np.array_equal(decide(logits, activation="sigmoid"), np.where((logits > 0).any(axis=0), values[last], 0))
    assert np.array_equal(logits, before)
