from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from inference_service.contract.crops import BodyCrop, ForegroundCrop, ModelCrop, NonzeroCrop
from inference_service.core.errors import ModelInvalid
from inference_service.imaging.geometry import Affine, Box, Volume, box
from inference_service.segmentation.preparation.crop import crop_box

MakeAffine = Callable[[str, Sequence[float]], Affine]

SHAPE = (40, 30, 20)


def scan(*boxes: tuple[Box, int], shape: tuple[int, int, int] = SHAPE, outside: int = 0) -> NDArray[np.int16]:
    voxels = np.full(shape, outside, dtype=np.int16)
    for where, value in boxes:
        voxels[where] = value
    return voxels


def test_without_a_crop_the_whole_scan_is_kept() -> None:
    assert crop_box([Volume(scan(), np.eye(4))], None) == box([(0, 40), (0, 30), (0, 20)])


def test_nonzero_crop_is_the_smallest_box_around_nonzero_voxels() -> None:
    voxels = scan((box([(3, 4), (5, 9), (7, 8)]), -5), (box([(30, 31), (6, 7), (2, 3)]), 1))
    assert crop_box([Volume(voxels, np.eye(4))], NonzeroCrop(kind="nonzero")) == box([(3, 31), (5, 9), (2, 8)])


@given(st.lists(st.tuples(*[st.integers(0, size - 1) for size in SHAPE]), min_size=1, max_size=5))
def test_nonzero_crop_contains_all_nonzero_voxels_and_is_tight(places: list[tuple[int, int, int]]) -> None:
    voxels = scan()
    for place in places:
        voxels[place] = 7
    kept = crop_box([Volume(voxels, np.eye(4))], NonzeroCrop(kind="nonzero"))
    inside = voxels[kept]
    assert np.count_nonzero(inside) == np.count_nonzero(voxels)
    assert all(np.take(inside, edge, axis).any() for axis in range(3) for edge in (0, -1))


@pytest.mark.parametrize(
    ("margin_mm", "voxels"), [(0, (0, 0, 0)), (6, (3, 2, 12)), (6.1, (4, 3, 13)), (1e3, (99,) * 3)]
)
def test_margins_are_in_millimetres_and_clipped_to_the_scan(
    oblique_affine: MakeAffine, margin_mm: float, voxels: tuple[int, int, int]
) -> None:
    volume = Volume(scan((box([(10, 12), (11, 14), (9, 10)]), 1)), oblique_affine("LPS", (2.0, 3.0, 0.5)))
    inner = [(10, 12), (11, 14), (9, 10)]
    expected = box(
        (max(0, start - margin), min(size, stop + margin))
        for (start, stop), margin, size in zip(inner, voxels, SHAPE, strict=True)
    )
    assert crop_box([volume], NonzeroCrop(kind="nonzero", margin_mm=margin_mm)) == expected


@pytest.mark.parametrize("spacing_mm", [4.0, 2.0, 1.0, 0.7])
def test_body_crop_is_around_the_largest_region_above_the_threshold(spacing_mm: float) -> None:
    body = box([(8, 31), (9, 22), (0, 20)])
    table = box([(5, 36), (26, 28), (0, 20)])
    voxels = scan((body, 40), (table, 300), outside=-1000)
    kept = crop_box([Volume(voxels, np.diag([spacing_mm] * 3 + [1]))], BodyCrop(kind="body", margin_mm=0))
    step = max(1, int(4 / spacing_mm))
    for side, whole, size in zip(kept, body, SHAPE, strict=True):
        assert max(0, whole.start - step) < side.start + 1 <= whole.start + 1
        assert whole.stop <= side.stop < min(size, whole.stop + step) + 1


@given(
    st.tuples(*[st.tuples(st.integers(0, size - 1), st.integers(1, size)) for size in SHAPE]),
    st.floats(0.5, 6),
)
def test_body_crop_contains_every_voxel_of_the_body(sides: tuple[tuple[int, int], ...], spacing_mm: float) -> None:
    body = box((start, min(size, start + length)) for (start, length), size in zip(sides, SHAPE, strict=True))
    voxels = scan((body, 40), outside=-1000)
    kept = crop_box([Volume(voxels, np.diag([spacing_mm] * 3 + [1]))], BodyCrop(kind="body", margin_mm=0))
    assert np.count_nonzero(voxels[kept] == 40) == np.count_nonzero(voxels == 40)


@pytest.mark.parametrize("crop", [NonzeroCrop(kind="nonzero"), BodyCrop(kind="body", threshold=10)])
def test_a_scan_without_a_body_is_kept_whole(crop: NonzeroCrop | BodyCrop) -> None:
    assert crop_box([Volume(scan(), np.eye(4))], crop) == box([(0, 40), (0, 30), (0, 20)])


