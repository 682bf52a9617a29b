import zipfile
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import phantom, regular_stack, with_attribute, write_series
from numpy.typing import NDArray
from pydicom.uid import MediaStorageDirectoryStorage

from inference_service.core.errors import InputCorrupt, InputTooLarge, NotAVolume, ServiceError, UnsupportedFormat
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.nifti import write_volume
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import read_scan
from inference_service.imaging.geometry import Volume

SHAPE = (3, 4, 5)
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 0, 4.5, -40], [0, 0.5, 0, 50], [0, 0, 0, 1]])
MAX_VOXELS = 1000


def values(dtype: str = "f4") -> NDArray[np.floating]:
    return np.arange(60).reshape(SHAPE).astype(dtype) - 20


def save(path: Path, voxels: NDArray[np.generic]) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_scan_is_recognised_by_its_content_under_any_name(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"scan{suffix}", values()).rename(tmp_path / "object.dcm")
    scan = read_scan(path, tmp_path, ReadLimits(MAX_VOXELS))
    np.testing.assert_array_equal(scan.volume.voxels, values(), strict=True)
    np.testing.assert_array_equal(scan.volume.affine, AFFINE)
    assert scan.grid.get_data_shape() == SHAPE
    assert scan.replaced_voxels == 0


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_nan_and_infinite_voxels_get_the_lowest_finite_value(tmp_path: Path, dtype: str) -> None:
    voxels = values(dtype)
    voxels[0, 0, 0] = np.nan
    voxels[1, 2, 3] = np.inf
    voxels[2, 3, 4] = -np.inf
    voxels[2, 0, 0] = np.nan
    scan = read_scan(save(tmp_path / "scan.nii", voxels), tmp_path, ReadLimits(MAX_VOXELS))
    expected = np.where(np.isfinite(voxels), voxels, np.array(-19, dtype))
    np.testing.assert_array_equal(scan.volume.voxels, expected, strict=True)
    assert scan.replaced_voxels == 4
    assert [warning.code for warning in scan.warnings] == [WarningCode.FILL_VALUES_REPLACED]


def test_integers_are_not_changed(tmp_path: Path) -> None:
    scan = read_scan(save(tmp_path / "scan.nii", values().astype(np.int16)), tmp_path, ReadLimits(MAX_VOXELS))
    np.testing.assert_array_equal(scan.volume.voxels, values().astype(np.int16), strict=True)
    assert scan.replaced_voxels == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_volume_without_finite_values_is_refused(tmp_path: Path, value: float) -> None:
    path = save(tmp_path / "scan.nii", np.full(SHAPE, value, dtype=np.float32))
    with pytest.raises(InputCorrupt, match="NaN, infinite or a fill value"):
        read_scan(path, tmp_path, ReadLimits(MAX_VOXELS))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", InputCorrupt),
        (b"\x1f\x8b", InputCorrupt),
        (b"\x1f\x8b\x08\x00garbage that is no deflate stream", InputCorrupt),
        (b"PK\x03\x04", InputCorrupt),
        (b"\0" * 128 + b"DICM", InputCorrupt),
        (b"x", UnsupportedFormat),
        (b"plain text, longer than a NIfTI header\n" * 20, UnsupportedFormat),
        ((348).to_bytes(4, "little"), InputCorrupt),
        ((540).to_bytes(4, "big") + b"\0" * 100, InputCorrupt),
        ((348).to_bytes(4, "little") + b"\0" * 400, UnsupportedFormat),
    ],
    ids=[
        "empty",
        "gzip magic",
        "bad gzip",
        "zip",
        "dicom",
        "one byte",
        "text",
        "nifti-1 cut",
        "nifti-2 cut",
        "analyze",
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: bytes, expected: type[ServiceError]) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    with pytest.raises(ServiceError) as caught:
        read_scan(path, tmp_path, ReadLimits(MAX_VOXELS))
    assert type(caught.value) is expected
    assert str(tmp_path) not in caught.value.message


