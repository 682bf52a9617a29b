"""Properties of the picture rather than its pixels: positions, lengths and contents."""

import tracemalloc
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from PIL import Image

from inference_service.contract.manifest import Manifest
from inference_service.contract.palette import label_colour
from inference_service.imaging.components import LabelComponents, find_components
from inference_service.imaging.geometry import Affine, Volume
from inference_service.segmentation.labels.label_statistics import measure_labels
from inference_service.segmentation.preview.page import draw_preview

MakeManifest = Callable[..., Manifest]
MakeAffine = Callable[[str, Sequence[float]], Affine]
Picture = NDArray[np.uint8]
Mask = NDArray[np.unsignedinteger]

# The tests of `planes` cover all 48.
ORIENTATIONS = ("LPS", "RAS", "PIR", "SAL", "ILA", "ASR")
# Size and top of the panels, and the left edge of each, in pixels.
PANEL = 384
TOP = 16
AXIAL = 16
CORONAL = 412
SAGITTAL = 808
SHAPE = (30, 26, 18)
# Along the axes of the display: left, posterior, inferior.
SPACING_MM = (1.0, 1.5, 2.5)


def pictured(volume: Volume, mask: Mask, manifest: Manifest, modality: str = "CT") -> bytes:
    components = find_components(mask, [label.value for label in manifest.labels])
    labels = measure_labels(mask, volume, manifest, components)
    return draw_preview(volume, mask, labels, components, modality=modality)


def opened(png: bytes) -> Picture:
    with Image.open(BytesIO(png)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (1500, 601))
        assert not image.info
        return np.asarray(image)


def panel(picture: Picture, left: int) -> Picture:
    return picture[TOP : TOP + PANEL, left : left + PANEL]


def centre_of(picture: Picture, place: int) -> tuple[float, float]:
    """Row and column of the middle of the pixels in a label's full colour."""
    rows, columns = np.nonzero((picture == label_colour(place)).all(axis=2))
    assert rows.size
    return float(rows.mean()), float(columns.mean())


@pytest.fixture
def manifest(make_manifest: MakeManifest) -> Manifest:
    return make_manifest(values=(0, 4, 2), modality="CT")


