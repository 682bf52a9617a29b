import numpy as np
import pytest

from inference_service.errors import ModalityMismatch
from inference_service.modality import check_modality

HU = np.array([-1000, 0, 60], dtype=np.int16)


@pytest.mark.parametrize(("expected", "stated"), [("CT", "CT"), ("CT", ""), ("MR", "MR"), ("MR", ""), ("other", "MR")])
def test_the_models_modality_is_taken(expected: str, stated: str) -> None:
    check_modality(expected, stated, HU)


@pytest.mark.parametrize(("expected", "stated"), [("CT", "MR"), ("MR", "CT"), ("PT", "CT")])
def test_another_modality_is_refused(expected: str, stated: str) -> None:
    with pytest.raises(ModalityMismatch, match=f"takes {expected}.*is {stated}.*modality_check false"):
        check_modality(expected, stated, HU)


@pytest.mark.parametrize("values", [[0, 4095], [10, 300], [-1.5, 3.2], [-1, 1], [-1000, -980]])
def test_values_that_cannot_be_hu_are_refused_for_ct_alone(values: list[float]) -> None:
    with pytest.raises(ModalityMismatch, match="in HU"):
        check_modality("CT", "", np.array(values))
    check_modality("MR", "", np.array(values))
    check_modality("other", "", np.array(values))


def test_what_is_no_code_is_not_quoted() -> None:
    with pytest.raises(ModalityMismatch) as caught:
        check_modality("CT", "Mueller^Hans", HU)
    assert "Mueller" not in caught.value.message
