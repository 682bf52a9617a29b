"""Several acquisitions in one series: refused with their attributes, and read one by one by a selection."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import CT_INTERCEPT, Stack, phantom, regular_stack, with_heights, write_enhanced, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from inference_service.contract.slice_selection import SELECTABLE, SelectValue, check_selection
from inference_service.core.errors import InconsistentGeometry, InputError, MissingSlices, NotAVolume, SliceGroup
from inference_service.formats.dicom.frame_attributes import KEYWORDS, AttributeValue, Text
from inference_service.formats.dicom.instance import Frame, Instance, PixelDescription, Slice
from inference_service.formats.dicom.series.acquisitions import find_groups
from inference_service.formats.dicom.series.geometry import find_geometry
from inference_service.formats.dicom.series.slice_selection import select_slices
from inference_service.formats.scan_reader import Scan

Read = Callable[..., Scan]
Attributes = Mapping[str, object]

STACK = regular_stack(phantom((9, 7, 6)))


def add_phase(
    folder: Path, number: int, attributes: Attributes, *, stack: Stack = STACK, modality: str = "CT"
) -> NDArray[np.integer]:
    """Writes a phase whose values are by 10 higher for each number, and returns its values."""
    phase = replace(stack, voxels=stack.voxels + 10 * number)

    def change(k: int, dataset: Dataset) -> None:
        dataset.SOPInstanceUID = f"1.2.3.{number + 5}.{k + 1}"
        dataset.Modality = modality
        for keyword, value in attributes.items():
            if value is not None:
                setattr(dataset, keyword, value)

    write_series(folder / str(number), phase, change=change)
    return phase.voxels


def raised(height_mm: float) -> Stack:
    return replace(STACK, positions_mm=STACK.positions_mm + np.array([0, 0, height_mm]))


def refusal(read: Read, folder: Path, **options: object) -> InputError:
    with pytest.raises(InputError) as caught:
        read(folder, **options)
    return caught.value


def selections(groups: tuple[SliceGroup, ...]) -> list[Mapping[str, SelectValue]]:
    return [group.select for group in groups]


CASES: list[tuple[str, list[object], list[SelectValue]]] = [
    ("TemporalPositionIdentifier", [1, 2, 3], [1, 2, 3]),
    ("TemporalPositionIdentifier", [None, 2], [None, 2]),
    ("AcquisitionNumber", [3, 4], [3, 4]),
    ("EchoTime", ["4.60", "9.2 "], [4.6, 9.2]),
    ("EchoNumbers", [1, 2], [1, 2]),
    ("DiffusionBValue", [0.0, 1000.0], [0, 1000]),
    ("DiffusionGradientOrientation", [[1.0, 0.0, 0.0], [0.0, 1.0, -0.0]], ["0\\1\\0", "1\\0\\0"]),
    ("InversionTime", ["150", "2500"], [150, 2500]),
    ("FlipAngle", ["5", "26"], [5, 26]),
    ("SequenceName", ["*ep_b0", "*ep_b1000#1"], ["*ep_b0", "*ep_b1000#1"]),
    ("KVP", ["80", "140"], [80, 140]),
    ("ConvolutionKernel", ["B31f", "B70f"], ["B31f", "B70f"]),
    ("ConvolutionKernel", [["Br40f", "3"], ["Br64f", "3"]], ["Br40f\\3", "Br64f\\3"]),
    ("SliceThickness", ["2", "5"], [2, 5]),
    ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]],
     ["ORIGINAL\\PRIMARY\\M", "ORIGINAL\\PRIMARY\\P"]),
    ("ScanOptions", ["HELIX", "AXIAL"], ["AXIAL", "HELIX"]),
    ("RescaleType", ["HU", "MGML"], ["HU", "MGML"]),
    ("Units", ["BQML", "GML"], ["BQML", "GML"]),
    ("ContrastBolusAgent", [None, "IOPAMIDOL 370"], [None, "IOPAMIDOL 370"]),
    ("TriggerTime", ["0", "600.25"], [0, 600.25]),
    ("FrameReferenceTime", ["0", "3600000"], [0, 3600000]),
    ("AcquisitionTime", ["101010", "10:11:10.500"], ["101010", "101110.5"]),
    ("AcquisitionDateTime", ["20240102101010.000000+0100", "20240102111010"], ["101010", "111010"]),
    ("ContentTime", ["0930", "093045"], ["093000", "093045"]),
]  # fmt: skip


@pytest.mark.parametrize(("keyword", "values", "listed"), CASES, ids=str)
def test_phases_at_the_same_positions_are_listed_and_selected(
    tmp_path: Path, read: Read, keyword: str, values: list[object], listed: list[SelectValue]
) -> None:
    phases = [
        add_phase(tmp_path / "in", number, {keyword: value}, modality="MR") for number, value in enumerate(values)
    ]
    error = refusal(read, tmp_path / "in")
    assert isinstance(error, NotAVolume)
    assert selections(error.groups) == [{keyword: value} for value in listed]
    assert [group.slices for group in error.groups] == [6] * len(values)
    assert f"or choose one of {len(values)} groups of slices by input.select: " in error.message
    read_phases = [read(tmp_path / "in", select=group.select) for group in error.groups]
    for scan in read_phases:
        assert scan.set_aside == {"not_selected": 6 * (len(values) - 1)}
        assert scan.warnings == ()
    assert all(any(np.array_equal(scan.volume.voxels, phase) for scan in read_phases) for phase in phases)


@pytest.mark.parametrize(
    ("keyword", "value", "requests"),
    [
        ("TemporalPositionIdentifier", 2, [2, 2.0, "2", " 2 ", "2.0", "+2"]),
        ("EchoTime", "4.6", [4.6, "4.60", 4.599999905, 4.6000000001, "0.46e1"]),
        ("DiffusionBValue", 1000.0, [1000, "1000", "1e3"]),
        ("ConvolutionKernel", ["Br40f", "3"], ["Br40f\\3", "Br40f", " Br40f \\3", "3", 3]),
        ("ImageType", ["DERIVED", "SECONDARY", "M"], ["M", "SECONDARY", "DERIVED\\SECONDARY\\M"]),
        ("AcquisitionTime", "093010.25", ["093010.25", "09:30:10.250000", "20240102093010.25"]),
        ("AcquisitionTime", "093010", ["093010", 93010, "093010.0"]),
        ("DiffusionGradientOrientation", [0.5, -0.5, 0.0], ["0.5\\-0.5\\0", "0.50\\-0.5\\-0"]),
    ],
    ids=str,
)
def test_values_are_compared_by_what_they_mean(
    tmp_path: Path, read: Read, keyword: str, value: object, requests: list[SelectValue]
) -> None:
    wanted = add_phase(tmp_path / "in", 1, {keyword: value}, modality="MR")
    add_phase(tmp_path / "in", 2, {}, modality="MR")
    for request in requests:
        np.testing.assert_array_equal(read(tmp_path / "in", select={keyword: request}).volume.voxels, wanted)


def test_several_attributes_are_found_and_combined(tmp_path: Path, read: Read) -> None:
    wanted = {}
    for number, (echo, phase) in enumerate([(1, 1), (1, 2), (2, 1), (2, 2)]):
        attributes = {"EchoNumbers": echo, "TemporalPositionIdentifier": phase}
        wanted[echo, phase] = add_phase(tmp_path / "in", number, attributes, modality="MR")
    error = refusal(read, tmp_path / "in")
    assert sorted(tuple(select.items()) for select in selections(error.groups)) == sorted(
        (("TemporalPositionIdentifier", phase), ("EchoNumbers", echo)) for echo, phase in wanted
    )
    chosen = {"TemporalPositionIdentifier": 2, "EchoNumbers": 1}
    np.testing.assert_array_equal(read(tmp_path / "in", select=chosen).volume.voxels, wanted[1, 2])
    rest = refusal(read, tmp_path / "in", select={"EchoNumbers": 2})
    assert selections(rest.groups) == [{"EchoNumbers": 2, "TemporalPositionIdentifier": phase} for phase in (1, 2)]


def test_an_attribute_that_all_slices_have_is_preferred_and_the_others_are_told(tmp_path: Path, read: Read) -> None:
    add_phase(tmp_path / "in", 1, {"AcquisitionNumber": 1, "ContentTime": "101010"})
    second = {"AcquisitionNumber": 2, "ContentTime": "101045", "TemporalPositionIdentifier": 2}
    add_phase(tmp_path / "in", 2, second)
    assert refusal(read, tmp_path / "in").groups == (
        SliceGroup({"AcquisitionNumber": 1}, 6, {"TemporalPositionIdentifier": None, "ContentTime": "101010"}),
        SliceGroup({"AcquisitionNumber": 2}, 6, {"TemporalPositionIdentifier": 2, "ContentTime": "101045"}),
    )


def add_timed_phases(folder: Path, times: Mapping[int, list[str]]) -> None:
    for number, stated in times.items():
        phase = replace(STACK, voxels=STACK.voxels + 10 * number)

        def change(k: int, dataset: Dataset, number: int = number, stated: list[str] = stated) -> None:
            dataset.SOPInstanceUID = f"1.2.3.{number}.{k}"
            dataset.AcquisitionTime = stated[k]

        write_series(folder / str(number), phase, change=change)


def test_times_that_differ_from_slice_to_slice_are_selected_by_ranges(tmp_path: Path, read: Read) -> None:
    times = {n: [f"1010{20 * n + k:02}.{k}" for k in range(6)] for n in (0, 1, 2)}
    add_timed_phases(tmp_path / "in", times)
    error = refusal(read, tmp_path / "in")
    assert selections(error.groups) == [
        {"AcquisitionTime": "101000-101005.5"},
        {"AcquisitionTime": "101020-101025.5"},
        {"AcquisitionTime": "101040-101045.5"},
    ]
    assert '{"AcquisitionTime": "101020-101025.5"} (6 slices)' in error.message
    for number, group in enumerate(error.groups):
        scan = read(tmp_path / "in", select=group.select)
        np.testing.assert_array_equal(scan.volume.voxels, STACK.voxels + 10 * number)


def test_times_without_a_pause_tell_no_phases_apart(tmp_path: Path, read: Read) -> None:
    times = {n: [f"1010{2 * k + n:02}" for k in range(6)] for n in (0, 1)}
    add_timed_phases(tmp_path / "in", times)
    error = refusal(read, tmp_path / "in")
    assert error.groups == ()
    assert "input.select" not in error.message


def test_a_description_tells_no_phases_apart(tmp_path: Path, read: Read) -> None:
    for number in (1, 2):
        add_phase(tmp_path / "in", number, {"SeriesDescription": f"MUELLER {number}", "ProtocolName": f"P{number}"})
    assert refusal(read, tmp_path / "in").groups == ()


@pytest.mark.parametrize("text", ["MUELLER^HANS", "PID-4711", "19610203", "MUELLER", "Mueller 61"])
@pytest.mark.parametrize("keyword", ["ConvolutionKernel", "ContrastBolusAgent", "SequenceName", "ScanOptions"])
def test_texts_stay_out_of_the_message(tmp_path: Path, read: Read, keyword: str, text: str) -> None:
    add_phase(tmp_path / "in", 1, {keyword: "B31f"})
    add_phase(tmp_path / "in", 2, {keyword: text})
    error = refusal(read, tmp_path / "in")
    assert sorted(str(select[keyword]) for select in selections(error.groups)) == sorted(["B31f", text])
    assert text not in error.message
    assert f'{{"{keyword}": "…"}} (6 slices)' in error.message
    assert error.message.endswith("; `inference-service inspect` shows the texts")
    scan = read(tmp_path / "in", select={keyword: text})
    assert text not in repr(scan)
    assert "B31f" not in repr(scan)


def test_interleaved_acquisitions_are_selected(tmp_path: Path, read: Read) -> None:
    first = add_phase(tmp_path / "in", 1, {"ConvolutionKernel": "B31f"})
    between = raised(1.25)
    second = add_phase(tmp_path / "in", 2, {"ConvolutionKernel": "B70f"}, stack=between)
    error = refusal(read, tmp_path / "in")
    assert isinstance(error, InconsistentGeometry)
    assert "ConvolutionKernel alternates" in error.message
    assert selections(error.groups) == [{"ConvolutionKernel": "B31f"}, {"ConvolutionKernel": "B70f"}]
    for group, voxels in zip(error.groups, (first, second), strict=True):
        np.testing.assert_array_equal(read(tmp_path / "in", select=group.select).volume.voxels, voxels)


def test_interleaved_values_of_two_types_are_selected(tmp_path: Path, read: Read) -> None:
    add_phase(tmp_path / "in", 1, {"RescaleType": "HU"})
    second = add_phase(tmp_path / "in", 2, {"RescaleType": "Z_EFF"}, stack=raised(1.25))
    error = refusal(read, tmp_path / "in")
    assert error.message == (
        "slices of 2 acquisitions are interleaved: each InstanceNumber is that of 2 neighbouring slices; send one "
        'acquisition; or choose one of 2 groups of slices by input.select: {"RescaleType": "HU"} (6 slices), '
        '{"RescaleType": "Z_EFF"} (6 slices)'
    )
    np.testing.assert_array_equal(read(tmp_path / "in", select={"RescaleType": "Z_EFF"}).volume.voxels, second)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_unevenly_interleaved_acquisitions_are_selected(tmp_path: Path, read: Read, modality: str) -> None:
    add_phase(tmp_path / "in", 1, {"AcquisitionNumber": 1}, modality=modality)
    second = add_phase(tmp_path / "in", 2, {"AcquisitionNumber": 2}, stack=raised(0.3), modality=modality)
    error = refusal(read, tmp_path / "in")
    assert "interleaved" in error.message
    assert selections(error.groups) == [{"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}]
    np.testing.assert_array_equal(read(tmp_path / "in", select=error.groups[1].select).volume.voxels, second)


def test_overlapping_acquisitions_are_selected(tmp_path: Path, read: Read) -> None:
    """The second one begins in the middle of the first."""
    add_phase(tmp_path / "in", 1, {"AcquisitionNumber": 1})
    further = raised(7.5)
    second = add_phase(tmp_path / "in", 2, {"AcquisitionNumber": 2}, stack=further)
    error = refusal(read, tmp_path / "in")
    assert isinstance(error, InconsistentGeometry)
    assert [group.slices for group in error.groups] == [6, 6]
    np.testing.assert_array_equal(read(tmp_path / "in", select={"AcquisitionNumber": 2}).volume.voxels, second)


def test_phases_of_a_single_slice_are_selected(tmp_path: Path, read: Read) -> None:
    single = regular_stack(phantom((9, 7, 1)))
    phases = [add_phase(tmp_path / "in", n, {"EchoTime": 4 * n}, stack=single, modality="MR") for n in (1, 2, 3)]
    error = refusal(read, tmp_path / "in")
    assert selections(error.groups) == [{"EchoTime": 4}, {"EchoTime": 8}, {"EchoTime": 12}]
    assert '{"EchoTime": 8} (1 slice)' in error.message
    np.testing.assert_array_equal(read(tmp_path / "in", select={"EchoTime": 8}).volume.voxels, phases[1])


def test_the_pixels_of_other_slices_do_not_matter(tmp_path: Path, read: Read) -> None:
    for number in (1, 2):
        add_phase(tmp_path / "in", number, {"AcquisitionNumber": number})
    for path in (tmp_path / "in" / "1").iterdir():
        path.write_bytes(path.read_bytes()[:-50])
        (tmp_path / "in" / f"{path.name} copy").write_bytes(path.read_bytes())
    scan = read(tmp_path / "in", select={"AcquisitionNumber": 2})
    assert (scan.volume.shape, scan.set_aside) == ((9, 7, 6), {"not_selected": 12})


def test_stacks_of_other_orientations_or_sizes_are_selected(tmp_path: Path, read: Read) -> None:
    first = add_phase(tmp_path / "in", 1, {"AcquisitionNumber": 1})
    coronal = regular_stack(phantom((8, 7, 6)), row=(1, 0, 0), column=(0, 0, -1))
    second = add_phase(tmp_path / "in", 2, {"AcquisitionNumber": 2}, stack=coronal)
    error = refusal(read, tmp_path / "in")
    assert isinstance(error, InconsistentGeometry)
    for group, voxels in zip(error.groups, (first, second), strict=True):
        np.testing.assert_array_equal(read(tmp_path / "in", select=group.select).volume.voxels, voxels)


def test_a_gap_between_acquisitions_is_told_with_a_choice(tmp_path: Path, read: Read) -> None:
    add_phase(tmp_path / "in", 1, {"AcquisitionNumber": 1})
    beyond = raised(25)
    add_phase(tmp_path / "in", 2, {"AcquisitionNumber": 2}, stack=beyond)
    error = refusal(read, tmp_path / "in")
    assert isinstance(error, MissingSlices)
    assert selections(error.groups) == [{"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}]


def test_phases_with_defects_of_their_own_are_listed(tmp_path: Path, read: Read) -> None:
    add_phase(tmp_path / "in", 1, {"AcquisitionNumber": 1})
    uneven = with_heights(STACK, (0, 2.5, 5, 7.5, 10, 13.7))
    add_phase(tmp_path / "in", 2, {"AcquisitionNumber": 2}, stack=uneven)
    error = refusal(read, tmp_path / "in")
    assert selections(error.groups) == [{"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}]
    assert isinstance(refusal(read, tmp_path / "in", select={"AcquisitionNumber": 2}), InconsistentGeometry)


@pytest.mark.parametrize("select", [{"AcquisitionNumber": 9}, {"AcquisitionNumber": None}, {"AcquisitionNumber": "x"}])
def test_a_selection_without_slices_lists_the_values(
    tmp_path: Path, read: Read, select: dict[str, SelectValue]
) -> None:
    for number in (1, 2):
        add_phase(tmp_path / "in", number, {"AcquisitionNumber": number, "EchoTime": 7})
    error = refusal(read, tmp_path / "in", select=select)
    assert isinstance(error, NotAVolume)
    assert error.message == (
        "none of the series' 12 slices has the values of AcquisitionNumber in input.select; or choose one of 2 groups "
        'of slices by input.select: {"AcquisitionNumber": 1} (6 slices), {"AcquisitionNumber": 2} (6 slices)'
    )
    assert selections(refusal(read, tmp_path / "in", select={"KVP": 80}).groups) == selections(error.groups)


def test_many_groups_are_listed_in_part(tmp_path: Path, read: Read) -> None:
    for number in range(12):
        add_phase(tmp_path / "in", number, {"TemporalPositionIdentifier": number + 1}, modality="MR")
    error = refusal(read, tmp_path / "in")
    assert len(error.groups) == 12
    assert error.message.count("(6 slices)") == 8
    assert error.message.endswith('{"TemporalPositionIdentifier": 8} (6 slices), …')


FRAME_ATTRIBUTES = [
    ("CT", "FrameContentSequence", "FrameAcquisitionNumber", [1, 2], 2),
    ("MR", "FrameContentSequence", "TemporalPositionIndex", [1, 2], 2),
    ("MR", "FrameContentSequence", "StackID", ["1", "2"], "2"),
    ("CT", "FrameContentSequence", "FrameAcquisitionDateTime", ["20240102101010", "20240102101045"], "101045"),
    ("CT", "CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", [30.0, 70.0], 70),
    ("CT", "RespiratorySynchronizationSequence", "NominalPercentageOfRespiratoryPhase", [0.0, 50.0], 50),
    ("CT", "CTReconstructionSequence", "ConvolutionKernel", ["B31f", "B70f"], "B70f"),
    ("CT", "CTXRayDetailsSequence", "KVP", [80.0, 140.0], 140),
    ("CT", "CTImageFrameTypeSequence", "FrameType", [["ORIGINAL", "A"], ["ORIGINAL", "B"]], "ORIGINAL\\B"),
    ("MR", "MRImageFrameTypeSequence", "FrameType", [["ORIGINAL", "M"], ["ORIGINAL", "P"]], "ORIGINAL\\P"),
    ("MR", "MRImageFrameTypeSequence", "ComplexImageComponent", ["MAGNITUDE", "PHASE"], "PHASE"),
    ("MR", "MREchoSequence", "EffectiveEchoTime", [4.6, 9.2], 9.2),
    ("MR", "MRDiffusionSequence", "DiffusionBValue", [0.0, 1000.0], 1000),
    ("MR", "TemporalPositionSequence", "TemporalPositionTimeOffset", [0.0, 2.5], 2.5),
]  # fmt: skip


@pytest.mark.parametrize(("modality", "group", "keyword", "values", "chosen"), FRAME_ATTRIBUTES)
def test_frames_of_a_multi_frame_instance_are_selected(
    tmp_path: Path, read: Read, modality: str, group: str, keyword: str, values: list[object], chosen: SelectValue
) -> None:
    both = replace(
        STACK,
        voxels=np.concatenate([STACK.voxels, STACK.voxels + 10], axis=2),
        positions_mm=np.concatenate([STACK.positions_mm] * 2),
    )
    path = write_enhanced(tmp_path / "in", both, modality=modality)
    dataset = pydicom.dcmread(path)
    frames = dataset.pixel_array
    for item, frame in zip(dataset.PerFrameFunctionalGroupsSequence, frames, strict=True):
        content = Dataset()
        setattr(content, keyword, values[int(frame[0, 0] == both.voxels[0, 0, -1] - CT_INTERCEPT)])
        setattr(item, group, Items([content]))
    dataset.save_as(path)
    error = refusal(read, path)
    assert [group.slices for group in error.groups] == [6, 6]
    assert {keyword: chosen} in selections(error.groups)
    scan = read(path, select={keyword: chosen})
    np.testing.assert_array_equal(scan.volume.voxels, STACK.voxels + 10)
    assert scan.set_aside == {}
    assert len({slice_.frame.index for slice_ in scan.slices}) == 6


def test_a_gradient_is_read_from_its_inner_group(tmp_path: Path, read: Read) -> None:
    both = replace(
        STACK,
        voxels=np.concatenate([STACK.voxels, STACK.voxels], axis=2),
        positions_mm=np.concatenate([STACK.positions_mm] * 2),
    )
    path = write_enhanced(tmp_path / "in", both, modality="MR")
    dataset = pydicom.dcmread(path)
    seen = set()
    for item in dataset.PerFrameFunctionalGroupsSequence:
        direction, diffusion = Dataset(), Dataset()
        height = float(item.PlanePositionSequence[0].ImagePositionPatient[2])
        direction.DiffusionGradientOrientation = [0.0, 0.0, 1.0] if height in seen else [1.0, 0.0, 0.0]
        seen.add(height)
        diffusion.DiffusionGradientDirectionSequence = Items([direction])
        item.MRDiffusionSequence = Items([diffusion])
    dataset.save_as(path)
    assert selections(refusal(read, path).groups) == [
        {"DiffusionGradientOrientation": "0\\0\\1"}, {"DiffusionGradientOrientation": "1\\0\\0"}
    ]  # fmt: skip


def test_every_attribute_of_the_contract_is_read() -> None:
    assert set(SELECTABLE) < set(KEYWORDS)
    assert not re.search("Patient|Person|Physician|Description", " ".join(SELECTABLE))


KINDS = ("TemporalPositionIdentifier", "EchoTime", "DiffusionBValue", "ConvolutionKernel", "AcquisitionTime")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_groups_are_volumes_that_their_selections_give(data: st.DataObject) -> None:
    """Phases told apart by one attribute or two, among attributes that tell nothing, with parts missing."""
    telling = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=2, unique=True))
    sizes = data.draw(st.lists(st.integers(2, 3), min_size=len(telling), max_size=len(telling)))
    slices = []
    for phase, values in enumerate(product(*map(range, sizes))):
        first = data.draw(st.integers(0, 2), label="first slice")
        for k in range(first, 6):
            attributes = {
                **dict(zip(telling, map(float, values), strict=True)),
                "SliceThickness": 2.0,
                "SeriesNumber": float(k),
                "ContentTime": float(37 * k + phase),
            }
            slices.append(made_slice(k, phase, attributes))
    shuffled = data.draw(st.permutations(slices))
    groups = find_groups(shuffled)
    assert {tuple(group.select) for group in groups} == {tuple(each for each in SELECTABLE if each in telling)}
    assert sum(group.slices for group in groups) == len(slices)
    for group in groups:
        found = select_slices(shuffled, check_selection(group.select))
        assert len(found) == group.slices
        assert len({slice_.instance.sop_class_uid for slice_ in found}) == 1
        find_geometry(found)


def made_slice(k: int, phase: int, attributes: Mapping[str, float]) -> Slice:
    """A slice at height k, whose SOP class is the number of its phase."""
    stated: dict[str, AttributeValue] = dict(attributes)
    if "ConvolutionKernel" in stated:
        stated["ConvolutionKernel"] = Text(f"B{attributes['ConvolutionKernel']:g}")
    frame = Frame(0, (0, 0, float(k)), (1, 0, 0), (0, 1, 0), (1, 1), 1, 0, attributes=tuple(stated.items()))
    instance = Instance(
        path=Path(f"{phase}/{k}"),
        sop_class_uid=str(phase),
        sop_instance_uid="",
        series_uid="1",
        frame_of_reference_uid="1",
        modality="MR",
        transfer_syntax_uid="",
        lossy=False,
        monochrome1=False,
        exclusion_reason=None,
        pixels=PixelDescription(2, 2, 16, 16, 15, signed=False, padding_range=None),
        frames=(frame,),
        slice_thickness_mm=None,
    )
    return Slice(instance, frame)
