"""Answers marked against cases worked out by hand."""

import numpy as np
import pytest

from pixel_perception.evaluation.answers import Answer, mark, overlap
from pixel_perception.evaluation.requests import Request
from pixel_perception.training.tasks.rle import from_bits
from pixel_perception.training.tasks.sample import Caption, Target
from pixel_perception.types import WordLocation

SIZE = 10, 8


def block(x0, y0, x1, y1):
    mask = np.zeros((SIZE[1], SIZE[0]), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def target(x0, y0, x1, y1, *names, ignore=None):
    return Target(names, from_bits(block(x0, y0, x1, y1)), (x0, y0, x1, y1), None if ignore is None else from_bits(block(*ignore)))


def figures(marks, *names):
    return tuple(marks[name] for name in names)


def test_a_referred_object_by_mask_and_by_box():
    request = Request("refer", "the mug", targets=(target(0, 0, 4, 4),))
    marks = mark(request, Answer("it", [block(2, 0, 6, 4)], [(0, 0, 4, 2)], total_ms=5.0), SIZE)
    assert figures(marks, "found", "intersection", "union", "iou", "box_iou") == (1, 8, 24, pytest.approx(1 / 3), 0.5)
    assert figures(marks, "text", "first_mask_ms", "total_ms") == ("it", None, 5.0)
    nothing = mark(request, Answer(), SIZE)
    assert figures(nothing, "found", "intersection", "union", "iou", "box_iou") == (0, 0, 16, 0.0, 0.0)


def test_logits_are_masks_where_they_are_positive_and_several_are_united():
    request = Request("refer", targets=(target(0, 0, 4, 4),))
    logits = [np.where(block(0, 0, 4, 2), 0.2, -3.0), np.where(block(0, 2, 4, 4), 7.0, 0.0)]
    assert mark(request, Answer(masks=logits), SIZE)["iou"] == 1.0


def test_a_phrase_with_several_boxes_is_right_with_any():
    request = Request("refer", targets=(Target(("men",), None, (0, 0, 2, 2)), Target(("men",), None, (4, 4, 8, 8))))
    marks = mark(request, Answer(boxes=[(4, 4, 8, 6)]), SIZE)
    assert marks["box_iou"] == 0.5 and "iou" not in marks


def test_lists_go_by_order_and_what_is_missing_is_empty():
    request = Request("list", names=("a", "b"), targets=(target(0, 0, 4, 4), target(6, 0, 8, 2)))
    swapped = mark(request, Answer(masks=[block(6, 0, 8, 2), block(0, 0, 4, 4)]), SIZE)
    assert [m["iou"] for m in swapped["masks"]] == [0.0, 0.0]
    short = mark(request, Answer(masks=[block(0, 0, 4, 4)]), SIZE)
    assert [figures(m, "intersection", "union") for m in short["masks"]] == [(16, 16), (0, 4)] and short["extra"] == 0
    assert mark(request, Answer(masks=[block(0, 0, 4, 4), block(6, 0, 8, 2), block(0, 5, 3, 6)]), SIZE)["extra"] == 3


def test_sets_are_matched_and_the_published_matching_needs_logits():
    request = Request("set", "what?", targets=(target(0, 0, 4, 4, "the mug"), target(6, 0, 8, 2, "the cap")))
    masks = [block(6, 0, 8, 2), block(0, 0, 4, 2)]
    marks = mark(request, Answer("{seg} and {seg}", masks), SIZE)
    assert marks["pairs"] == [[0, 1, 4, 4], [1, 0, 8, 16]] and marks["descriptions"] == ["the mug", "the cap"]
    assert "release_pairs" not in marks
    logits = mark(request, Answer(masks=[np.where(m, 4.0, -4.0) for m in masks]), SIZE)
    assert logits["release_pairs"] == marks["pairs"]
    assert logits == mark(request, Answer(masks=[np.where(m, 4.0, -4.0) for m in masks]), SIZE), "points have a fixed seed"


def test_ignored_pixels_count_neither_way():
    request = Request("reason", targets=(target(0, 0, 4, 4, ignore=(4, 0, 6, 4)),))
    assert figures(mark(request, Answer(masks=[block(0, 0, 6, 4)]), SIZE), "intersection", "union", "iou") == (16, 16, 1.0)


def test_classes_keep_their_table():
    request = Request("all", "mug", targets=(target(0, 0, 4, 4), target(6, 0, 8, 2)))
    marks = mark(request, Answer(masks=[block(0, 0, 4, 4)], presence=0.7), SIZE)
    assert figures(marks, "found", "true", "presence", "table", "intersection", "union") == (1, 2, 0.7, [[1.0, 0.0]], 16, 20)
    gone = mark(Request("all", "cow"), Answer(presence=0.1), SIZE)
    assert figures(gone, "found", "true", "table", "iou") == (0, 0, [], 1.0)


def test_traces():
    words = (WordLocation(0, 3, (0, 0, 10, 8)), WordLocation(4, 7, (0, 0, 5, 4)))
    request = Request("narrate", "red mug", captions=(Caption("red mug", words=words),))
    right = np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5]])
    assert figures(mark(request, Answer(trace=right), SIZE), "lbm", "lbm_k1") == (0.0, 0.0)
    # Exchanged, each word is off by half in two of four coordinates; with k = 1 it may take the other's place.
    assert figures(mark(request, Answer(trace=right[::-1]), SIZE), "lbm", "lbm_k1") == (0.25, 0.0)
    assert mark(request, Answer(), SIZE)["lbm"] == 1.0


def test_captions_and_dense_captions_keep_what_was_said():
    region = Request("region", box=(0, 0, 4, 4), captions=(Caption("a mug", (0, 0, 4, 4)),))
    assert mark(region, Answer("mug"), SIZE)["references"] == ["a mug"]
    marks = mark(Request("dense", captions=region.captions), Answer(boxes=[(0, 0, 4, 4.126)], scores=[0.5], captions=["x"]), SIZE)
    assert marks["predicted"] == {"boxes": [[0, 0, 4, 4.13]], "captions": ["x"], "scores": [0.5]}
    assert marks["true"] == {"boxes": [[0, 0, 4, 4]], "captions": ["a mug"]}


def test_nothing_against_nothing():
    assert overlap([], [], SIZE) == {"intersection": 0, "union": 0, "iou": 1.0}
