"""The scans of several channels: told apart, read, and brought to one grid."""

import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from dicom_files import regular_stack, write_series
from numpy.typing import NDArray

from inference_service.contract.input_options import InputOptions
from inference_service.core.errors import (
    BadRequest,
    InconsistentGeometry,
    InputCorrupt,
    InputTooLarge,
    MixedSeries,
    NotAVolume,
    OutOfMemory,
    ServiceError,
)
from inference_service.core.files import Sources
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.channel_reader import Study, read_study
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import ReadOptions

NAMES = ("T1", "FLAIR")
SHAPE = (6, 7, 8)
GRID = np.diag([1.0, 1.5, 2.0, 1.0])


def values(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(10, 900, size=shape).astype(np.int16)


def write(path: Path, seed: int = 0, affine: NDArray[np.float64] = GRID, **kwargs: tuple[int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values(seed, **kwargs), affine), path)
    return path


def moved(mm: float) -> NDArray[np.float64]:
    affine = GRID.copy()
    affine[0, 3] = mm
    return affine


def study(
    sources: Sources,
    names: Sequence[str] = NAMES,
    *,
    limits: ReadLimits | None = None,
    options: InputOptions | None = None,
) -> Study:
    one = sources if isinstance(sources, Path) else next(iter(sources.values()))
    work = one.parent / "work"
    work.mkdir()
    read_options = ReadOptions(limits or ReadLimits(10**5), options or InputOptions(), threads=1)
    return read_study(sources, names, work, read_options)


def refusal(sources: Sources, names: Sequence[str] = NAMES, *, limits: ReadLimits | None = None) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        study(sources, names, limits=limits)
    return caught.value


def test_channels_on_one_grid_are_read_as_they_are(tmp_path: Path) -> None:
    sources = {"T1": write(tmp_path / "a.nii.gz", 1), "FLAIR": write(tmp_path / "b.nii", 2)}
    read = study(sources)
    assert [channel.name for channel in read.channels] == ["T1", "FLAIR"]
    assert [channel.sources for channel in read.channels] == [(sources["T1"],), (sources["FLAIR"],)]
    assert read.first.volume is read.channels[0].volume
    for seed, channel in enumerate(read.channels, 1):
        np.testing.assert_array_equal(channel.volume.voxels, values(seed))
        assert (channel.shape, channel.spacing_mm, channel.resampled) == (SHAPE, (1.0, 1.5, 2.0), False)
    assert read.warnings == ()


def test_channels_are_read_in_the_order_of_the_model(tmp_path: Path) -> None:
    read = study({"FLAIR": write(tmp_path / "b.nii", 2), "T1": write(tmp_path / "a.nii", 1)})
    assert [channel.name for channel in read.channels] == ["T1", "FLAIR"]
    np.testing.assert_array_equal(read.first.volume.voxels, values(1))


def test_a_channel_on_another_grid_is_resampled_to_that_of_the_first(tmp_path: Path) -> None:
    other = np.diag([-0.9, 1.2, 2.2, 1.0])
    other[0, 3] = 5.0
    sources = {"T1": write(tmp_path / "a.nii"), "FLAIR": write(tmp_path / "b.nii", 2, other, shape=(7, 8, 7))}
    read = study(sources)
    first, second = read.channels
    assert (second.shape, second.resampled) == ((7, 8, 7), True)
    np.testing.assert_array_equal(second.volume.affine, first.volume.affine)
    target, image = (SimpleITK.ReadImage(path, SimpleITK.sitkFloat32) for path in sources.values())
    fill = float(values(2, (7, 8, 7)).min())
    expected = SimpleITK.Resample(image, target, SimpleITK.Transform(), SimpleITK.sitkLinear, fill)
    np.testing.assert_allclose(second.volume.voxels.astype(float), SimpleITK.GetArrayFromImage(expected).T, atol=1e-2)
    (warning,) = read.warnings
    assert warning.code is WarningCode.CHANNEL_RESAMPLED
    assert warning.message == "channel FLAIR was resampled to the grid of channel T1"


def test_the_warning_states_the_share_that_a_channel_covers(tmp_path: Path) -> None:
    (warning,) = study({"T1": write(tmp_path / "a.nii"), "FLAIR": write(tmp_path / "b.nii", affine=moved(2))}).warnings
    assert warning.message.endswith("T1, of which it covers 66%; the rest got its lowest value")


@pytest.mark.parametrize(("mm", "share"), [(5.0, "16%"), (100.0, "0%")])
def test_channels_of_different_regions_are_refused(tmp_path: Path, mm: float, share: str) -> None:
    error = refusal({"T1": write(tmp_path / "a.nii"), "FLAIR": write(tmp_path / "b.nii", affine=moved(mm))})
    assert isinstance(error, InconsistentGeometry)
    assert error.message.startswith(f"channel FLAIR: it covers {share} of the grid of channel T1")


def test_memory_is_required_before_a_channel_is_resampled(tmp_path: Path) -> None:
    required: list[int] = []

    def require(size_bytes: int) -> None:
        required.append(size_bytes)
        if size_bytes == 4 * 6 * 7 * 8:
            raise OutOfMemory("enough")

    sources = {"T1": write(tmp_path / "a.nii"), "FLAIR": write(tmp_path / "b.nii", affine=moved(1))}
    assert isinstance(refusal(sources, limits=ReadLimits(10**5, require_memory=require)), OutOfMemory)
    assert required[-1] == 4 * 6 * 7 * 8


@pytest.mark.parametrize(("limit", "channel"), [(335, "T1"), (671, "FLAIR"), (672, None)])
def test_the_limit_on_voxels_holds_for_all_channels_together(tmp_path: Path, limit: int, channel: str | None) -> None:
    sources = {"T1": write(tmp_path / "a.nii"), "FLAIR": write(tmp_path / "b.nii")}
    if channel is None:
        study(sources, limits=ReadLimits(limit))
        return
    error = refusal(sources, limits=ReadLimits(limit))
    assert isinstance(error, InputTooLarge)
    assert error.message.startswith(f"channel {channel}: ")


def test_a_small_channel_counts_as_large_as_it_becomes(tmp_path: Path) -> None:
    coarse = np.diag([3.0, 5.0, 8.0, 1.0])
    sources = {"T1": write(tmp_path / "a.nii"), "FLAIR": write(tmp_path / "b.nii", affine=coarse, shape=(2, 2, 2))}
    error = refusal(sources, limits=ReadLimits(671))
    assert error.message.startswith("channel FLAIR: on the grid of channel T1 it has 336 voxels")


def test_the_limit_on_bytes_holds_for_all_channels_together(tmp_path: Path) -> None:
    sources = {name: tmp_path / f"{name}.zip" for name in NAMES}
    for path in sources.values():
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(write(tmp_path / "a.nii"), "a.nii")
    size = (tmp_path / "a.nii").stat().st_size
    error = refusal(sources, limits=ReadLimits(10**5, max_bytes=2 * size - 1))
    assert isinstance(error, InputTooLarge)
    assert error.message.startswith("channel FLAIR: ")


def test_each_error_and_warning_names_its_channel(tmp_path: Path) -> None:
    sources = {"T1": write(tmp_path / "a.nii"), "FLAIR": tmp_path / "b.nii"}
    sources["FLAIR"].write_bytes(b"")
    assert isinstance(error := refusal(sources), InputCorrupt)
    assert error.message.startswith("channel FLAIR: ")
    image = nibabel.Nifti1Image(np.where(values() > 800, np.nan, values()).astype(np.float32), GRID)
    nibabel.save(image, sources["FLAIR"])
    (tmp_path / "work").rename(tmp_path / "first")
    (warning,) = study(sources).warnings
    assert warning.code is WarningCode.FILL_VALUES_REPLACED
    assert warning.message.startswith("channel FLAIR: ")


@pytest.mark.parametrize("given", [["T1"], ["T1", "FLAIR", "T2"], ["T1", "Flair"], ["T1", "MUELLER^HANS"], []], ids=str)
def test_other_channels_than_those_of_the_model_are_refused(tmp_path: Path, given: list[str]) -> None:
    path = write(tmp_path / "a.nii")
    with pytest.raises(BadRequest) as caught:
        read_study(dict.fromkeys(given, path), NAMES, tmp_path, ReadOptions(ReadLimits(10**5), InputOptions(), 1))
    assert caught.value.message.endswith("for each channel of the model, by its name: T1, FLAIR")
    assert "MUELLER" not in caught.value.message


def test_a_model_of_one_channel_names_none(tmp_path: Path) -> None:
    error = refusal({"CT": write(tmp_path / "a.nii")}, ["CT"], limits=ReadLimits(1))
    assert error.message.startswith("the volume has 336 voxels")


# DICOM.


def frame(uid: str, series: str = "1.2.3") -> Mapping[str, str]:
    return {"FrameOfReferenceUID": uid, "SeriesInstanceUID": series}


def series(folder: Path, **attributes: str) -> Path:
    def change(_: int, dataset: object) -> None:
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)

    write_series(folder, regular_stack(), change=change)
    return folder


