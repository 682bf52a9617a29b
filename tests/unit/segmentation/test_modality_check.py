import numpy as np
import pytest
from numpy.typing import NDArray

from inference_service.core.errors import ModalityMismatch
from inference_service.formats.dicom.instance import UNKNOWN_TERM, ValueType
from inference_service.segmentation.modality_check import check_modality

HU = np.array([-1000, 0, 60], dtype=np.int16)


@pytest.mark.parametrize(("expected", "stated"), [("CT", "CT"), ("CT", ""), ("MR", "MR"), ("MR", ""), ("other", "MR")])
def test_the_models_modality_is_accepted(expected: str, stated: str) -> None:
    check_modality(expected, stated, HU)


@pytest.mark.parametrize(("expected", "stated"), [("CT", "MR"), ("MR", "CT"), ("PT", "CT")])
def test_another_modality_is_refused(expected: str, stated: str) -> None:
    with pytest.raises(ModalityMismatch, match=f"takes {expected}.*is {stated}.*modality_check to false"):
        check_modality(expected, stated, HU)


@pytest.mark.parametrize("values", [[0, 4095], [10, 300], [-1.5, 3.2], [-1, 1], [-1000, -980]])
def test_values_that_cannot_be_hu_are_refused_for_ct_alone(values: list[float]) -> None:
    with pytest.raises(ModalityMismatch, match="in HU"):
        check_modality("CT", "", np.array(values))
    check_modality("MR", "", np.array(values))
    check_modality("other", "", np.array(values))


SCAN = np.tile(np.array([-1000, -100, 40, 60, 1200]), 400)


@pytest.mark.parametrize(
    "values",
    [
        np.concatenate([SCAN + 1000, [-2000] * 500]),
        np.concatenate([SCAN + 1000, [-3]]),
        np.append(SCAN, 1e9),
        np.full(100, -3024),
    ],
    ids=["padding alone is below 0", "one voxel is", "one is absurd", "padding alone"],
)
def test_a_few_negative_voxels_are_not_accepted_as_hu(values: NDArray[np.generic]) -> None:
    check_modality("CT", "CT", SCAN)
    check_modality("CT", "CT", np.append(SCAN, [-3024, 30000]))
    with pytest.raises(ModalityMismatch, match="in HU"):
        check_modality("CT", "CT", values)


def test_a_large_scan_is_sampled() -> None:
    voxels = np.zeros((300, 300, 200), dtype=np.int16)
    voxels[:, :, ::40] = -1000
    check_modality("CT", "CT", voxels + np.int16(1))
    with pytest.raises(ModalityMismatch):
        check_modality("CT", "CT", np.abs(voxels))


@pytest.mark.parametrize(
    ("value_type", "text"),
    [
        (ValueType("RescaleType", "MGML"), "its RescaleType is MGML"),
        (ValueType("ImageType", "EFF_ATOMIC_NUM"), "its ImageType is EFF_ATOMIC_NUM"),
        (ValueType("RescaleType", UNKNOWN_TERM), "its RescaleType is an unknown term"),
    ],
)
def test_values_that_are_not_hu_by_their_header_are_refused_for_ct_alone(value_type: ValueType, text: str) -> None:
    with pytest.raises(ModalityMismatch, match=text):
        check_modality("CT", "CT", SCAN, value_type)
    check_modality("other", "CT", SCAN, value_type)


@pytest.mark.parametrize("term", ["HU", "US"])
def test_hu_and_values_of_an_unspecified_type_are_taken_for_ct(term: str) -> None:
    check_modality("CT", "CT", SCAN, ValueType("RescaleType", term))
    with pytest.raises(ModalityMismatch, match="range from"):
        check_modality("CT", "CT", SCAN + 2000, ValueType("RescaleType", term))
