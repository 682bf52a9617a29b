"""Series about which there is a doubt: damaged files, files of others, positions and names that cannot be right."""

import traceback
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from dicom_encoders import encapsulated, jpeg_2000, jpeg_lossless
from dicom_files import Change, Stack, phantom, set_stored, setting, straight, without, write, write_enhanced
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    MRSpectroscopyStorage,
    RTStructureSetStorage,
)

from inference_service.contract.input_options import InputOptions
from inference_service.core.errors import (
    InconsistentGeometry,
    InputCorrupt,
    InputError,
    InputTooLarge,
    MissingSlices,
    MixedSeries,
    NotAVolume,
    UnsupportedTransferSyntax,
)
from inference_service.formats.read_limits import ReadLimits
from inference_service.formats.scan_reader import Scan, read_scan

X_RAY_DOSE = "1.2.840.10008.5.1.4.1.1.88.67"

SHAPE = (40, 36, 6)


def read(
    folder: Path, *, max_bytes: int = 10**7, require: Callable[[int], None] = lambda _: None, **wishes: object
) -> Scan:
    work = folder.parent / "work"
    work.mkdir(exist_ok=True)
    return read_scan(
        folder, work, ReadLimits(10**6, max_bytes, require),
        input_options=InputOptions(**wishes),  # type: ignore[arg-type]
    )  # fmt: skip


def at_heights(heights_mm: list[float]) -> Stack:
    stack = straight(phantom((9, 7, len(heights_mm))))
    positions = stack.positions_mm.copy()
    positions[:, 2] = heights_mm
    return Stack(stack.voxels, stack.row, stack.column, stack.pixel_mm, positions)