def test_series_with_other_frames_of_reference_are_refused(tmp_path: Path) -> None:
    sources = {
        "T1": series(tmp_path / "a", **frame("1.2.840.77")),
        "FLAIR": series(tmp_path / "b", **frame("1.2.840.78")),
    }
    error = refusal(sources)
    assert isinstance(error, InconsistentGeometry)
    assert error.message.startswith("channels T1 and FLAIR have different frames of reference")
    assert "1.2.840" not in error.message


@pytest.mark.parametrize("uid", ["1.2.840.77", ""])
def test_series_of_one_frame_of_reference_or_of_none_are_read(tmp_path: Path, uid: str) -> None:
    sources = {"T1": series(tmp_path / "a", **frame("1.2.840.77")), "FLAIR": series(tmp_path / "b", **frame(uid))}
    assert [channel.resampled for channel in study(sources).channels] == [False, False]


def test_dicom_and_nifti_are_mixed(tmp_path: Path) -> None:
    sources = {"T1": series(tmp_path / "a"), "FLAIR": tmp_path / "b.nii"}
    grid = study({"CT": sources["T1"]}, ["CT"]).first.volume
    nibabel.save(nibabel.Nifti1Image(values(2, grid.shape), grid.affine), sources["FLAIR"])
    (tmp_path / "work").rename(tmp_path / "first")
    read = study(sources)
    assert [channel.input_format for channel in read.channels] == ["dicom", "nifti"]
    assert [channel.resampled for channel in read.channels] == [False, False]
    assert read.first.slices