def test_the_error_on_an_unknown_format_names_the_supported_ones(tmp_path: Path) -> None:
    (tmp_path / "scan").write_bytes(b"plain text")
    with pytest.raises(UnsupportedFormat, match="NIfTI-1 or NIfTI-2 volume"):
        read_scan(tmp_path / "scan", tmp_path, ReadLimits(MAX_VOXELS))


def test_the_limit_on_voxels_is_exact(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", values())
    assert read_scan(path, tmp_path, ReadLimits(60)).volume.shape == SHAPE
    with pytest.raises(InputTooLarge, match="has 60 voxels; this service takes at most 59"):
        read_scan(path, tmp_path, ReadLimits(59))


def test_a_series_of_volumes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAVolume, match=r"\(3, 4, 5, 2\)"):
        read_scan(save(tmp_path / "scan.nii", np.zeros((*SHAPE, 2), np.int16)), tmp_path, ReadLimits(MAX_VOXELS))


LITTER = {
    ".DS_Store": b"\0\0\0\1Bud1" + bytes(100),
    "._ct.nii.gz": b"\0\5\x16\7\0\2\0\0" + bytes(100),
    "Thumbs.db": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(100),
    "ct.json": b'{"Modality": "CT"}',
    "ct.bval": b"0 1000",
    "README": b"",
    "damaged.gz": b"\x1f\x8bxxxx",
}


def nifti_bytes(folder: Path, suffix: str = ".nii.gz") -> bytes:
    return save(folder / f"scan{suffix}", values()).read_bytes()