@pytest.fixture
def phantom() -> tuple[Volume, Mask]:
    """A body around a large label 4; a spot of label 2 on the patient's left, at the back, towards the head."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, -1]) * SPACING_MM
    affine[:3, 3] = 12.25, -33.75, 101.5
    voxels = np.random.default_rng(0).integers(-40, 90, SHAPE).astype(np.int16)
    voxels[:3] = voxels[-2:] = -1000
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[5:25, 5:21, 3:15] = 4
    mask[18:22, 14:18, 5:9] = 2
    return Volume(voxels, affine), mask


def turned(volume: Volume, mask: Mask, orientation: str) -> tuple[Volume, Mask]:
    change = ornt_transform(axcodes2ornt(volume.orientation), axcodes2ornt(orientation))
    order = np.argsort(change[:, 0])
    flips = tuple(slice(None, None, int(change[axis, 1])) for axis in order)
    affine = volume.affine @ inv_ornt_aff(change, volume.shape)
    return Volume(volume.voxels.transpose(order)[flips], affine), mask.transpose(order)[flips]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_same_patient_gives_the_same_picture(
    phantom: tuple[Volume, Mask], manifest: Manifest, orientation: str
) -> None:
    volume, mask = turned(*phantom, orientation)
    assert volume.orientation == orientation
    assert pictured(volume, mask, manifest) == pictured(*phantom, manifest)


def test_sides_of_the_patient_are_correct(phantom: tuple[Volume, Mask], manifest: Manifest) -> None:
    volume, mask = phantom
    mask[mask == 4] = 0
    picture = opened(pictured(volume, mask, manifest))
    middle = PANEL / 2
    row, column = centre_of(panel(picture, AXIAL), 1)
    assert row > middle  # the back is below
    assert column > middle  # the patient's left is on the right
    row, column = centre_of(panel(picture, CORONAL), 1)
    assert row < middle  # the head is above
    assert column > middle
    row, column = centre_of(panel(picture, SAGITTAL), 1)
    assert row < middle
    assert column > middle  # the back is on the right


def test_lengths_are_to_scale(manifest: Manifest) -> None:
    volume = Volume(np.zeros((60, 50, 12), dtype=np.int16), np.diag([0.5, 0.8, 5.0, 1]))
    mask = np.zeros(volume.shape, dtype=np.uint8)
    mask[10:50, 10:35, 3:7] = 4  # 20 mm in each direction
    picture = opened(pictured(volume, mask, manifest))
    for left in (AXIAL, CORONAL, SAGITTAL):
        outline = (panel(picture, left) == label_colour(0)).all(axis=2)
        height, width = (np.ptp(np.flatnonzero(outline.any(axis=axis))) + 1 for axis in (1, 0))
        extent_mm = 40 if left == AXIAL else 60
        assert (width, height) == pytest.approx((20 / extent_mm * PANEL,) * 2, abs=2)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR"])
def test_oblique_grids_are_shown_along_their_own_axes(
    phantom: tuple[Volume, Mask], manifest: Manifest, oblique_affine: MakeAffine, orientation: str
) -> None:
    volume, mask = turned(*phantom, orientation)
    oblique = Volume(volume.voxels, oblique_affine(orientation, volume.spacing_mm))
    straight = opened(pictured(volume, mask, manifest))
    tilted = opened(pictured(oblique, mask, manifest))
    # The positions at the top of each panel differ.
    assert not np.array_equal(
        straight[TOP + PANEL - 60 :, SAGITTAL + PANEL :], tilted[TOP + PANEL - 60 :, SAGITTAL + PANEL :]
    )
    np.testing.assert_array_equal(panel(straight, AXIAL)[30:], panel(tilted, AXIAL)[30:])


@pytest.mark.parametrize("degrees", [-30, 30])
def test_a_tilted_stack_is_shown_without_distortion(manifest: Manifest, degrees: int) -> None:
    affine = np.diag([-1.0, -1, 2, 1])
    affine[1, 2] = 2 * np.tan(np.radians(degrees))
    mask = np.zeros((40, 60, 30), dtype=np.uint8)
    mask[5:35, 20:40, 2:28] = 4
    picture = opened(pictured(Volume(np.zeros(mask.shape, dtype=np.int16), affine), mask, manifest))
    rows, columns = np.nonzero((panel(picture, SAGITTAL) == label_colour(0)).all(axis=2))
    fall, _ = np.polyfit(rows, columns, 1)
    assert fall == pytest.approx(np.tan(np.radians(degrees)), abs=0.03)
    rows, columns = np.nonzero((panel(picture, CORONAL) == label_colour(0)).all(axis=2))
    assert np.polyfit(rows, columns, 1)[0] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5), (40, 40, 1), (1, 40, 40), (7, 5, 300), (900, 3, 2)])
@pytest.mark.parametrize("value", [0, 2])
def test_small_and_thin_volumes_are_drawn(manifest: Manifest, shape: tuple[int, int, int], value: int) -> None:
    mask = np.full(shape, value, dtype=np.uint8)
    picture = opened(pictured(Volume(np.zeros(shape, dtype=np.int16), np.diag([1, 1, 5.0, 1])), mask, manifest))
    assert len(np.unique(picture)) > 10


def test_a_mask_without_any_voxel_shows_the_middle(manifest: Manifest, phantom: tuple[Volume, Mask]) -> None:
    volume, mask = phantom
    picture = opened(pictured(volume, np.zeros_like(mask), manifest))
    page = picture[:, : SAGITTAL + PANEL].astype(int)
    assert np.ptp(page[TOP : TOP + PANEL, AXIAL : SAGITTAL + PANEL], axis=2).max() <= 3  # all grey


def test_a_hundred_labels_of_16_bits_are_drawn(make_manifest: MakeManifest) -> None:
    values = [0, *range(1000, 1100)]
    shape = (60, 50, 40)
    mask = (np.arange(np.prod(shape)) % 101).reshape(shape, order="F").astype(np.uint16)
    mask[mask > 0] += 999
    png = pictured(Volume(np.zeros(shape, np.int16), np.eye(4)), mask, make_manifest(values=values))
    opened(png)
    assert len(png) < 1_500_000


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_noise_does_not_grow_the_file_beyond_its_bound(manifest: Manifest, modality: str) -> None:
    random = np.random.default_rng(0)
    mask = random.choice(np.array([0, 2, 4], np.uint8), (400, 400, 60))
    voxels = random.integers(-1000, 1000, mask.shape, dtype=np.int16)
    assert len(pictured(Volume(voxels, np.eye(4)), mask, manifest, modality)) < 1_500_000


def test_planes_strip_and_legend_show_the_colour_of_each_label(
    phantom: tuple[Volume, Mask], manifest: Manifest
) -> None:
    picture = opened(pictured(*phantom, manifest))
    for left in (AXIAL, CORONAL, SAGITTAL):
        centre_of(panel(picture, left), 0)
    for part in (picture[:, SAGITTAL + PANEL :], picture[TOP + PANEL :]):
        centre_of(part, 0)
        centre_of(part, 1)


@pytest.mark.parametrize("dtype", ["u1", ">i2", "i4", "f4", "f8", "u8"])
def test_every_intensity_dtype_is_shown(manifest: Manifest, dtype: str) -> None:
    mask = np.zeros((20, 20, 20), dtype=np.uint8)
    mask[5:15, 5:15, 5:15] = 2
    voxels = np.arange(8000).reshape(20, 20, 20) % 200
    picture = opened(pictured(Volume(voxels.astype(dtype), np.eye(4)), mask, manifest, modality="MR"))
    assert len(np.unique(picture)) > 100


def test_drawing_does_not_copy_the_volume(manifest: Manifest) -> None:
    shape = (1200, 1100, 1000)
    volume = Volume(np.zeros(shape, dtype=np.int16, order="F"), np.eye(4))
    mask = np.zeros(shape, dtype=np.uint8, order="F")
    i, j, k = (np.zeros((3, size), dtype=np.int64) for size in shape)
    tracemalloc.start()
    draw_preview(volume, mask, [], LabelComponents((i, j, k), None), modality="CT")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20