def test_each_channel_selects_its_series_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for number in (3, 4):
        write_series(folder / str(number), replace(regular_stack(), series_uid=f"1.2.{number}"))
    error = refusal(folder)
    assert isinstance(error, MixedSeries)
    assert "DICOM images of 2 series: name each channel in input.channels by the key" in error.message
    assert "1.2." not in error.message
    assert sorted(error.slices) == ["1.2.3", "1.2.4"]
    (tmp_path / "work").rename(tmp_path / "first")
    options = InputOptions(channels={"T1": InputOptions(series="1.2.4"), "FLAIR": InputOptions(series="1.2.3")})
    read = study(dict.fromkeys(NAMES, folder), options=options)
    assert read.first.slices[0].instance.series_uid == "1.2.4"


def test_a_single_series_is_not_enough(tmp_path: Path) -> None:
    error = refusal(series(tmp_path / "in"))
    assert isinstance(error, NotAVolume)
    assert "DICOM images of 1 series" in error.message


def test_a_series_on_a_tilted_gantry_is_the_grid_of_the_others(tmp_path: Path) -> None:
    """The other channel is resampled to the aligned grid, from where its own voxels lie."""
    sheared = GRID.copy()
    sheared[1, 2] = 0.75
    sources = {"T1": write(tmp_path / "a.nii", affine=sheared), "FLAIR": write(tmp_path / "b.nii", 2)}
    read = study(sources)
    first, second = read.channels
    assert read.first.aligned is not None
    assert first.volume is read.first.aligned.volume
    assert second.resampled
    assert second.volume.shape == first.volume.shape
    # Where the aligned grid coincides with that of the second channel, its values are the same.
    offset = np.linalg.solve(GRID, first.volume.affine)[:3, 3]
    assert np.allclose(offset, np.rint(offset))
    j = -int(np.rint(offset[1]))
    np.testing.assert_allclose(second.volume.voxels[:, j : j + 7].astype(float), values(2), atol=1e-3)


def test_two_scans_sheared_alike_are_aligned_alike(tmp_path: Path) -> None:
    sheared = GRID.copy()
    sheared[1, 2] = 0.75
    sources = {"T1": write(tmp_path / "a.nii", 1, sheared), "FLAIR": write(tmp_path / "b.nii", 2, sheared)}
    read = study(sources)
    assert not read.channels[1].resampled
    assert read.channels[0].volume.shape == read.channels[1].volume.shape


# Files of several channels in one folder or archive, with the names of nnU-Net.


def test_a_folder_with_the_names_of_nnunet(tmp_path: Path) -> None:
    write(tmp_path / "in" / "case_0001.nii.gz", 2)
    write(tmp_path / "in" / "case_0000.nii", 1)
    (tmp_path / "in" / "dataset.json").write_text("{}")
    read = study(tmp_path / "in")
    assert [channel.sources for channel in read.channels] == [
        (tmp_path / "in" / "case_0000.nii",),
        (tmp_path / "in" / "case_0001.nii.gz",),
    ]
    np.testing.assert_array_equal(read.channels[1].volume.voxels, values(2))


