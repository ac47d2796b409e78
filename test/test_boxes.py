import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixel_perception.boxes import box_of_mask, iou_matrix, suppress
from pixel_perception.masks import crop

COORDINATES = st.lists(st.tuples(*[st.integers(0, 30)] * 4), min_size=1, max_size=4)


@given(COORDINATES, COORDINATES)
def test_iou_equals_counting_pixels(a, b):
    def ordered(rows):
        return np.array([(min(r[0], r[2]), min(r[1], r[3]), max(r[0], r[2]), max(r[1], r[3])) for r in rows])

    def drawn(box):
        out = np.zeros((30, 30), bool)
        out[box[1] : box[3], box[0] : box[2]] = True
        return out

    a, b = ordered(a), ordered(b)
    found = iou_matrix(a, b)
    for i, first in enumerate(a):
        for k, second in enumerate(b):
            union = np.count_nonzero(drawn(first) | drawn(second))
            assert found[i, k] == pytest.approx(np.count_nonzero(drawn(first) & drawn(second)) / union if union else 0.0)


def test_iou_of_no_boxes():
    assert iou_matrix(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)


def test_suppress_keeps_the_best_of_each_cluster():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [0, 1, 10, 11]])
    assert suppress(iou_matrix(boxes, boxes), np.array([0.5, 0.9, 0.2, 0.8]), 0.5) == [1, 2]
    assert suppress(np.zeros((0, 0)), np.zeros(0), 0.5) == []


def test_suppress_takes_the_first_of_equals():
    assert suppress(np.ones((3, 3)), np.array([0.4, 0.4, 0.4]), 0.5) == [0]


def test_box_of_a_solid_mask_is_exact():
    bits = np.zeros((50, 60), bool)
    bits[10:40, 5:55] = True
    assert box_of_mask(crop(bits)) == (5.0, 10.0, 55.0, 40.0)


def test_box_of_a_disc_loses_almost_nothing():
    y, x = np.mgrid[:101, :101]
    x0, y0, x1, y1 = box_of_mask(crop((x - 50) ** 2 + (y - 50) ** 2 <= 45**2))
    assert max(x0, y0) <= 6 and min(x1, y1) >= 95


def test_box_ignores_a_hair():
    bits = np.zeros((100, 200), bool)
    bits[20:80, 20:80] = True
    bits[50, 80:110] = True
    assert box_of_mask(crop(bits)) == (20.0, 20.0, 80.0, 80.0)


def test_box_of_a_single_pixel():
    bits = np.zeros((5, 5), bool)
    bits[3, 2] = True
    assert box_of_mask(crop(bits)) == (2.0, 3.0, 3.0, 4.0)
