"""A patient's mask does not depend on the grid of the scan: any orientation, oblique, sheared; NIfTI and DICOM."""

import hashlib
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import Stack, write_series
from nibabel.affines import apply_affine
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.spatial.transform import Rotation

from inference_service.contract.input_options import DEFAULT_INPUT_OPTIONS, InputOptions
from inference_service.contract.manifest import Manifest
from inference_service.contract.report import Report
from inference_service.contract.result_files import MASK_FILE
from inference_service.core.execution import ExecutionOptions
from inference_service.core.report_warnings import WarningCode
from inference_service.engine.model_registry import Model, read_model
from inference_service.engine.session_cache import SessionCache
from inference_service.formats.read_limits import ReadLimits
from inference_service.segmentation.pipeline import ModelRun, SegmentOptions, segment_file
from inference_service.segmentation.resources import StageMonitor

Array = NDArray[np.int16]
Affine = NDArray[np.float64]

SPACING_MM = (2.0, 1.5, 3.0)
SHAPE = (15, 22, 12)
WINDOW = (10, 10, 10)
ORIENTATIONS = ["".join(codes) for codes in product("LR", "PA", "IS")]
ALL_48 = ["".join(order) for codes in ORIENTATIONS for order in permutations(codes)]
ROTATION = Rotation.from_euler("xyz", (8, -11, 14), degrees=True).as_matrix()


def patient() -> Array:
    """An L-shaped organ of 300 HU in a block of −100 HU in air, different on every axis; R, A, S."""
    voxels = np.full(SHAPE, -1000, dtype=np.int16)
    voxels[2:-1, 3:-4, 1:-2] = -100
    voxels[4:7, 6:17, 3:9] = 300
    voxels[4:12, 13:17, 6:9] = 300
    return voxels


def straight_affine() -> Affine:
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = (-20.5, 31.25, -700)
    return affine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A network that labels voxels above 0 HU, after a smoothing that differs along every axis and direction."""
    kernel = np.multiply.outer(np.multiply.outer([1, 5, 3], [2, 7, 1]), [4, 6, 1]).astype(np.float32)
    weights = [
        numpy_helper.from_array((kernel / kernel.sum())[None, None], "kernel"),
        numpy_helper.from_array(np.array([0.0, 1.0], np.float32).reshape(2, 1, 1, 1, 1), "slope"),
    ]
    nodes = [
        helper.make_node("Conv", ["volume", "kernel"], ["smooth"], kernel_shape=[3, 3, 3], pads=[1] * 6),
        helper.make_node("Conv", ["smooth", "slope"], ["logits"], kernel_shape=[1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "asymmetric",
        [helper.make_tensor_value_info("volume", TensorProto.FLOAT, [1, 1, *WINDOW])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2, *WINDOW])],
        weights,
    )
    content = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    folder = tmp_path_factory.mktemp("models") / "asymmetric" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    manifest = Manifest.model_validate(
        {
            "name": "asymmetric",
            "version": "1",
            "description": "For tests.",
            "licence": "Apache-2.0",
            "intended_use": "Tests.",
            "modality": "CT",
            "sha256": hashlib.sha256(content).hexdigest(),
            "channels": [{"name": "CT", "intensity": {"kind": "none"}}],
            "orientation": "LPS",
            "spacing_mm": (2.5, 2.5, 2.5),
            "window": WINDOW,
            "overlap": 0.5,
            "activation": "softmax",
            "labels": [{"name": "else", "value": 0}, {"name": "organ", "value": 1}],
        }
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(exclude_unset=True))
    return read_model(folder)


def segment(
    source: Path, folder: Path, model: Model, input_options: InputOptions = DEFAULT_INPUT_OPTIONS
) -> tuple[Array, Affine, Report]:
    """Returns the mask of a scan with its affine, and the report."""
    target = folder / "out"
    target.mkdir()
    report = segment_file(
        source,
        target,
        ModelRun(model, ExecutionOptions(("CPUExecutionProvider",)), SessionCache()),
        limits=ReadLimits(10**6),
        options=SegmentOptions(input_options),
        monitor=StageMonitor(),
    )
    image = nibabel.Nifti1Image.from_filename(target / MASK_FILE)
    return np.asarray(image.dataobj), image.affine, report


def save(path: Path, voxels: Array, affine: Affine) -> Path:
    image = nibabel.Nifti1Image(voxels, None)
    image.set_sform(affine, code="scanner")
    nibabel.save(image, path)
    return path


def lying(voxels: Array, affine: Affine, codes: str) -> tuple[Array, Affine]:
    """Stores the same voxels at the same places with other array axes."""
    change = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    turned = np.ascontiguousarray(nibabel.orientations.apply_orientation(voxels, change))
    return turned, affine @ inv_ornt_aff(change, voxels.shape)


def standing(mask: Array, affine: Affine) -> Array:
    """Reorients a mask to the axes R, A and S."""
    change = ornt_transform(io_orientation(affine), axcodes2ornt("RAS"))
    turned: Array = nibabel.orientations.apply_orientation(mask, change)
    return turned


@pytest.fixture(scope="module")
def expected(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Array:
    """The mask of the patient (R, A, S): the organ without its rim."""
    folder = tmp_path_factory.mktemp("expected")
    mask, *_ = segment(save(folder / "scan.nii", patient(), straight_affine()), folder, model)
    organ = patient() == 300
    assert 2 * np.count_nonzero(organ & (mask == 1)) / (np.count_nonzero(organ) + np.count_nonzero(mask)) > 0.7
    for axes in ((1, 0, 2), (0, 2, 1), (2, 1, 0)):
        assert mask.transpose(axes).shape != mask.shape or not np.array_equal(mask.transpose(axes), mask)
    for axis in range(3):
        assert not np.array_equal(np.flip(mask, axis), mask)
    return mask


@pytest.mark.parametrize("oblique", [False, True], ids=["straight", "oblique"])
@pytest.mark.parametrize("codes", ALL_48)
def test_nifti_of_every_orientation_gives_the_same_mask(
    codes: str, oblique: bool, model: Model, expected: Array, tmp_path: Path
) -> None:
    base = straight_affine()
    voxels, affine = lying(patient(), base, codes)
    if oblique:
        affine[:3] = ROTATION @ affine[:3]
    mask, found, report = segment(save(tmp_path / "scan.nii", voxels, affine), tmp_path, model)
    np.testing.assert_array_equal(found, affine.astype(np.float32))
    assert report.input.orientation == codes
    np.testing.assert_array_equal(standing(mask, lying(patient(), base, codes)[1]), expected)


def wide() -> tuple[Array, Affine]:
    """The patient with as much air behind and in front as the sheared planes drift (R, A, S)."""
    affine = straight_affine()
    affine[:3, 3] -= affine[:3, 1] * SHAPE[2]
    return np.pad(patient(), ((0, 0), (SHAPE[2], SHAPE[2] - 1), (0, 0)), constant_values=-1000), affine


def sheared() -> tuple[Array, Affine]:
    """The wide patient on a grid whose planes each lie a voxel in front of the plane below."""
    voxels, affine = wide()
    planes = [voxels[:, k : k + SHAPE[1] + SHAPE[2], k] for k in range(SHAPE[2])]
    affine[:3, 2] += affine[:3, 1]
    return np.stack(planes, axis=2), affine


@pytest.fixture(scope="module")
def expected_of_sheared(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Array:
    """The part of the wide patient's mask inside the sheared grid."""
    folder = tmp_path_factory.mktemp("expected")
    mask, *_ = segment(save(folder / "scan.nii", *wide()), folder, model)
    return np.stack([mask[:, k : k + SHAPE[1] + SHAPE[2], k] for k in range(SHAPE[2])], axis=2)