def test_a_cropped_volume_keeps_its_place_in_the_world(oblique_affine: MakeAffine) -> None:
    volume = Volume(scan((box([(4, 5), (6, 7), (8, 9)]), 3)), oblique_affine("PIR", (2.0, 3.0, 0.5)))
    part = volume.cropped(box([(2, 9), (3, 8), (8, 20)]))
    assert part.voxels[2, 3, 0] == 3
    assert part.shape == (7, 5, 12)
    assert part.affine @ [2, 3, 0, 1] == pytest.approx(volume.affine @ [4, 6, 8, 1])
    assert part.spacing_mm == pytest.approx(volume.spacing_mm)


def test_nonzero_voxels_of_any_channel_are_kept() -> None:
    first = scan((box([(3, 5), (5, 9), (7, 8)]), -5))
    second = scan((box([(4, 31), (6, 7), (2, 3)]), 1))
    channels = [Volume(first, np.eye(4)), Volume(second.astype(np.float32), np.eye(4))]
    assert crop_box(channels, NonzeroCrop(kind="nonzero")) == box([(3, 31), (5, 9), (2, 8)])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ((3, 31), (5, 9), (2, 8))),
        ({"channel": 0}, ((3, 5), (5, 9), (7, 8))),
        ({"threshold": 1.0}, ((4, 31), (6, 7), (2, 3))),
        ({"threshold": -7.5}, ((0, 40), (0, 30), (0, 20))),
        ({"margin_voxels": 4}, ((0, 35), (1, 13), (0, 12))),
        ({"divisor": 5}, ((2, 32), (5, 10), (0, 10))),
        ({"margin_voxels": 2, "divisor": 16, "channel": 0}, ((0, 12), (0, 15), (0, 16))),
        ({"threshold": 2.0}, ((0, 40), (0, 30), (0, 20))),
    ],
)
def test_foreground_crop_is_around_voxels_above_a_threshold(
    fields: dict[str, float], expected: tuple[tuple[int, int], ...]
) -> None:
    first = scan((box([(3, 5), (5, 9), (7, 8)]), 1), outside=-5)
    second = scan((box([(4, 31), (6, 7), (2, 3)]), 2), outside=-7)
    crop = ForegroundCrop.model_validate({"kind": "foreground"} | fields)
    assert crop_box([Volume(first, np.eye(4)), Volume(second, np.eye(4))], crop) == box(expected)


def test_model_crop_is_around_the_labels_that_are_found(oblique_affine: MakeAffine) -> None:
    volume = Volume(scan(), oblique_affine("LPS", (2.0, 3.0, 0.5)))
    mask = scan((box([(3, 5), (5, 9), (7, 8)]), 1), (box([(14, 31), (6, 7), (2, 3)]), 4)).astype(np.uint8)
    crop = ModelCrop(kind="model", model="other", labels=(1, 2), margin_mm=3.0)
    # 3 mm are 1.5, 1 and 6 voxels.
    assert crop_box([volume], crop, lambda asked: mask) == box([(2, 6), (4, 10), (1, 14)])
    everything = crop.model_copy(update={"labels": (), "margin_mm": 0.0})
    assert crop_box([volume], everything, lambda asked: mask) == box([(3, 31), (5, 9), (2, 8)])
    nothing = crop.model_copy(update={"labels": (2,)})
    assert crop_box([volume], nothing, lambda asked: mask) == box([(0, 40), (0, 30), (0, 20)])
    none = nothing.model_copy(update={"if_empty": "nothing"})
    assert crop_box([volume], none, lambda asked: mask) == box([(0, 0)] * 3)


def test_model_crop_may_have_a_margin_by_size_and_leave_out_sparse_planes() -> None:
    volume = Volume(scan(), np.eye(4))
    mask = scan((box([(10, 20), (5, 15), (5, 15)]), 1), (box([(30, 31), (10, 11), (10, 11)]), 1)).astype(np.uint8)
    crop = ModelCrop(kind="model", model="other", margin_mm=1, margin_share=0.2, min_plane_share=0.01)
    assert crop_box([volume], crop, lambda asked: mask) == box([(7, 23), (2, 18), (2, 18)])
    nothing = crop.model_copy(update={"min_plane_share": 0.9})
    assert crop_box([volume], nothing, lambda asked: mask) == box([(0, 40), (0, 30), (0, 20)])


def test_model_crop_is_refused_where_no_other_model_can_run() -> None:
    with pytest.raises(ModelInvalid, match="cropped to what model other finds"):
        crop_box([Volume(scan(), np.eye(4))], ModelCrop(kind="model", model="other"))