def written(folder: Path, files: Mapping[str, bytes], *, zipped: bool) -> Path:
    folder.mkdir()
    if zipped:
        with zipfile.ZipFile(folder / "in.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return folder / "in.zip"
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_files_beside_a_nifti_file_are_set_aside(tmp_path: Path, suffix: str, *, zipped: bool) -> None:
    files = {"a/b/scan": nifti_bytes(tmp_path, suffix), **LITTER}
    scan = read_scan(written(tmp_path / "in", files, zipped=zipped), tmp_path, ReadLimits(MAX_VOXELS))
    np.testing.assert_array_equal(scan.volume.voxels, values(), strict=True)
    assert scan.set_aside == {"no_volume": len(LITTER)}
    assert scan.warnings == ()


def test_a_dicom_file_without_an_image_is_set_aside_beside_a_nifti_file(tmp_path: Path) -> None:
    folder = written(tmp_path / "in", {"scan": nifti_bytes(tmp_path)}, zipped=False)
    write_series(
        folder, regular_stack(phantom((5, 4, 1))), change=with_attribute("SOPClassUID", MediaStorageDirectoryStorage)
    )
    assert read_scan(folder, tmp_path, ReadLimits(MAX_VOXELS)).set_aside == {"no_volume": 1}


def test_a_dicom_series_goes_before_a_nifti_file(tmp_path: Path) -> None:
    folder = written(tmp_path / "in", {"scan": nifti_bytes(tmp_path)}, zipped=False)
    write_series(folder, regular_stack())
    scan = read_scan(folder, tmp_path, ReadLimits(MAX_VOXELS))
    assert (scan.input_format, scan.set_aside) == ("dicom", {"not_dicom": 1})


@pytest.mark.parametrize("zipped", [False, True])
def test_two_nifti_files_are_refused_by_their_number(tmp_path: Path, *, zipped: bool) -> None:
    content = nifti_bytes(tmp_path)
    source = written(tmp_path / "in", {"ct": content, "liver": content, **LITTER}, zipped=zipped)
    with pytest.raises(NotAVolume, match="the input holds 2 volumes: expected one"):
        read_scan(source, tmp_path, ReadLimits(MAX_VOXELS))


@pytest.mark.parametrize(
    ("files", "error", "text"),
    [
        ({"a": b"", "b": b""}, InputCorrupt, "the input's 2 files are empty"),
        ({"a": b"", "b": b"\x1f\x8bxxxx"}, InputCorrupt, "gzip stream is truncated or damaged"),
        ({"a": b"", "b": b"text"}, UnsupportedFormat, "2 files are in no supported format"),
    ],
)
def test_files_without_a_scan_are_refused_by_their_fault(
    tmp_path: Path, files: dict[str, bytes], error: type[ServiceError], text: str
) -> None:
    with pytest.raises(error, match=text):
        read_scan(written(tmp_path / "in", files, zipped=True), tmp_path, ReadLimits(MAX_VOXELS))


@pytest.mark.parametrize("spacing_mm", [0.002, 400.0])
def test_a_scan_of_an_unusual_extent_gives_a_warning(tmp_path: Path, spacing_mm: float) -> None:
    write_volume(tmp_path / "scan.nii.gz", Volume(np.ones((9, 8, 7), np.int16), np.diag([*[spacing_mm] * 3, 1.0])))
    scan = read_scan(tmp_path / "scan.nii.gz", tmp_path, ReadLimits(1000))
    assert f"the scan measures {9 * spacing_mm:.4g} × {8 * spacing_mm:.4g}" in scan.warnings[-1].message
    assert scan.warnings[-1].code == WarningCode.UNUSUAL_EXTENT


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(
    "fills", [("lowest",), ("highest",), (1e30,), (-9.96921e36, "highest", np.nan, -np.inf)], ids=str
)
def test_huge_fill_values_are_replaced_as_infinity_is(tmp_path: Path, dtype: str, fills: tuple[object, ...]) -> None:
    limits = {"lowest": np.finfo(dtype).min, "highest": np.finfo(dtype).max}
    voxels = np.linspace(-1000, 1e6, 60).reshape(3, 4, 5).astype(dtype)
    expected = voxels.copy()
    for i, fill in enumerate(fills):
        voxels[i % 3, i % 2] = limits[fill] if isinstance(fill, str) else fill
        expected[i % 3, i % 2] = np.nan
    expected[np.isnan(expected)] = np.nanmin(expected)
    write_volume(tmp_path / "scan.nii.gz", Volume(voxels, np.eye(4)))
    scan = read_scan(tmp_path / "scan.nii.gz", tmp_path, ReadLimits(1000))
    np.testing.assert_array_equal(scan.volume.voxels, expected, strict=True)
    assert scan.replaced_voxels == 5 * len(fills)


def test_a_scaled_fill_value_is_replaced_too(tmp_path: Path) -> None:
    voxels = np.full((3, 4, 5), 7, np.float32)
    voxels[0] = 1e20
    image = nibabel.Nifti1Image(voxels, np.eye(4))
    image.header.set_slope_inter(2, -1024)
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([2, -1024], "<f4").tobytes()
    (tmp_path / "scan.nii").write_bytes(bytes(content))
    scan = read_scan(tmp_path / "scan.nii", tmp_path, ReadLimits(1000))
    assert (scan.volume.voxels == 7 * 2 - 1024).all()
    assert scan.replaced_voxels == 20


def test_a_scan_of_nothing_but_a_fill_value_is_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "scan.nii.gz", Volume(np.full((3, 4, 5), np.finfo("f4").min, np.float32), np.eye(4)))
    with pytest.raises(InputCorrupt, match="infinite or a fill value"):
        read_scan(tmp_path / "scan.nii.gz", tmp_path, ReadLimits(1000))


def test_a_zip_is_unpacked_beside_files_that_hold_no_volume(tmp_path: Path) -> None:
    content = {"scan": nifti_bytes(tmp_path), "README": b"text"}
    archive = written(tmp_path / "zip", content, zipped=True).read_bytes()
    folder = written(tmp_path / "in", {"scan.zip": archive, **LITTER}, zipped=False)
    scan = read_scan(folder, tmp_path, ReadLimits(MAX_VOXELS))
    np.testing.assert_array_equal(scan.volume.voxels, values(), strict=True)
    assert sum(scan.set_aside.values()) == len(LITTER) + 1


def test_a_zip_beside_a_volume_is_set_aside(tmp_path: Path) -> None:
    folder = written(tmp_path / "in", {"scan": nifti_bytes(tmp_path), "other.zip": b"PK\3\4"}, zipped=False)
    assert sum(read_scan(folder, tmp_path, ReadLimits(MAX_VOXELS)).set_aside.values()) == 1