PIXELS = np.ascontiguousarray(phantom(SHAPE)[:, :, 1].T)
JPEGS = [
    (JPEGLosslessSV1, jpeg_lossless((PIXELS + 1024).astype(np.uint16), 16), 16),
    (JPEGBaseline8Bit, bytes(imagecodecs.jpeg8_encode(((PIXELS + 1024) // 8).astype(np.uint8), level=95)), 8),
]


@pytest.mark.parametrize("share", [0.97, 0.9, 0.5, 0.3])
@pytest.mark.parametrize(("syntax", "frame", "bits"), JPEGS, ids=["lossless", "baseline"])
def test_a_jpeg_that_ends_early_is_not_filled_up(
    tmp_path: Path, syntax: str, frame: bytes, bits: int, share: float
) -> None:
    stored = np.zeros(PIXELS.shape, np.dtype(f"u{bits // 8}"))

    def change(k: int, dataset: Dataset) -> None:
        set_stored(dataset, stored, bits=bits)

    for path in write(tmp_path / "in", straight(phantom(SHAPE)), change=change):
        encapsulated(path, syntax, frame)
    assert read(tmp_path / "in").volume.shape == SHAPE
    for path in write(tmp_path / "in", straight(phantom(SHAPE)), change=change):
        encapsulated(path, syntax, frame[: int(share * len(frame))])
    with pytest.raises(InputCorrupt):
        read(tmp_path / "in")


def test_jpeg_2000_of_more_bits_than_its_decoder_is_exact_for_is_refused(tmp_path: Path) -> None:
    def change(k: int, dataset: Dataset) -> None:
        set_stored(dataset, np.zeros((36, 40), np.uint32), bits=32)

    for path in write(tmp_path / "in", straight(phantom(SHAPE)), change=change):
        encapsulated(path, JPEG2000Lossless, jpeg_2000(np.zeros((36, 40), np.uint16), 16))
    with pytest.raises(UnsupportedTransferSyntax, match="decoded up to 24 bits, and the series has 32"):
        read(tmp_path / "in")


@pytest.mark.parametrize("left", [500, 600, 700, 800])
def test_a_last_slice_that_is_cut_in_its_header_is_not_dropped(tmp_path: Path, left: int) -> None:
    last = write(tmp_path / "in", straight())[-1]
    last.write_bytes(last.read_bytes()[:left])
    with pytest.raises(InputCorrupt):
        read(tmp_path / "in")


@pytest.mark.parametrize("left", [0, 100, 131, 200, 300])
def test_a_last_slice_of_which_nothing_is_known_is_told_of(tmp_path: Path, left: int) -> None:
    last = write(tmp_path / "in", straight())[-1]
    last.write_bytes(last.read_bytes()[:left])
    scan = read(tmp_path / "in")
    assert scan.volume.shape[2] == 5
    assert "1 of the 6 files could not be read as DICOM" in scan.warnings[-1]


BROKEN: list[Change] = [
    setting("PixelSpacing", [1]),
    setting("RescaleSlope", 0),
    setting("HighBit", 40),
    setting("ImageOrientationPatient", [1, 0, 0, 0]),
    without("Rows"),
]


@pytest.mark.parametrize("change", BROKEN)
def test_what_is_wrong_with_another_series_is_not_this_ones(tmp_path: Path, change: Change) -> None:
    write(tmp_path / "in" / "ours", straight())
    other = straight(phantom()[:, :, :2])
    other = Stack(other.voxels, other.row, other.column, other.pixel_mm, other.positions_mm, "1.2.3.5")
    write(tmp_path / "in" / "other", other, change=change)
    assert read(tmp_path / "in", series="1.2.3.4").volume.shape == (9, 7, 6)
    scan = read(tmp_path / "in")
    assert scan.volume.shape == (9, 7, 6)
    assert scan.set_aside == {"unreadable": 2}
    write(tmp_path / "in" / "ours", straight(), change=lambda k, dataset: change(k, dataset) if k == 2 else None)
    with pytest.raises(InputError, match=r"\(1 of the series' 6 files\)"):
        read(tmp_path / "in", series="1.2.3.4")


@pytest.mark.parametrize("kind", [MRSpectroscopyStorage, RTStructureSetStorage])
def test_objects_that_are_no_images_are_set_aside(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "in" / "ours", straight())

    def change(k: int, dataset: Dataset) -> None:
        dataset.SOPClassUID, dataset.SeriesInstanceUID = kind, "1.2.3.5"
        del dataset.BitsAllocated, dataset.PixelData
        if kind == RTStructureSetStorage:
            del dataset.Rows, dataset.Columns

    write(tmp_path / "in" / "other", straight(phantom()[:, :, :1]), change=change)
    assert read(tmp_path / "in").set_aside == {"no_image": 1}


@pytest.mark.parametrize("tolerate", [(), ("uneven_spacing",)])
@pytest.mark.parametrize(
    "heights_mm",
    [[0, 3, 6, 6.02, 9, 12, 15], [0, 0.5, 5, 5.5, 10, 10.5, 15], [0, 0.5, 3, 3.5, 6, 6.5, 9, 9.5]],
    ids=["a slice nearly twice", "two phases", "as many of each"],
)
def test_slices_nearly_upon_one_another_are_never_mended(
    tmp_path: Path, heights_mm: list[float], tolerate: tuple[str, ...]
) -> None:
    write(tmp_path / "in", at_heights(heights_mm))
    with pytest.raises(InconsistentGeometry, match="two acquisitions seem to be interleaved"):
        read(tmp_path / "in", tolerate=tolerate)


@pytest.mark.parametrize("wide_mm", [5.0, 7.5, 10.0])
def test_a_head_of_two_spacings_is_mended_where_that_is_tolerated(tmp_path: Path, wide_mm: float) -> None:
    """Thin slices through the base of the skull, thick ones above."""
    write(tmp_path / "in", at_heights(np.cumsum([0, *[2.5] * 8, *[wide_mm] * 10]).tolist()))
    with pytest.raises(InconsistentGeometry, match=rf"slices are 2\.5 to {wide_mm:g} mm apart"):
        read(tmp_path / "in")
    scan = read(tmp_path / "in", tolerate=("uneven_spacing",))
    assert scan.evenly_spaced is not None
    assert scan.volume.spacing_mm[2] == pytest.approx(2.5)


def test_a_slice_between_two_others_is_mended_where_that_is_tolerated(tmp_path: Path) -> None:
    write(tmp_path / "in", at_heights([0, 2.5, 5, 5.5, *np.arange(7.5, 30, 2.5).tolist()]))
    with pytest.raises(InconsistentGeometry, match=r"slices are 0\.5 to 2\.5 mm apart"):
        read(tmp_path / "in")
    assert read(tmp_path / "in", tolerate=("uneven_spacing",)).volume.spacing_mm[2] == pytest.approx(2.5)


def test_missing_slices_here_and_there_are_missing(tmp_path: Path) -> None:
    heights_mm = [2.5 * number for number in range(20) if number not in (4, 9, 10, 15)]
    write(tmp_path / "in", at_heights(heights_mm))
    with pytest.raises(MissingSlices, match="4 slices are missing"):
        read(tmp_path / "in")


@pytest.mark.parametrize(
    ("step_mm", "thickness_mm", "warned"),
    [(10.5, None, True), (9.5, None, False), (5, 2.5, True), (4, 2.5, False), (2, 3, False)],
)
def test_slices_with_much_between_them_are_warned_of(
    tmp_path: Path, step_mm: float, thickness_mm: float | None, warned: bool
) -> None:
    change = without("SliceThickness") if thickness_mm is None else setting("SliceThickness", thickness_mm)
    write(tmp_path / "in", straight(step_mm=step_mm), change=change)
    found = [
        warning for warning in read(tmp_path / "in").warnings if "it cannot be seen whether any are missing" in warning
    ]
    assert len(found) == warned


def test_the_grid_does_not_depend_on_the_files_names(tmp_path: Path) -> None:
    """Directions that differ by rounding."""

    def change(k: int, dataset: Dataset) -> None:
        dataset.ImageOrientationPatient = [1, k * 1e-4, 0, -k * 1e-4, 1, 0]

    paths = write(tmp_path / "in", straight(), change=change)
    affine = read(tmp_path / "in").volume.affine
    (tmp_path / "other").mkdir()
    for number, path in enumerate(reversed(paths)):
        path.rename(tmp_path / "other" / str(number))
    np.testing.assert_array_equal(read(tmp_path / "other").volume.affine, affine)


@pytest.mark.parametrize(("name", "value"), [("RescaleSlope", "1e39"), ("RescaleIntercept", "-1e38")])
def test_a_rescaling_out_of_all_numbers_is_refused(tmp_path: Path, name: str, value: str) -> None:
    write(tmp_path / "in", straight(), change=setting(name, value, only=2))
    with pytest.raises(InputCorrupt, match="rescale slope"):
        read(tmp_path / "in")


def test_padding_that_would_be_tissue_is_not_believed(tmp_path: Path) -> None:
    write(tmp_path / "in", straight(), change=setting("PixelPaddingValue", 60 + 1024))
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, straight().voxels)
    assert "the series marks values as padding that are tissue in CT: they were not taken for padding" in scan.warnings


@pytest.mark.parametrize(("value", "limit"), [(65535, 200), (0, 65535)])
def test_a_range_of_padding_that_spans_tissue_is_not_believed(tmp_path: Path, value: int, limit: int) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.PixelPaddingValue, dataset.PixelPaddingRangeLimit = value, limit
        set_stored(dataset, dataset.pixel_array.astype(np.uint16))

    write(tmp_path / "in", straight(), change=change)
    scan = read(tmp_path / "in")
    np.testing.assert_array_equal(scan.volume.voxels, straight().voxels)
    assert "the series marks values as padding that are tissue in CT: they were not taken for padding" in scan.warnings


def items(count: int) -> list[Dataset]:
    made = [Dataset() for _ in range(count)]
    for item in made:
        item.ReferencedSOPInstanceUID, item.PurposeOfReferenceCodeSequence = "1.2", [Dataset()]
    return made


def test_a_slice_may_list_the_images_that_it_was_made_of(tmp_path: Path) -> None:
    write(tmp_path / "in", straight(), change=setting("SourceImageSequence", items(700)))
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels, straight().voxels)


def test_a_report_of_many_items_is_no_image_and_not_unreadable(tmp_path: Path) -> None:
    def change(k: int, dataset: Dataset) -> None:
        del dataset.Rows, dataset.Columns, dataset.PixelData
        dataset.SOPClassUID, dataset.SeriesInstanceUID = X_RAY_DOSE, ""
        dataset.SourceImageSequence = items(20_000)

    write(tmp_path / "in", straight(), change=setting("SeriesInstanceUID", ""))
    write(tmp_path / "in" / "report", straight(phantom()[:, :, :1]), change=change)
    scan = read(tmp_path / "in")
    assert scan.set_aside == {"no_image": 1}
    assert scan.warnings == ()


def test_a_last_slice_with_a_lookup_table_is_told_of(tmp_path: Path) -> None:
    write(tmp_path / "in", straight(), change=setting("ModalityLUTSequence", [Dataset()], only=5))
    scan = read(tmp_path / "in")
    assert scan.volume.shape[2] == 5
    assert "1 of the 6 files could not be read as DICOM" in scan.warnings[-1]


def test_a_last_slice_that_is_called_a_projection_is_told_of(tmp_path: Path) -> None:
    write(tmp_path / "in", straight(), change=setting("ImageType", ["DERIVED", "PRIMARY", "MIP"], only=5))
    scan = read(tmp_path / "in")
    assert scan.volume.shape[2] == 5
    assert scan.warnings[-1].startswith("1 image with the planes of the series was left out")


@pytest.mark.parametrize("thickness", [[3, 3], "nan", ""])
def test_a_thickness_of_no_sense_does_no_harm(tmp_path: Path, thickness: object) -> None:
    write(tmp_path / "in", straight(), change=setting("SliceThickness", thickness))
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels, straight().voxels)


def test_a_modality_that_could_be_a_name_is_not_passed_on(tmp_path: Path) -> None:
    write(tmp_path / "in", straight(), change=setting("Modality", "MUSTERMANN", only=2))
    with pytest.raises(InconsistentGeometry, match=r"differ in modality: \?, CT"):
        read(tmp_path / "in")


def test_zeros_may_follow_a_jpeg_2000(tmp_path: Path) -> None:
    for path in write(tmp_path / "in", straight(phantom(SHAPE))):
        encapsulated(path, JPEG2000Lossless, jpeg_2000((PIXELS + 1024).astype(np.uint16), 16) + bytes(200))
    np.testing.assert_array_equal(read(tmp_path / "in").volume.voxels[:, :, 0].T, PIXELS)


def test_a_single_frame_of_an_enhanced_object_is_as_thick_as_it_says(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "in", straight(phantom()[:, :, :1]))
    assert read(path).volume.spacing_mm[2] == 7


def test_a_series_of_colour_is_refused_as_one(tmp_path: Path) -> None:
    write(tmp_path / "in", straight(), change=setting("PhotometricInterpretation", "PALETTE COLOR"))
    with pytest.raises(NotAVolume, match="no series of slices: it holds 6 colour"):
        read(tmp_path / "in")


def test_a_jpeg_2000_without_its_end_is_refused(tmp_path: Path) -> None:
    """Cut, and filled with zeros to where it ended."""
    (path, *_) = write(tmp_path / "in", straight(phantom(SHAPE)))
    frame = jpeg_2000((PIXELS + 1024).astype(np.uint16), 16)
    encapsulated(path, JPEG2000Lossless, frame[: len(frame) * 6 // 10] + b"\0" * (len(frame) * 4 // 10))
    with pytest.raises(InputCorrupt, match="truncated"):
        read(tmp_path / "in")


def test_spacing_that_grows_is_no_missing_slice(tmp_path: Path) -> None:
    write(tmp_path / "in", at_heights(np.cumsum([0, *np.arange(3.02, 3.43, 0.04)]).tolist()))
    with pytest.raises(InconsistentGeometry, match=r"slices are 3\.02 to 3\.42 mm apart"):
        read(tmp_path / "in")


def test_a_slight_tilt_of_a_long_stack_is_a_tilt(tmp_path: Path) -> None:
    drift = np.tan(np.radians(0.045))
    write(tmp_path / "in", straight(phantom((9, 7, 600)), step_mm=1, drift_mm=(0, drift, 0), pixel_mm=(0.75, 0.75)))
    with pytest.raises(InputError, match=r"tilted by 0\.045°.*drift by 0\.47"):
        read(tmp_path / "in")


def test_images_of_one_name_or_of_two_modalities_are_no_series(tmp_path: Path) -> None:
    write(tmp_path / "in", straight(), change=setting("SOPInstanceUID", "1.2.3.4.5"))
    with pytest.raises(InconsistentGeometry, match="5 of the series' 6 images have the SOPInstanceUID of another one"):
        read(tmp_path / "in")
    write(tmp_path / "in", straight(), change=setting("Modality", "MR", only=2))
    with pytest.raises(InconsistentGeometry, match="differ in modality: CT, MR"):
        read(tmp_path / "in")


def test_images_of_two_studies_are_no_series(tmp_path: Path) -> None:
    write(tmp_path / "in", straight(), change=setting("StudyInstanceUID", "1.2.3", only=2))
    with pytest.raises(InconsistentGeometry, match="belong to 2 studies"):
        read(tmp_path / "in")


@pytest.mark.parametrize(("numbers", "alternate"), [((1, 1, 1, 2, 2, 2), False), ((1, 2, 1, 2, 1, 2), True)])
def test_acquisitions_that_alternate_are_told_of(tmp_path: Path, numbers: tuple[int, ...], alternate: bool) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.AcquisitionNumber = numbers[k]

    write(tmp_path / "in", straight(), change=change)
    expected = ("slices of 2 acquisitions alternate: they may have been taken at different times",)
    assert read(tmp_path / "in").warnings == (expected if alternate else ())


def test_deflated_files_share_one_limit_and_ask_for_memory(tmp_path: Path) -> None:
    asked: list[int] = []
    size = 2 * 60 * 50
    stack = straight(np.full((60, 50, 6), -1000, np.int16))
    write(tmp_path / "in", stack, syntax=DeflatedExplicitVRLittleEndian)
    assert read(tmp_path / "in", max_bytes=7 * size, require=asked.append).volume.shape == (60, 50, 6)
    assert sum(2 * size < each < 3 * size for each in asked) == 12
    with pytest.raises(InputTooLarge, match="inflates to more"):
        read(tmp_path / "in", max_bytes=6 * size)


def test_padding_that_the_bits_stored_cannot_hold_is_padding(tmp_path: Path) -> None:
    stored = np.full((7, 9), 1084, np.uint16)
    stored[2, 3] = 63536

    def change(k: int, dataset: Dataset) -> None:
        set_stored(dataset, stored, bits=12)
        dataset.add_new("PixelPaddingValue", "US", 63536)

    write(tmp_path / "in", straight(), change=change)
    scan = read(tmp_path / "in")
    assert set(np.unique(scan.volume.voxels)) == {-1024, 60}
    assert scan.volume.voxels[3, 2, 0] == -1024


def test_names_that_are_none_are_not_quoted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "in" / name, straight(), change=setting("SeriesInstanceUID", f"{name} SENT^DOE\nInjected"))
    with pytest.raises(MixedSeries) as caught:
        read(tmp_path / "in")
    assert not set("DOEInjected\n") & set(caught.value.message.split("input.series: ")[1].replace("slices", ""))
    write(tmp_path / "one", straight(), change=setting("Modality", "SENT^DOE"))
    assert read(tmp_path / "one").modality == "?"


def test_no_traceback_quotes_a_value(tmp_path: Path) -> None:
    write(tmp_path / "in", straight())
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(path.read_bytes().replace(b"-30.5", b"SENT^"))
    with pytest.raises(InputCorrupt) as caught:
        read(tmp_path / "in")
    text = "".join(traceback.format_exception(caught.value))
    assert "SENT" not in text
    assert "ValueError" in text
