"""Slices of several acquisitions on one even grid, told apart by one attribute alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pydicom
import pytest
from dicom_files import phantom, regular_stack, write_enhanced, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from inference_service.core.errors import InconsistentGeometry
from inference_service.core.report_warnings import WarningCode
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]

STACK = regular_stack(phantom((9, 7, 12)))


def write_with(folder: Path, keyword: str, values: Sequence[object], *, modality: str = "CT") -> None:
    """Writes 12 slices with these values of an attribute, in their order; None: without it."""

    def change(k: int, dataset: Dataset) -> None:
        dataset.Modality = modality
        value = values[k % len(values)]
        if value is not None:
            setattr(dataset, keyword, value)

    write_series(folder, STACK, change=change)


@pytest.mark.parametrize(
    ("keyword", "values", "modality"),
    [
        ("ConvolutionKernel", ["B31f", "B70f"], "CT"),
        ("ConvolutionKernel", [["Br40f", "3"], ["Br64f", "3"]], "CT"),
        ("ConvolutionKernel", ["B31f", None], "CT"),
        ("ConvolutionKernel", ["B31f", "B31f", "B70f", "B70f"], "CT"),
        ("AcquisitionNumber", [1, 2], "CT"),
        ("AcquisitionNumber", [1, 2, 3], "CT"),
        ("AcquisitionTime", ["101010", "101045"], "CT"),
        ("AcquisitionTime", [f"{t}.{k:02}" for k in range(6) for t in ("101010", "101045")], "CT"),
        ("AcquisitionDateTime", [f"20240102{t}.{k:02}+0100" for k in range(6) for t in ("101010", "101045")], "CT"),
        ("ContentTime", ["101010", "101045", "101130"], "CT"),
        ("ContentTime", ["101010", None], "CT"),
        ("TriggerTime", [0, 600], "CT"),
        ("TriggerTime", [0, 600], "MR"),
        ("EchoTime", [4.6, 9.2], "MR"),
        ("EchoNumbers", [1, 2], "MR"),
        ("FlipAngle", [5, 26], "MR"),
        ("InversionTime", [100, 900], "MR"),
        ("DiffusionBValue", [0.0, 1000.0], "MR"),
        ("DiffusionBValue", [0.0, 500.0, 1000.0], "MR"),
        ("TemporalPositionIdentifier", [1, 2], "MR"),
        ("TemporalPositionIdentifier", [1, 2], "CT"),
        ("TemporalPositionIdentifier", [None, 2], "CT"),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M", "ND"], ["ORIGINAL", "PRIMARY", "P", "ND"]], "MR"),
        ("ImageType", [["DERIVED", "PRIMARY", "AXIAL", "VMI"], ["ORIGINAL", "PRIMARY", "AXIAL"]], "CT"),
        ("KVP", [80, 140], "CT"),
        ("FilterType", ["FLAT", "WEDGE"], "CT"),
        ("MonoenergeticEnergyEquivalent", [40.0, 70.0], "CT"),
        ("NominalPercentageOfCardiacPhase", [30.0, 70.0], "CT"),
        ("SeriesDescription", ["MONO 40 keV", "MONO 70 keV"], "CT"),
        ("ContrastBolusAgent", ["", "IOPAMIDOL"], "CT"),
        ("SliceThickness", [2, 5], "CT"),
    ],
    ids=str,
)
def test_interleaved_acquisitions_are_refused_by_the_attribute_that_tells_them_apart(
    tmp_path: Path, read: Read, keyword: str, values: list[object], modality: str
) -> None:
    write_with(tmp_path / "in", keyword, values, modality=modality)
    with pytest.raises(InconsistentGeometry, match=f"acquisitions are interleaved: {keyword} alternates") as caught:
        read(tmp_path / "in")
    assert ("groups of 6, 6" in str(caught.value)) or ("groups of 4, 4, 4" in str(caught.value))


@pytest.mark.parametrize(
    ("keyword", "values", "modality"),
    [
        ("ConvolutionKernel", ["B31f"] * 6 + ["B70f"] * 6, "CT"),
        ("AcquisitionNumber", [*range(12)], "CT"),
        ("AcquisitionNumber", [k // 2 for k in range(12)], "CT"),
        ("AcquisitionTime", [f"1010{k:02}" for k in range(12)], "CT"),
        ("AcquisitionTime", [f"1010{k // 4:02}" for k in range(12)], "CT"),
        ("AcquisitionTime", ["235959", *["000000"] * 11], "CT"),
        ("ContentTime", [f"1010{s:02}" for s in (10, 13, 11, 12, 15, 10, 14, 16, 11, 17, 12, 18)], "CT"),
        ("ContentTime", [f"101010.{s:02}" for s in (10, 70, 11, 71, 12, 72, 13, 73, 14, 74, 15, 75)], "CT"),
        ("ContentTime", ["no time"] * 12, "CT"),
        ("TriggerTime", [k * 100 for k in range(12)], "CT"),
        ("AcquisitionTime", ["101010", "101045"], "MR"),
        ("ContentTime", ["101010", "101045"], "MR"),
        ("AcquisitionNumber", [1, 2], "MR"),
        ("TriggerTime", [100, 400, 130, 430, 160, 460, 190, 490, 220, 520, 250, 550], "MR"),
        ("TriggerTime", [30, 37, 31, 38, 32, 33, 34, 30, 37, 31, 38, 32], "MR"),
        ("RepetitionTime", [900, 901], "MR"),
        ("RescaleSlope", [1, 2], "PT"),
        ("DiffusionBValue", [1000.0], "MR"),
        ("EchoTime", [4.6, *[4.7] * 11], "MR"),
        ("EchoTime", [4.60, 4.61, 4.60, 4.60, 4.61, 4.62], "MR"),
        ("KVP", [119.9, 120.1, 120.0, 119.8], "CT"),
    ],
    ids=str,
)
def test_attributes_of_one_acquisition_may_differ(
    tmp_path: Path, read: Read, keyword: str, values: list[object], modality: str
) -> None:
    """Rotations, reconstruction in parallel, stacks of two kernels, every other slice first in MR."""
    write_with(tmp_path / "in", keyword, values, modality=modality)
    assert read(tmp_path / "in").volume.shape == (9, 7, 12)


@pytest.mark.parametrize(
    ("group", "keyword", "values", "modality"),
    [
        ("CTReconstructionSequence", "ConvolutionKernel", ["A", "B"], "CT"),
        ("CTXRayDetailsSequence", "KVP", [80.0, 140.0], "CT"),
        ("CTXRayDetailsSequence", "FilterType", ["FLAT", "WEDGE"], "CT"),
        ("CTImageFrameTypeSequence", "FrameType", [["ORIGINAL", "PRIMARY"], ["DERIVED", "PRIMARY"]], "CT"),
        ("FrameContentSequence", "FrameAcquisitionDateTime", ["20240102101010", "20240102101045"], "CT"),
        ("FrameContentSequence", "FrameAcquisitionNumber", [1, 2], "CT"),
        ("FrameContentSequence", "TemporalPositionIndex", [1, 2], "MR"),
        ("FrameContentSequence", "StackID", ["1", "2"], "MR"),
        ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", [30.0, 70.0], "CT"),
        ("MREchoSequence", "EffectiveEchoTime", [4.6, 9.2], "MR"),
        ("MRDiffusionSequence", "DiffusionBValue", [0.0, 1000.0], "MR"),
        ("MRImageFrameTypeSequence", "ComplexImageComponent", ["MAGNITUDE", "PHASE"], "MR"),
    ],
    ids=str,
)
def test_interleaved_frames_are_refused(
    tmp_path: Path, read: Read, group: str, keyword: str, values: list[object], modality: str
) -> None:
    path = write_enhanced(tmp_path / "in", STACK, modality=modality)
    dataset = pydicom.dcmread(path)
    places = [
        item.PlanePositionSequence[0].ImagePositionPatient[2] for item in dataset.PerFrameFunctionalGroupsSequence
    ]
    for item, place in zip(dataset.PerFrameFunctionalGroupsSequence, places, strict=True):
        content = Dataset()
        setattr(content, keyword, values[sorted(places).index(place) % 2])
        setattr(item, group, Items([content]))
    dataset.save_as(path)
    with pytest.raises(
        InconsistentGeometry, match=f"{keyword} alternates between neighbouring slices, in groups of 6, 6"
    ):
        read(path)


def test_three_slices_show_no_pattern(tmp_path: Path, read: Read) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.ConvolutionKernel = "AB"[k % 2]

    write_series(tmp_path / "in", regular_stack(phantom((9, 7, 3))), change=change)
    assert read(tmp_path / "in").volume.shape == (9, 7, 3)


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("ConvolutionKernel", ["B31f", "B70f"]),
        ("KVP", [120, 80]),
        ("EchoTime", [4.6, 9.2]),
        ("DiffusionBValue", [0.0, 1000.0]),
        ("TemporalPositionIdentifier", [1, 2]),
        ("MonoenergeticEnergyEquivalent", [40.0, 70.0]),
        ("SeriesNumber", [3, 4]),
        ("SequenceName", ["A", "B"]),
    ],
)
def test_a_gap_that_another_acquisition_fills_is_refused(
    tmp_path: Path, read: Read, keyword: str, values: list[object]
) -> None:
    write_with(tmp_path / "in", keyword, [values[k in (5, 6)] for k in range(12)])
    with pytest.raises(
        InconsistentGeometry, match=f"{keyword} changes and changes back .* in groups of 10, 2"
    ) as caught:
        read(tmp_path / "in")
    assert [group.slices for group in caught.value.groups] in ([10, 2], [2, 10])


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("AcquisitionNumber", [1] * 5 + [2] * 2 + [1] * 5),
        (
            "AcquisitionTime",
            [f"1010{k:02}" for k in range(5)] + ["101500", "101501"] + [f"1010{k:02}" for k in range(7, 12)],
        ),
        ("AcquisitionDateTime", ["20240102101010"] * 5 + ["20240102101500"] * 2 + ["20240102101010"] * 5),
        ("TriggerTime", [0] * 5 + [600] * 2 + [0] * 5),
        ("NominalPercentageOfCardiacPhase", [75.0] * 5 + [72.0] * 2 + [75.0] * 5),
        ("ImageType", [["ORIGINAL", "PRIMARY"]] * 5 + [["DERIVED", "PRIMARY"]] * 2 + [["ORIGINAL", "PRIMARY"]] * 5),
    ],
)
def test_a_gap_filled_at_another_time_gives_a_warning(
    tmp_path: Path, read: Read, keyword: str, values: list[object]
) -> None:
    write_with(tmp_path / "in", keyword, values)
    (warning,) = read(tmp_path / "in").warnings
    assert warning.code == WarningCode.ALTERNATING_ACQUISITIONS
    assert warning.message == f"slices of 2 acquisitions seem to lie between each other, as {keyword} shows"


@pytest.mark.parametrize(
    "values",
    [
        [f"10{m:02}00" for m in range(12)],
        [f"1010{10 * (k // 3):02}" for k in range(12)],
        ["101010"] * 12,
        [None, *["101010"] * 11],
    ],
    ids=str,
)
def test_times_in_order_give_no_warning(tmp_path: Path, read: Read, values: list[object]) -> None:
    write_with(tmp_path / "in", "AcquisitionTime", values)
    assert read(tmp_path / "in").warnings == ()


def test_an_attribute_that_some_slices_lack_does_not_return(tmp_path: Path, read: Read) -> None:
    write_with(tmp_path / "in", "KVP", [None if k in (5, 6) else 120 for k in range(12)])
    assert read(tmp_path / "in").volume.shape == (9, 7, 12)


def write_mr(folder: Path, keyword: str, **attributes: Sequence[object]) -> None:
    """Writes 12 MR slices, 2.5 mm apart, whose values of an attribute alternate."""

    def change(k: int, dataset: Dataset) -> None:
        dataset.Modality = "MR"
        dataset.InstanceNumber = k + 1
        setattr(dataset, keyword, {"AcquisitionNumber": [1, 2]}.get(keyword, ["101010", "101245"])[k % 2])
        for name, values in attributes.items():
            setattr(dataset, name, values[k % len(values)])

    write_series(folder, STACK, change=change)


IN_MR = ["AcquisitionTime", "ContentTime", "AcquisitionNumber"]


@pytest.mark.parametrize("keyword", IN_MR)
@pytest.mark.parametrize(
    "attributes",
    [{"SpacingBetweenSlices": [5.0]}, {"InstanceNumber": [k // 2 + 1 for k in range(12)]}],
    ids=["spacing", "numbers"],
)
def test_slices_that_state_two_acquisitions_are_refused_in_mr(
    tmp_path: Path, read: Read, keyword: str, attributes: dict[str, list[object]]
) -> None:
    """Each acquisition states twice the distance of the slices, or numbers its instances by itself."""
    write_mr(tmp_path / "in", keyword, **attributes)
    with pytest.raises(InconsistentGeometry, match=f"slices of 2 acquisitions are interleaved: {keyword} alternates"):
        read(tmp_path / "in")


@pytest.mark.parametrize("keyword", IN_MR)
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"SpacingBetweenSlices": [2.5]},
        {"SpacingBetweenSlices": [2.5], "SliceThickness": [2.0]},
        {"SpacingBetweenSlices": [5.0, 2.5]},
        {"InstanceNumber": [1]},
        {"InstanceNumber": [None]},
    ],
    ids=str,
)
def test_every_other_slice_first_is_one_acquisition_in_mr(
    tmp_path: Path, read: Read, keyword: str, attributes: dict[str, list[object]]
) -> None:
    write_mr(tmp_path / "in", keyword, **attributes)
    scan = read(tmp_path / "in")
    assert scan.volume.shape == (9, 7, 12)
    expected = [] if keyword == "ContentTime" else [WarningCode.ALTERNATING_ACQUISITIONS]
    assert [warning.code for warning in scan.warnings] == expected


@pytest.mark.parametrize("count", [2, 3])
def test_slices_with_the_numbers_of_several_acquisitions_are_refused(tmp_path: Path, read: Read, count: int) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.InstanceNumber = 1 + k // count

    write_series(tmp_path / "in", regular_stack(phantom((9, 7, 12))), change=change)
    with pytest.raises(InconsistentGeometry, match=f"{count} acquisitions are interleaved: .* InstanceNumber"):
        read(tmp_path / "in")


@pytest.mark.parametrize("number", [None, 1])
def test_slices_without_a_number_of_their_own_are_one_acquisition(
    tmp_path: Path, read: Read, number: int | None
) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.InstanceNumber = number

    stack = regular_stack()
    write_series(tmp_path / "in", stack, change=change)
    assert read(tmp_path / "in").volume.shape == stack.voxels.shape
