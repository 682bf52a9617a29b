"""Masks as NRRD and MetaImage, read again by SimpleITK and by this service."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from inference_service.contract.labels import CodedConcept
from inference_service.contract.manifest import Manifest
from inference_service.formats.raster.writer import write_metaimage, write_segmentation_nrrd
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import read_scan

AFFINE = np.array(
    [[0.6 * 0.7, -0.8 * 1.1, 0.0, 11.0], [0.8 * 0.7, 0.6 * 1.1, 0.0, -7.5], [0.0, 0.0, 2.5, 130.0], [0, 0, 0, 1]]
)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def mask(dtype: str) -> np.ndarray:
    values = np.zeros((3, 4, 5), dtype=dtype)
    values[1:, 2, 3] = 1
    values[0, 0, 0] = np.iinfo(dtype).max
    return values


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("name", ["mask.seg.nrrd", "mask.mha"])
def test_a_mask_is_read_again_on_its_grid(tmp_path: Path, manifest: Manifest, name: str, dtype: str) -> None:
    path = tmp_path / name
    if name.endswith("mha"):
        write_metaimage(path, mask(dtype), AFFINE)
    else:
        write_segmentation_nrrd(path, mask(dtype), AFFINE, manifest)
    image = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).transpose(), mask(dtype))
    expected = LPS @ AFFINE
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing(), expected[:3, :3])
    np.testing.assert_allclose(image.GetOrigin(), expected[:3, 3])
    scan = read_scan(path, tmp_path, ReadLimits(100))
    np.testing.assert_array_equal(scan.volume.voxels, mask(dtype))
    np.testing.assert_allclose(scan.volume.affine, AFFINE)


def test_each_label_is_a_segment_of_3d_slicer(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "mask.seg.nrrd"
    write_segmentation_nrrd(path, mask("u1"), AFFINE, manifest)
    image = SimpleITK.ReadImage(str(path))
    assert image.GetMetaData("Segment0_Name") == "left ~ lung"
    assert image.GetMetaData("Segment0_LabelValue") == "1"
    assert image.GetMetaData("Segment0_Color") == "0.337255 0.705882 0.913725"
    assert image.GetMetaData("Segment0_Extent") == "0 2 0 3 0 4"
    assert image.GetMetaData("Segment0_Tags") == (
        "TerminologyEntry:~SCT^123037004^Anatomical Structure~SCT^39607008^Lung   left~^^~~^^~^^|"
    )
    assert image.GetMetaData("Segment1_Tags").startswith("TerminologyEntry:~SCT^85756007^Tissue~SCT^85756007^Tissue~")
    assert not image.HasMetaDataKey("Segment2_Name")


def test_a_segment_has_the_side_and_the_colour_of_its_label(tmp_path: Path, manifest: Manifest) -> None:
    side = CodedConcept(scheme="SCT", value="7771000", meaning="Left")
    lung = manifest.labels[1].model_copy(update={"modifier": side, "colour": (255, 0, 51)})
    labels = (manifest.labels[0], lung, *manifest.labels[2:])
    path = tmp_path / "mask.seg.nrrd"
    write_segmentation_nrrd(path, mask("u1"), AFFINE, manifest.model_copy(update={"labels": labels}))
    image = SimpleITK.ReadImage(str(path))
    assert image.GetMetaData("Segment0_Color") == "1.0 0.0 0.2"
    assert image.GetMetaData("Segment0_Tags").endswith("~SCT^7771000^Left~~^^~^^|")


@pytest.fixture
def manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    """A manifest whose background is no segment, and whose texts contain the characters that separate codes."""
    labels = [
        {"name": "background", "value": 0},
        {
            "name": "left ~ lung",
            "value": 1,
            "category": {"scheme": "SCT", "value": "123037004", "meaning": "Anatomical Structure"},
            "type": CodedConcept(scheme="SCT", value="39607008", meaning="Lung ~|left").model_dump(),
        },
        {"name": "liver", "value": 255},
    ]
    return make_manifest(labels=labels)
