"""Scans held against another reader: voxels and affine are those that SimpleITK reads from the same file.

SimpleITK reads by GDCM, nifti_clib, NrrdIO and MetaIO, none of which the service uses. `test_raster` holds more NRRD
and MetaImage files against it. The last tests state where the service differs on purpose: SimpleITK believes headers
that contradict themselves, and ignores units, padding and the order of frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import pytest
import SimpleITK
from dicom_encoders import encode
from dicom_files import (
    NATIVE_SYNTAXES,
    axis_directions,
    oblique_rotation,
    phantom,
    regular_stack,
    set_stored_values,
    write_enhanced,
    write_mr,
    write_series,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from inference_service.contract.input_options import InputOptions
from inference_service.core.errors import ServiceError
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan
from inference_service.imaging.geometry import Affine

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (4, 5, 6)
SPACING = (0.75, 1.25, 2.5)
ORIGIN = (-11.5, 7.25, 130.0)
# SimpleITK keeps a NIfTI's affine in single precision, and DICOM's directions in 16 characters.
TOLERANCE_MM = 1e-4
RAMP = np.arange(np.prod(SHAPE)).reshape(SHAPE)
SHORTS = RAMP.astype(np.int16)


@pytest.fixture(autouse=True)
def quiet() -> None:
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)


def read(path: Path) -> Scan:
    return read_scan(path, path.parent, ReadLimits(10**6))


def assert_same(scan: Scan, expected: SimpleITK.Image) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(expected.GetDirection(), (3, 3)) * expected.GetSpacing()
    affine[:3, 3] = expected.GetOrigin()
    np.testing.assert_allclose(scan.volume.affine, LPS_TO_RAS @ affine, atol=TOLERANCE_MM)
    values = SimpleITK.GetArrayFromImage(expected).transpose()
    np.testing.assert_allclose(scan.volume.voxels.astype(np.float64), values, rtol=1e-6, atol=1e-6)


def check_file(path: Path) -> None:
    assert_same(read(path), SimpleITK.ReadImage(str(path)))


def check_series(folder: Path) -> None:
    assert_same(read(folder), read_by_simpleitk(folder))


def read_by_simpleitk(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


# DICOM


@pytest.mark.parametrize(("row", "column"), axis_directions())
def test_series_along_the_axes(tmp_path: Path, row: NDArray[np.float64], column: NDArray[np.float64]) -> None:
    write_series(tmp_path / "in", regular_stack(row=row, column=column))
    check_series(tmp_path / "in")


@pytest.mark.parametrize("columns", list(permutations(range(3), 2)), ids=str)
def test_oblique_series(tmp_path: Path, columns: tuple[int, int]) -> None:
    turned = oblique_rotation()
    write_series(tmp_path / "in", regular_stack(row=turned[:, columns[0]], column=turned[:, columns[1]]))
    check_series(tmp_path / "in")


SYNTAXES = [
    *NATIVE_SYNTAXES,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: UID(syntax).keyword)
@pytest.mark.parametrize(("dtype", "bits"), [("u1", 8), ("u2", 12), ("i2", 16)])
def test_transfer_syntaxes_and_pixel_formats(tmp_path: Path, syntax: str, dtype: str, bits: int) -> None:
    native = syntax in (*NATIVE_SYNTAXES, DeflatedExplicitVRLittleEndian)

    def change(k: int, dataset: Dataset) -> None:
        stored = np.random.default_rng(k).integers(0, 2**bits, (8, 10)) - (2 ** (bits - 1) if dtype[0] == "i" else 0)
        set_stored_values(dataset, stored.astype(dtype), bits=bits)

    for path in write_series(
        tmp_path / "in",
        regular_stack(phantom((10, 8, 6))),
        syntax=syntax if native else NATIVE_SYNTAXES[1],
        change=change,
    ):
        if not native:
            encode(path, syntax)
    check_series(tmp_path / "in")


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2, -1000), (0.5, -8192.5), (0.0123, 4), (-1, 100)])
def test_rescaled_series(tmp_path: Path, slope: float, intercept: float) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.RescaleSlope = slope
        dataset.RescaleIntercept = intercept

    write_series(tmp_path / "in", regular_stack(), change=change)
    check_series(tmp_path / "in")


def test_slices_rescaled_each_by_its_own_slope(tmp_path: Path) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.RescaleSlope = 1 + k / 4

    write_series(tmp_path / "in", regular_stack(), change=change)
    check_series(tmp_path / "in")


def test_each_phase_of_a_series(tmp_path: Path) -> None:
    """SimpleITK reads the files of one phase, which lie in a folder of their own."""
    turn = oblique_rotation()
    for number in (1, 2):
        stack = replace(regular_stack(phantom(), row=turn[:, 0], column=turn[:, 1]), voxels=phantom() + number)

        def change(k: int, dataset: Dataset, number: int = number) -> None:
            dataset.SOPInstanceUID = f"1.2.3.{number}.{k}"
            dataset.TemporalPositionIdentifier = number

        write_series(tmp_path / "in" / str(number), stack, change=change)
    for number in (1, 2):
        options = InputOptions(select={"TemporalPositionIdentifier": number})
        scan = read_scan(tmp_path / "in", tmp_path, ReadLimits(10**6), input_options=options)
        assert_same(scan, read_by_simpleitk(tmp_path / "in" / str(number)))


def test_an_mr_series(tmp_path: Path) -> None:
    write_mr(tmp_path / "in", regular_stack(phantom() + 1024))
    check_series(tmp_path / "in")


# NIfTI


def signed_permutations() -> list[NDArray[np.float64]]:
    """All 48 orders and directions of three axes."""
    unit = np.eye(3)
    return [unit[list(order)] * signs for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)]


def affine_of(directions: NDArray[np.float64], spacing: Sequence[float] = SPACING) -> Affine:
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = ORIGIN
    return affine


# An sform and a qform.
Forms = tuple[Affine | None, Affine | None]
STRAIGHT = affine_of(np.eye(3))
OBLIQUE = affine_of(oblique_rotation())


def write_nifti(
    path: Path,
    voxels: NDArray[np.generic] = SHORTS,
    *,
    order: Literal["<", ">"] = "<",
    forms: Forms = (STRAIGHT, STRAIGHT),
    scaling: tuple[float, float] = (1, 0),
    unit: str = "mm",
    **fields: int,
) -> Path:
    """Writes a NIfTI file with an sform and a qform, or one of them; further fields of the header by name."""
    sform, qform = forms
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_zooms(SPACING)
    header.set_xyzt_units(unit)
    header.set_qform(qform, code="scanner" if qform is not None else "unknown")
    header.set_sform(sform, code="scanner" if sform is not None else "unknown")
    if qform is None and sform is not None:
        header.set_zooms(np.linalg.norm(sform[:3, :3], axis=0))
    header["scl_slope"], header["scl_inter"] = scaling
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    for name, value in fields.items():
        header[name] = value
    content = header.structarr.tobytes() + bytes(4) + voxels.astype(voxels.dtype.newbyteorder(order)).tobytes(order="F")
    with nibabel.openers.Opener(str(path), "wb") as file:
        file.write(content)
    return path


FORMS: dict[str, Callable[[Affine], Forms]] = {
    "sform": lambda affine: (affine, None),
    "qform": lambda affine: (None, affine),
    "both": lambda affine: (affine, affine),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("index", range(0, 48, 3))
def test_orders_and_directions_of_axes(tmp_path: Path, index: int, form: str) -> None:
    write_nifti(tmp_path / "scan.nii", forms=FORMS[form](affine_of(signed_permutations()[index])))
    check_file(tmp_path / "scan.nii")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_oblique_grids(tmp_path: Path, form: str, suffix: str) -> None:
    write_nifti(tmp_path / f"scan.{suffix}", forms=FORMS[form](OBLIQUE))
    check_file(tmp_path / f"scan.{suffix}")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_data_types_and_byte_orders(tmp_path: Path, dtype: str, order: Literal["<", ">"]) -> None:
    voxels = (RAMP - (60 if dtype[0] != "u" else 0)).astype(dtype)
    write_nifti(tmp_path / "scan.nii.gz", voxels, order=order)
    check_file(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("scaling", [(1, 0), (2, -1000), (0.5, 3.25), (-1, 10), (float("nan"), 0)])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_scaled_values(tmp_path: Path, dtype: str, scaling: tuple[float, float]) -> None:
    write_nifti(tmp_path / "scan.nii", RAMP.astype(dtype), scaling=scaling)
    check_file(tmp_path / "scan.nii")


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("micron", 1000), ("meter", 0.001), ("unknown", 1)])
@pytest.mark.parametrize("form", FORMS)
def test_units(tmp_path: Path, unit: str, factor: float, form: str) -> None:
    scaled = np.diag([factor, factor, factor, 1]) @ STRAIGHT
    path = write_nifti(tmp_path / "scan.nii", forms=FORMS[form](scaled), unit=unit)
    check_file(path)


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (0, 2), (2, 0)])
def test_forms_that_disagree(tmp_path: Path, codes: tuple[int, int]) -> None:
    """Other code, other origin: both are the same scan in another space."""
    moved = STRAIGHT.copy()
    moved[:3, 3] += 5
    path = write_nifti(tmp_path / "scan.nii", forms=(STRAIGHT, moved), sform_code=codes[0], qform_code=codes[1])
    check_file(path)


# NRRD and MetaImage


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
@pytest.mark.parametrize("index", range(1, 48, 6))
def test_other_formats(tmp_path: Path, index: int, ending: str) -> None:
    image = SimpleITK.GetImageFromArray(SHORTS.transpose())
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection((signed_permutations()[index] @ oblique_rotation()).ravel().tolist())
    SimpleITK.WriteImage(image, str(tmp_path / f"scan.{ending}"))
    check_file(tmp_path / f"scan.{ending}")


# Where the service differs on purpose


def with_text(path: Path, old: str, new: str) -> Path:
    """Writes the ramp in the format of the ending, and changes its header."""
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(SHORTS.transpose()), str(path))
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode(), 1))
    return path


NRRD_SPACE = "space: left-posterior-superior\n"
NRRD_GRID = "space directions: (1,0,0) (0,1,0) (0,0,1)\n"
MHA_MATRIX = "TransformMatrix = 1 0 0 0 1 0 0 0 1"
REFUSED: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "NIfTI in microns, but in numbers of millimetres": (
        "inconsistent_geometry",
        lambda path: write_nifti(path / "scan.nii", unit="micron"),
    ),
    "NRRD in microns, but in numbers of millimetres; SimpleITK reads no units": (
        "inconsistent_geometry",
        lambda path: with_text(path / "scan.nrrd", NRRD_GRID, f'{NRRD_GRID}space units: "um" "um" "um"\n'),
    ),
    "NRRD that does not state where voxels lie": (
        "inconsistent_geometry",
        lambda path: with_text(path / "scan.nrrd", NRRD_SPACE, "space dimension: 3\n"),
    ),
    "MetaImage with a spacing in its directions too": (
        "inconsistent_geometry",
        lambda path: with_text(path / "scan.mha", MHA_MATRIX, "TransformMatrix = 2 0 0 0 2 0 0 0 2"),
    ),
    "MetaImage with values to be scaled, which SimpleITK does not do": (
        "unsupported_format",
        lambda path: with_text(path / "scan.mha", MHA_MATRIX, f"{MHA_MATRIX}\nElementToIntensityFunctionSlope = 2"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_contradictions_are_refused(tmp_path: Path, name: str) -> None:
    code, write = REFUSED[name]
    path = write(tmp_path)
    assert SimpleITK.ReadImage(str(path)).GetSize() == SHAPE
    with pytest.raises(ServiceError) as caught:
        read(path)
    assert caught.value.code == code


def test_a_series_with_a_missing_slice_is_refused(tmp_path: Path) -> None:
    """SimpleITK reads it, with even slices."""
    paths = write_series(tmp_path / "in", regular_stack())
    paths[3].unlink()
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "in")))
    assert reader.Execute().GetSize()[2] == 5
    with pytest.raises(ServiceError) as caught:
        read(tmp_path / "in")
    assert caught.value.code == "missing_slices"


def test_frames_of_a_multi_frame_image_are_in_the_order_of_their_positions(tmp_path: Path) -> None:
    """SimpleITK stacks them in the order of the file, with a spacing of 1."""
    stack = regular_stack()
    path = write_enhanced(tmp_path / "in", stack)
    assert SimpleITK.ReadImage(str(path)).GetSpacing() == (1, 1, 1)
    scan = read(path)
    np.testing.assert_array_equal(scan.volume.voxels, stack.voxels)
    np.testing.assert_allclose(scan.volume.spacing_mm, (0.75, 1.25, 2.5))


def test_a_slope_of_0_does_not_scale(tmp_path: Path) -> None:
    """As the standard says; SimpleITK adds the intercept."""
    path = write_nifti(tmp_path / "scan.nii", scaling=(0, 7))
    np.testing.assert_array_equal(read(path).volume.voxels, RAMP)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).transpose(), RAMP + 7)


def test_the_sform_goes_before_the_qform(tmp_path: Path) -> None:
    """SimpleITK prefers the qform of a scanner to the sform of a template."""
    moved = STRAIGHT.copy()
    moved[:3, 3] += 5
    path = write_nifti(tmp_path / "scan.nii", forms=(STRAIGHT, moved), sform_code=4, qform_code=1)
    np.testing.assert_allclose(read(path).volume.affine, STRAIGHT)
    assert SimpleITK.ReadImage(str(path)).GetOrigin()[2] == moved[2, 3]


def test_fill_values_are_no_measurements(tmp_path: Path) -> None:
    voxels = RAMP.astype(np.float32)
    voxels[0] = np.finfo(np.float32).min
    path = write_nifti(tmp_path / "scan.nii", voxels)
    assert (read(path).volume.voxels[0] == RAMP[1:].min()).all()
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).transpose(), voxels)


def test_padding_is_air(tmp_path: Path) -> None:
    """SimpleITK does not read PixelPaddingValue."""

    def change(k: int, dataset: Dataset) -> None:
        stored = (phantom()[:, :, k] + 1024).T.astype(np.int16)
        stored[0] = -2000
        set_stored_values(dataset, stored)
        dataset.PixelPaddingValue = -2000

    (path, *_) = write_series(tmp_path / "in", regular_stack(), change=change)
    assert (read(tmp_path / "in").volume.voxels[:, 0] == -1024).all()
    assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).min() == -3024
