"""Metrics against cases worked out by hand, and the assignment against every permutation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixel_perception.evaluation import metrics


def block(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((10, 10), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_mask_iou():
    assert metrics.mask_iou(block(0, 0, 4, 4), block(2, 0, 6, 4)) == pytest.approx(8 / 24)
    assert metrics.mask_iou(block(0, 0, 0, 0), block(0, 0, 0, 0)) == 1.0
    assert metrics.mask_iou(block(0, 0, 2, 2), block(0, 0, 0, 0)) == 0.0


def test_box_iou():
    assert metrics.box_iou((0, 0, 4, 4), (2, 0, 6, 4)) == pytest.approx(8 / 24)
    assert metrics.box_iou((0, 0, 4, 4), (4, 0, 8, 4)) == 0.0  # touching edges share no pixel
    assert metrics.box_iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0.0


def test_assignment_that_greedy_gets_wrong():
    # Greedy takes 0.9 first and is left with 0.1; the best sum is 0.8 + 0.7.
    assert metrics.assign(np.array([[0.9, 0.8], [0.7, 0.1]])) == [(0, 1), (1, 0)]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_assignment_is_optimal(rows, columns, seed):
    gain = np.random.default_rng(seed).integers(-5, 6, (rows, columns)).astype(float)
    pairs = metrics.assign(gain)
    assert len(pairs) == min(rows, columns)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    wide = gain if rows <= columns else gain.T
    best = max(sum(wide[i, j] for i, j in enumerate(choice)) for choice in itertools.permutations(range(wide.shape[1]), wide.shape[0]))
    assert sum(gain[i, j] for i, j in pairs) == pytest.approx(best)


def test_set_score_divides_by_the_larger_count():
    true = [block(0, 0, 4, 4), block(6, 6, 10, 10)]
    exact, half, extra = block(0, 0, 4, 4), block(6, 6, 10, 8), block(5, 0, 6, 1)
    boxes = [(0, 0, 4, 4), (6, 6, 10, 10)]
    both = metrics.score_set([half, exact], true, [(6, 6, 10, 8), (0, 0, 4, 4)], boxes)
    assert both.iou == pytest.approx((1 + 0.5) / 2)
    assert (both.intersection, both.union) == (16 + 8, 16 + 16)
    assert both.boxes_found == 1  # an IoU of exactly 0.5 is not above 0.5
    more = metrics.score_set([half, exact, extra], true, [(6, 6, 10, 8), (0, 0, 4, 4), (5, 0, 6, 1)], boxes)
    assert more.iou == pytest.approx((1 + 0.5) / 3)
    assert more.union == 32 + 1
    fewer = metrics.score_set([exact], true, [(0, 0, 4, 4)], boxes)
    assert fewer.iou == pytest.approx(0.5)
    assert (fewer.union, fewer.true, fewer.predicted) == (16 + 16, 2, 1)


def test_set_score_of_nothing():
    assert metrics.score_set([], [], [], []).iou == 1.0
    assert metrics.score_set([], [block(0, 0, 4, 4)], [], [(0, 0, 4, 4)]).iou == 0.0
    assert metrics.score_set([block(0, 0, 4, 4)], [], [(0, 0, 4, 4)], []).iou == 0.0


def test_word_distances():
    true = [("red", (0.0, 0.0, 0.2, 0.2)), ("mug", (0.0, 0.0, 0.2, 0.2)), ("bowl", (0.5, 0.5, 0.7, 0.7))]
    predicted = [("red", (0.1, 0.1, 0.3, 0.3)), ("mug", (0.0, 0.0, 0.2, 0.2)), ("mug", (0.9, 0.9, 1.0, 1.0))]
    # red is off by 0.1, mug by 0 (the nearer of two), bowl is not said.
    assert metrics.word_distances(predicted, true) == pytest.approx([0.1, 0.0])
    assert metrics.word_distances([], true) == metrics.word_distances(predicted, []) == []


@pytest.mark.parametrize(
    ("caption", "noun", "color"),
    [
        ("red mug", True, True), ("red cup", True, True), ("blue mug", True, False), ("red mug rack", False, True),
        ("mug", True, False), ("red", False, True), ("", False, False), ("Red mug.", True, True),
    ],
)  # fmt: skip
def test_caption_right(caption, noun, color):
    assert metrics.caption_right(caption, "red", {"mug", "cup"}, {"red", "blue"}) == (noun, color)


def test_caption_of_a_thing_that_is_its_colour():
    assert metrics.caption_right("orange", "orange", {"orange"}, {"orange", "red"}) == (True, True)


def test_calibration_error():
    # Bin 0.9..1 holds 0.95 twice, one of them true: gap 0.45. Bin 0.1..0.2 holds 0.15, false: gap 0.15.
    assert metrics.calibration_error([0.95, 0.95, 0.15], [1, 0, 0]) == pytest.approx((2 * 0.45 + 0.15) / 3)
    assert metrics.calibration_error([1.0, 0.0], [1, 0]) == 0.0
    assert metrics.calibration_error([], []) is None


def test_ranking_auc():
    assert metrics.ranking_auc([0.9, 0.4, 0.4, 0.1], [1, 1, 0, 0]) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert metrics.ranking_auc([0.5], [1]) is None
