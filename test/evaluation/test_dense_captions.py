"""Mean average precision of dense captions against cases worked out by hand. METEOR is replaced by word overlap."""

import numpy as np
import pytest

from pixel_perception.evaluation import captions, dense_captions
from pixel_perception.evaluation.dense_captions import Regions, average_precision, merge, score


def overlap(candidates, references):
    """Stands in for METEOR: the best share of common words."""
    words = [set(c.split()) for c in candidates]
    return np.array([max(len(w & set(r.split())) / len(w | set(r.split())) for r in rs) for w, rs in zip(words, references, strict=True)])


A, B = [0, 0, 10, 10], [20, 0, 30, 10]
TRUTH = Regions([A, B], ["a cat", "red mug"])


def test_average_precision_by_hand():
    # Right, wrong, right of two: precision 1 up to recall 0.5 (points 0.00 to 0.50), 2/3 beyond (0.51 to 0.99).
    assert average_precision([True, False, True], 2) == pytest.approx((51 + 49 * 2 / 3) / 100)
    assert average_precision([True], 1) == 1
    assert average_precision([False, True], 1) == 0.5
    assert average_precision([True], 4) == pytest.approx(26 / 100)  # recall 0.25 covers 0.00 to 0.25
    assert average_precision([False], 3) == average_precision([], 3) == 0


@pytest.mark.parametrize("true", [3, 7, 29, 100])
def test_average_precision_as_defined(true):
    right = np.random.default_rng(true).random(40) < 0.5
    right &= np.cumsum(right) <= true
    hits, ranks = np.cumsum(right), np.arange(1, 41)
    # 100 x recall in whole numbers: 29/100 >= 0.29 holds.
    points = [max((h / n for h, n in zip(hits, ranks, strict=True) if h * 100 >= t * true), default=0) for t in range(100)]
    assert average_precision(right, true) == pytest.approx(np.mean(points))


def test_merge():
    near, far = [0, 0, 10, 8], [0, 0, 10, 5.5]  # IoU with A: 0.8 and 0.55; with each other 0.6875
    boxes, texts = merge(np.array([far, B, A, near]), ["far", "b", "a", "near"])
    assert texts == [["a", "near"], ["far"], ["b"]]
    assert boxes.tolist() == [[0, 0, 10, 9], far, B]
    # A chain: the middle one touches both ends and takes them, although these do not touch each other.
    chain = [[0, 0, 10, 10], [1.5, 0, 11.5, 10], [3, 0, 13, 10]]  # neighbours 8.5 / 11.5 = 0.739, ends 7 / 13 = 0.538
    boxes, texts = merge(np.array(chain), ["1", "2", "3"])
    assert texts == [["1", "2", "3"]] and boxes.tolist() == [[1.5, 0, 11.5, 10]]
    assert merge(np.zeros((1, 4)), ["no area"])[0].shape == (0, 4)
    assert merge(np.zeros((0, 4)), [])[0].shape == (0, 4)


def test_perfect():
    out = score([Regions([B, A], ["red mug", "a cat"], [0.1, 0.9])], [TRUTH], overlap)
    assert out.map == out.detection_map == 1 and out.grid.shape == (5, 6) and (out.true, out.predicted) == (2, 2)
    assert out.note == ""


def test_grid_by_hand():
    # Box of IoU 0.5 with A, and of its two words one of three in common with the caption: 1/3 > 0.25. B: box exact, words wrong.
    out = score([Regions([[0, 0, 10, 5], B], ["a dog", "green plant"], [0.9, 0.5])], [TRUTH], overlap)
    half = 51 / 100  # one of two found: recalls 0.00 to 0.50
    assert out.detection == pytest.approx([1, 1, 1, 0.5 * half, 0.5 * half])  # B alone, ranked second
    assert out.grid[:3] == pytest.approx(np.full((3, 6), half))
    assert out.grid[3:] == pytest.approx(np.zeros((2, 6)))
    assert out.map == pytest.approx(half * 18 / 30)


def test_thresholds_of_meteor_are_strict():
    for value, columns in ((0.0, 0), (0.05, 1), (0.12, 3), (0.25, 5), (0.26, 6)):
        out = score([Regions([A], ["x"], [1])], [Regions([A], ["a cat"])], lambda said, _, value=value: np.full(len(said), value))
        assert (out.grid[0] == 1).sum() == columns


def test_the_best_box_counts_even_when_taken():
    # The second region overlaps A (0.9) more than the neighbour (0.6 and free), so it is wrong.
    neighbour = [0, 4, 10, 14]
    truth = Regions([A, neighbour], ["a cat", "a cat"])
    out = score([Regions([A, [0, 1, 10, 10]], ["a cat", "a cat"], [0.9, 0.8])], [truth], overlap)
    assert out.detection_map == pytest.approx(0.51)


def test_a_box_is_taken_at_any_overlap():
    # The better ranked region touches A by 1/100 and uses it up.
    out = score([Regions([[9, 9, 10, 10], A], ["a cat", "a cat"], [0.9, 0.8])], [Regions([A], ["a cat"])], overlap)
    assert out.detection_map == out.map == 0
    # One that touches nothing uses up nothing.
    out = score([Regions([[50, 50, 60, 60], A], ["a cat", "a cat"], [0.9, 0.8])], [Regions([A], ["a cat"])], overlap)
    assert out.detection_map == out.map == 0.5


def test_regions_of_all_images_are_ranked_together():
    wrong = Regions([[50, 50, 60, 60]], ["x"], [0.95])
    out = score([Regions([A], ["a cat"], [0.9]), wrong], [Regions([A], ["a cat"]), Regions([], [])], overlap)
    assert out.map == 0.5
    out = score([Regions([A], ["a cat"], [0.97]), wrong], [Regions([A], ["a cat"]), Regions([], [])], overlap)
    assert out.map == 1


def test_merged_captions_are_all_references():
    truth = Regions([A, [0, 0, 10, 9]], ["a cat", "grey animal"])
    out = score([Regions([A], ["grey animal"], [0.5])], [truth], overlap)
    assert out.map == 1 and out.true == 1


def test_nothing_predicted():
    out = score([Regions([], [])], [TRUTH], overlap)
    assert out.map == out.detection_map == 0 and out.predicted == 0


def test_without_java_the_boxes_are_scored(monkeypatch):
    monkeypatch.setattr(captions, "has_java", lambda: False)
    out = score([Regions([A, B], ["", "x"], [0.9, 0.5])], [TRUTH])
    assert out.map is None and out.grid is None and out.detection_map == 1 and "No Java" in out.note


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="same images"):
        score([], [TRUTH])
    with pytest.raises(ValueError, match="no true box"):
        score([Regions([A], ["x"], [1])], [Regions([], [])], overlap)
    with pytest.raises(ValueError, match="prediction 0.*finite score"):
        score([Regions([A], ["x"])], [TRUTH], overlap)
    with pytest.raises(ValueError, match="prediction 0.*finite score"):
        score([Regions([A], ["x"], [np.nan])], [TRUTH], overlap)
    with pytest.raises(ValueError, match="prediction 0: 1 boxes and 2 captions"):
        score([Regions([A], ["x", "y"], [1])], [TRUTH], overlap)
    with pytest.raises(ValueError, match="truth 0.*box 1 is empty"):
        score([Regions([A], ["x"], [1])], [Regions([A, B], ["a", " "])], overlap)


def test_thirty_points():
    assert len(dense_captions.IOU_THRESHOLDS) * len(dense_captions.METEOR_THRESHOLDS) == 30
