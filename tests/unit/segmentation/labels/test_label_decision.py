from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from scipy import special

from inference_service.contract.manifest import Manifest
from inference_service.segmentation.labels.label_decision import decide_labels, deciding_outputs, probabilities

MakeManifest = Callable[..., Manifest]


def test_softmax_takes_the_highest_logit_and_the_first_of_equal_ones(make_manifest: MakeManifest) -> None:
    logits = np.array([[[1, 5, 2, 0, -9]], [[1, 5, 3, 0, -8]], [[0, 6, 3, 0, -7]]], dtype=np.float32)
    part = make_manifest(values=(4, 300, 2))
    labels = decide_labels(logits, part, values=(4, 300, 2), dtype=np.uint16)
    assert labels.tolist() == [[4, 2, 300, 4, 2]]
    assert labels.dtype == np.uint16


def test_sigmoid_takes_the_last_channel_above_one_half_or_0(make_manifest: MakeManifest) -> None:
    logits = np.array([[[-1, 9, 9, -1, 0]], [[-1, -1, 1e-6, -1, 0]], [[-1, -1, -1, 5, 0]]], dtype=np.float32)
    part = make_manifest(activation="sigmoid", values=(5, 3, 1000))
    labels = decide_labels(logits, part, values=(5, 3, 1000), dtype=np.uint16)
    assert labels.tolist() == [[0, 5, 3, 1000, 0]]
    assert labels.dtype == np.uint16


def test_outputs_without_a_value_decide_nothing(make_manifest: MakeManifest) -> None:
    outputs = [{"channel": 0, "value": None}, {"channel": 2, "value": 7}, {"channel": 1, "value": 3}]
    logits = np.array([[9, 9, 9], [1, 2, 0], [2, 1, 0]], dtype=np.float32)
    softmax = make_manifest(values=(3, 7), outputs=outputs)
    assert [output.value for output in deciding_outputs(softmax)] == [3, 7]
    assert decide_labels(logits, softmax, values=(3, 7), dtype=np.uint8).tolist() == [7, 3, 3]
    sigmoid = make_manifest(values=(3, 7), outputs=outputs, activation="sigmoid")
    assert [output.value for output in deciding_outputs(sigmoid)] == [7, 3]
    assert decide_labels(logits, sigmoid, values=(7, 3), dtype=np.uint8).tolist() == [3, 3, 0]


@pytest.mark.parametrize("fields", [{}, {"average": "probabilities"}, {"interpolate": "probabilities"}])
def test_thresholds_are_those_of_probabilities(make_manifest: MakeManifest, fields: dict[str, object]) -> None:
    part = make_manifest(
        values=(1,), outputs=[{"channel": 0, "value": 1, "threshold": 0.2}], activation="sigmoid", **fields
    )
    logits = np.array([[-1.5, -1.39, -1.38, 0, 2]], dtype=np.float32)
    values = probabilities(logits, part, axis=0) if fields else logits
    assert decide_labels(values, part, values=(1,), dtype=np.uint8).tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("axis", [0, 1])
def test_probabilities_of_extreme_logits_are_exact(make_manifest: MakeManifest, activation: str, axis: int) -> None:
    logits = np.array([[-1e4, -3, 0, 5, 1e4], [1e4, 3, 0, -5, 1e4], [2, 1, 0, 1, 2]], dtype=np.float32)
    exact = logits.astype(np.float64)
    expected = special.softmax(exact, axis=axis) if activation == "softmax" else special.expit(exact)
    got = probabilities(logits, make_manifest(activation=activation, values=(1, 2, 3)), axis=axis)
    assert got is logits
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("channels", [1, 2, 255, 256, 257, 300])
@pytest.mark.parametrize("shape", [(20, 30), (40,), (2, 3, 4), (0,)])
def test_labels_are_decided_for_any_number_of_channels(
    make_manifest: MakeManifest, channels: int, shape: tuple[int, ...]
) -> None:
    # Few levels make ties, and the first and the last channel each win at some voxels.
    logits = np.random.default_rng(0).integers(-2, channels, (channels, *shape)).astype(np.float32)
    before = logits.copy()
    values = np.random.default_rng(1).permutation(np.arange(1, 2**16))[:channels]
    decide = partial(decide_labels, values=values.tolist(), dtype=np.uint16)
    softmax, sigmoid = (
        make_manifest(values=values.tolist(), activation=activation) for activation in ("softmax", "sigmoid")
    )
    assert np.array_equal(decide(logits, softmax), values[logits.argmax(axis=0)])
    last = channels - 1 - (logits > 0)[::-1].argmax(axis=0)
    assert np.array_equal(decide(logits, sigmoid), np.where((logits > 0).any(axis=0), values[last], 0))
    assert np.array_equal(logits, before)
