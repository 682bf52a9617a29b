import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from inference_service.contract.palette import label_colour
from inference_service.contract.report import LabelReport
from inference_service.segmentation.preview.legend import PAGE, draw_legend, fitting, font, volume_text

SIZE = (280, 384)


def label(value: int, voxels: int, name: str = "liver") -> LabelReport:
    return LabelReport(
        value=value,
        name=name,
        voxels=voxels,
        volume_ml=voxels / 100,
        intensity_mean=None,
        intensity_std=None,
        bounding_box=None,
        centroid_mm=None,
        components=None,
    )


def legend(*labels: LabelReport, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    colours = {one.value: label_colour(place) for place, one in enumerate(labels)}
    return np.asarray(draw_legend(labels, colours, ("Not for diagnosis",), size))


def rows_of(picture: NDArray[np.uint8], place: int) -> NDArray[np.intp]:
    return np.flatnonzero((picture == label_colour(place)).all(axis=2).any(axis=1))


def test_the_largest_label_comes_first() -> None:
    picture = legend(label(1, 10), label(2, 30), label(3, 20))
    first, second, third = (rows_of(picture, place)[0] for place in (1, 2, 0))
    assert first < second < third


def test_labels_without_voxels_have_no_row() -> None:
    picture = legend(label(1, 10), label(2, 0))
    assert rows_of(picture, 0).size
    assert not rows_of(picture, 1).size


@pytest.mark.parametrize("count", [0, 1, 12, 13, 14, 15, 100])
def test_every_row_is_within_the_legend(count: int) -> None:
    picture = legend(*(label(value, 1000 - value, "a name " * 9) for value in range(1, count + 1)))
    assert picture.shape == (384, 280, 3)
    shown = [place for place in range(count) if rows_of(picture, place).size]
    assert shown == list(range(len(shown)))
    assert len(shown) == count if count < 13 else 10 < len(shown) <= count
    for place in shown:
        assert len(rows_of(picture, place)) == 15
    assert (picture[-18:] != PAGE).any()


def test_more_labels_than_rows_are_counted() -> None:
    some, all_ = (legend(*(label(value, 1000 - value) for value in range(1, count))) for count in (30, 31))
    assert not np.array_equal(some, all_)


@pytest.mark.parametrize("name", ["liver", "a" * 64, "two\nlines\tand\x00more", "näme é ß", "肝臓", ""])
def test_a_name_fits_on_one_line(name: str) -> None:
    line = fitting(name, 120)
    assert line.isprintable()
    assert font(14).getlength(line) <= 120
    Image.Image.tobytes(draw_legend([label(1, 5, name)], {1: label_colour(0)}, (), SIZE))


def test_a_name_that_fits_is_whole() -> None:
    assert fitting("left atrial appendage", 200) == "left atrial appendage"


def test_volumes_are_rounded() -> None:
    assert [volume_text(ml) for ml in (0.0, 0.05, 1.25, 99.96, 12345.6)] == [
        "0 mL",
        "0.05 mL",
        "1.2 mL",
        "100.0 mL",
        "12346 mL",
    ]