@pytest.mark.parametrize("codes", ALL_48)
def test_a_sheared_nifti_gives_the_same_mask(
    codes: str, model: Model, expected_of_sheared: Array, tmp_path: Path
) -> None:
    voxels, affine = lying(*sheared(), codes)
    mask, found, report = segment(save(tmp_path / "scan.nii", voxels, affine), tmp_path, model)
    np.testing.assert_array_equal(found, affine.astype(np.float32))
    (warning,) = (each for each in report.warnings if each.code == WarningCode.SHEAR_ALIGNED)
    assert "its planes were aligned" in warning.message
    np.testing.assert_array_equal(standing(mask, affine), expected_of_sheared)


# The third axis runs along the product of the first two: half of all orientations.
IN_DICOM = [codes for codes in ALL_48 if np.linalg.det(lying(patient(), straight_affine(), codes)[1][:3, :3]) > 0]


def stack_of(voxels: Array, affine: Affine) -> Stack:
    """The patient as slices; the world of DICOM is L, P, S."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacings = np.linalg.norm(lps[:3, :3], axis=0)
    positions = apply_affine(lps, [(0, 0, k) for k in range(voxels.shape[2])])
    return Stack(voxels, lps[:3, 0] / spacings[0], lps[:3, 1] / spacings[1], (spacings[0], spacings[1]), positions)


@pytest.mark.parametrize("codes", IN_DICOM)
def test_dicom_of_every_orientation_gives_the_same_mask(
    codes: str, model: Model, expected: Array, tmp_path: Path
) -> None:
    assert len(IN_DICOM) == 24
    voxels, affine = lying(patient(), straight_affine(), codes)
    write_series(tmp_path / "series", stack_of(voxels, affine))
    mask, found, _ = segment(tmp_path / "series", tmp_path, model)
    np.testing.assert_allclose(found, affine, atol=1e-4)
    np.testing.assert_array_equal(standing(mask, found), expected)


def test_an_oblique_dicom_series_gives_the_same_mask(model: Model, expected: Array, tmp_path: Path) -> None:
    affine = straight_affine()
    affine[:3] = ROTATION @ affine[:3]
    write_series(tmp_path / "series", stack_of(patient(), affine))
    mask, found, _ = segment(tmp_path / "series", tmp_path, model)
    np.testing.assert_allclose(found, affine, atol=1e-4)
    np.testing.assert_array_equal(mask, expected)


def test_a_tilted_dicom_series_gives_the_same_mask(model: Model, expected_of_sheared: Array, tmp_path: Path) -> None:
    voxels, affine = sheared()
    write_series(tmp_path / "series", stack_of(voxels, affine))
    mask, found, _ = segment(tmp_path / "series", tmp_path, model, InputOptions(tolerate=("gantry_tilt",)))
    np.testing.assert_allclose(found, affine, atol=1e-4)
    np.testing.assert_array_equal(mask, expected_of_sheared)
