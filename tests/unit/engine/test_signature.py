"""Comparison of a network's inputs and outputs with the manifest."""

import json

import pytest
from manifests import VALID_MANIFEST

from inference_service.contract.manifest import Manifest
from inference_service.core.errors import ModelInvalid
from inference_service.engine.signature import check_signature, plane_axis

CHANNEL = {"name": "CT", "intensity": {"kind": "none"}}


def manifest(**changes: object) -> Manifest:
    return Manifest.model_validate_json(json.dumps({**VALID_MANIFEST, **changes}))


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        ([[1, 1, 96, 64, 32]], [1, 2, 96, 64, 32]),
        ([[None, 1, 96, 64, 32]], [None, 2, None, None, None]),
        ([[None] * 5], [None] * 5),
    ],
)
def test_a_network_that_matches_its_manifest_passes(inputs: list[list[int | None]], output: list[int | None]) -> None:
    check_signature("ct-lung 1", manifest(), inputs, output)


@pytest.mark.parametrize(
    ("inputs", "output", "role"),
    [
        ([], [None] * 5, "input"),
        ([[None] * 5, [None] * 5], [None] * 5, "input"),
        ([[None] * 4], [None] * 5, "input"),
        ([[None, 2, None, None, None]], [None] * 5, "input"),
        ([[None, 1, 96, 96, 96]], [None] * 5, "input"),
        ([[0, 1, 96, 64, 32]], [None] * 5, "input"),
        ([[4, 1, 96, 64, 32]], [2, 2, 96, 64, 32], "output"),
        ([[None] * 5], [None, 3, None, None, None], "output"),
        ([[None] * 5], [1, 2, 48, 32, 16], "output"),
        ([[None] * 5], [], "output"),
    ],
)
def test_a_network_that_does_not_match_its_manifest_is_refused(
    inputs: list[list[int | None]], output: list[int | None], role: str
) -> None:
    with pytest.raises(ModelInvalid, match=f"^model ct-lung 1: expected one {role} of shape "):
        check_signature("ct-lung 1", manifest(), inputs, output)


def test_channels_and_labels_of_the_first_stage_are_input_channels() -> None:
    first_stage = {"networks": [{"file": "low.onnx", "sha256": "0" * 64}], "spacing_mm": [3, 3, 3]}
    cascade = manifest(
        channels=[CHANNEL, {**CHANNEL, "name": "PET"}],
        labels=[{"name": str(value), "value": value} for value in (0, 1, 2)],
        first_stage=first_stage,
    )
    check_signature("cascade 1", cascade, [[None, 4, None, None, None]], [None] * 5)
    with pytest.raises(ModelInvalid, match=r"expected one input of shape \['any', 4, 96, 64, 32\]"):
        check_signature("cascade 1", cascade, [[None, 2, None, None, None]], [None] * 5)


def test_each_output_channel_is_compared_even_if_it_is_left_out() -> None:
    three = manifest(outputs=[{"channel": channel, "value": value} for channel, value in enumerate((1, None, 0))])
    check_signature("ct-lung 1", three, [[None] * 5], [None, 3, None, None, None])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_network_for_planes_lacks_the_axis_of_one_voxel(axis: int) -> None:
    window = [96, 64, 32]
    window[axis] = 1
    sides = [size for size in window if size != 1]
    planes = manifest(window=window)
    check_signature("ct-lung 1", planes, [[None, 1, *sides]], [None, 2, *sides])
    assert plane_axis(planes, [None, 1, *sides]) == axis
    assert plane_axis(planes, [None, 1, *window]) is None
    with pytest.raises(ModelInvalid, match="expected one output of shape"):
        check_signature("ct-lung 1", planes, [[None, 1, *sides]], [None, 2, *window])


def test_a_window_of_the_whole_image_fits_a_free_dimension_only() -> None:
    whole = manifest(window=[96, None, 32])
    check_signature("ct-lung 1", whole, [[None, 1, 96, None, 32]], [None] * 5)
    with pytest.raises(ModelInvalid, match=r"expected one input of shape \['any', 1, 96, 'any', 32\]"):
        check_signature("ct-lung 1", whole, [[None, 1, 96, 64, 31]], [None] * 5)
