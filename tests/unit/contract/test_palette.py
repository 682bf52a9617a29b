from itertools import combinations

import numpy as np

from inference_service.contract.labels import Label
from inference_service.contract.palette import label_colour, label_colours


def test_a_label_may_have_a_colour_of_its_own() -> None:
    assert label_colour(3, (1, 2, 3)) == (1, 2, 3)
    assert label_colour(3, None) == label_colour(3)


def test_colours_follow_the_order_of_the_labels_and_not_that_of_their_values() -> None:
    labels = [Label(name="high", value=9), Label(name="background", value=0), Label(name="low", value=2)]
    assert label_colours(labels) == {9: label_colour(0), 2: label_colour(1)}


def test_colours_differ_from_each_other_and_from_grey() -> None:
    colours = np.array([label_colour(index) for index in range(100)], dtype=np.int64)
    assert colours.min() >= 0
    assert colours.max() <= 255
    assert all(np.abs(one - two).sum() > 10 for one, two in combinations(colours, 2))
    assert all(np.abs(one - two).max() > 50 for one, two in combinations(colours[:7], 2))
    assert (np.ptp(colours, axis=1) > 60).all()