def test_pairs_of_header_and_voxels_are_told_apart_too(tmp_path: Path) -> None:
    for number in range(2):
        image = SimpleITK.GetImageFromArray(values(number).T)
        (tmp_path / "in").mkdir(exist_ok=True)
        SimpleITK.WriteImage(image, tmp_path / "in" / f"case_000{number}.mhd")
    read = study(tmp_path / "in")
    assert [len(channel.sources) for channel in read.channels] == [2, 2]
    for number, channel in enumerate(read.channels):
        np.testing.assert_array_equal(channel.volume.voxels, values(number))


LONG = "MUELLER^HANS/" * 20


@pytest.mark.parametrize("folder", ["", "a_0005/b_0001/", LONG], ids=["plain", "misleading folders", "long"])
@pytest.mark.parametrize("kind", ["zip", "gnu", "pax", "ustar", "tar.gz"])
def test_an_archive_with_the_names_of_nnunet(tmp_path: Path, kind: str, folder: str) -> None:
    if kind == "ustar" and len(folder) > 150:
        folder = folder[:130] + "/"
    files = {f"{folder}case_000{number}.nii": write(tmp_path / f"{number}.nii", number) for number in (1, 0)}
    archive = tmp_path / "in"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for name, path in files.items():
                packed.write(path, name)
    else:
        formats = {"gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}
        with tarfile.open(
            archive, "w:gz" if kind == "tar.gz" else "w", format=formats.get(kind, tarfile.PAX_FORMAT)
        ) as tar:
            for name, path in files.items():
                tar.add(path, name)
    read = study(archive)
    assert [channel.sources[0].name for channel in read.channels] == ["000001_0000", "000000_0001"]
    for number, channel in enumerate(read.channels):
        np.testing.assert_array_equal(channel.volume.voxels, values(number))


def test_a_forged_long_name_in_a_tar_is_bounded(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type = tarfile.GNUTYPE_LONGNAME
    header.size = 2**21
    archive = tmp_path / "in"
    archive.write_bytes(header.tobuf() + bytes(2**21 + 1024))
    error = refusal(archive)
    assert isinstance(error, InputCorrupt)
    assert "extended header of 2097152 bytes" in error.message


FOLDERS = {
    "one is missing": (["case_0000.nii"], "1 of _0000"),
    "one is there twice": (["a_0000.nii", "b_0000.nii", "a_0001.nii"], "2 of _0000, 1 of _0001"),
    "one too many": (["a_0000.nii", "a_0001.nii", "a_0002.nii"], "1 of _0000, 1 of _0001, 1 of _0002"),
    "no endings": (["T1.nii", "MUELLER_0099.nii"], "2 of another name"),
    "a mask beside them": (["a_0000.nii", "a_0001.nii", "mask.nii"], "1 of _0000, 1 of _0001, 1 of another name"),
    "three digits": (["a_000.nii", "a_001.nii"], "2 of another name"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_without_one_file_for_each_channel_is_refused(tmp_path: Path, case: str) -> None:
    files, found = FOLDERS[case]
    for name in files:
        write(tmp_path / "in" / name)
    error = refusal(tmp_path / "in")
    assert isinstance(error, NotAVolume)
    assert error.message == (
        "the model takes 2 channels, each a file whose name ends so: T1 (_0000), FLAIR (_0001); the input has these "
        f"volumes: {found}; send one for each, or name a scan for each channel in input.channels"
    )


def test_a_single_file_is_no_study(tmp_path: Path) -> None:
    assert "volumes: 1 of another name;" in refusal(write(tmp_path / "a.nii")).message


def test_a_folder_without_any_volume_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a_0000.txt").write_text("text")
    assert "volumes: none;" in refusal(tmp_path / "in").message


def test_a_model_of_one_channel_takes_a_file_with_an_ending(tmp_path: Path) -> None:
    read = study(write(tmp_path / "in" / "case_0000.nii", 3).parent, ["CT"])
    np.testing.assert_array_equal(read.first.volume.voxels, values(3))


def test_thousands_of_files_are_counted(tmp_path: Path) -> None:
    archive = tmp_path / "in"
    content = write(tmp_path / "a.nii").read_bytes()
    with tarfile.open(archive, "w") as tar:
        for number in range(300):
            entry = tarfile.TarInfo(f"case{number}_{number % 20:04}.nii")
            entry.size = len(content)
            tar.addfile(entry, BytesIO(content))
    message = refusal(archive).message
    assert "15 of _0000, 15 of _0001" in message
    assert "15 of _0015, 60 of another name" in message
    assert len(message) < 1000
