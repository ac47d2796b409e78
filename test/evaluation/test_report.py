"""Rows summed up to figures worked out by hand; photographs read and asked about."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from pixel_perception.evaluation import photographs, report, scoring
from pixel_perception.types import Instance, Mask, Result, Target, WordLocation


def sample(family: str, found: int, iou: float, presence: float, form: str = "name", boxes: int = 0) -> dict:
    return {"family": family, "form": form, "text": "", "answer": "", "true": 0 if family == "absent" else 1, "found": found,
            "iou": iou, "joint": iou, "intersection": int(100 * iou), "union": 100, "joint_intersection": int(100 * iou),
            "joint_union": 100, "boxes_found": boxes, "presence": presence}  # fmt: skip


ROWS = [
    {"seed": 1, "samples": [sample("refer", 1, 0.8, 0.9, boxes=1), sample("refer", 0, 0.0, 0.2, "color"), sample("absent", 1, 0, 0.6)],
     "regions": [{"noun": True, "attribute": True}, {"noun": False, "attribute": True}],
     "words": [{"distance": 0.1, "said": 1, "true": 2, "lbm": 0.2}],
     "follow": [{"step": 1, "standing": 0.6, "again": 0.8}, {"step": 2, "standing": 0.7, "again": 0.5}],
     "first_mask_ms": 100.0, "all_masks_ms": 120.0},
    {"seed": 2, "samples": [sample("several", 2, 0.5, 0.9), sample("absent", 0, 0, 0.1)], "regions": [],
     "words": [{"distance": 0.5, "said": 2, "true": 2, "lbm": 0.4}],
     "follow": [], "first_mask_ms": None, "all_masks_ms": None},
]  # fmt: skip


def test_summary_has_the_documented_keys_and_figures():
    summary = report.summarise(ROWS, "compact 1", "test")
    assert summary == {
        "bundle": "compact 1", "split": "test", "scenes": 2,
        "families": {
            "refer": {"n": 2, "giou": 0.4, "ciou": 0.4, "p50": 0.5, "t_acc": 0.5},
            "several": {"n": 1, "giou": 0.5, "ciou": 0.5, "p50": 0.0, "t_acc": 1.0},
            "all_of": {"n": 0, "giou": None, "ciou": None, "p50": None, "t_acc": None},
            "reasoning": {"n": 0, "giou": None, "ciou": None, "p50": None, "t_acc": None},
        },
        "absent": {"n": 2, "n_acc": 0.5, "t_acc": 0.5},
        "regions": {"n": 2, "noun": 0.5, "attribute": 1.0},
        "words": {"l1": 0.2, "lbm": 0.3},
        "follow": {"frames": 2, "ratio": 1.0},
        "latency_ms": {"first_mask": 100.0, "all_masks": 120.0},
    }  # fmt: skip
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_details_and_table():
    more = report.details(ROWS)
    assert more["words_said"] == 0.75
    assert more["refer_by_form"]["color"]["t_acc"] == 0.0 and more["refer_by_form"]["name"]["giou"] == 0.8
    assert more["follow_by_step"]["2"] == {"standing": 0.7, "again": 0.5}
    text = report.table(report.summarise(ROWS, "compact 1", "test"), more)
    assert all(name in text for name in ("refer", "  color", "several", "N-acc 0.500", "LBM 0.300"))


def test_table_of_nothing():
    assert "refer" in report.table(report.summarise([], "b", "test"), report.details([]))


def test_best_threshold_balances_both_kinds():
    scores, outcomes = np.array([0.9, 0.8, 0.3, 0.4, 0.1, 0.05]), np.array([1, 1, 1, 0, 0, 0])
    assert report.best_threshold(scores, outcomes) == {"threshold": 0.3, "n_acc": 0.6667, "t_acc": 1.0}
    assert report.best_threshold(scores, np.ones(6, int)) is None


def found(*rois: tuple[int, int, int, int], text: str = "", words=()) -> Result:
    instances = tuple(Instance("", 0.9, (x, y, x + w, y + h), Mask((x, y, w, h), np.ones((h, w), bool)), 0.9, (0, 0), 0, k)
                      for k, (x, y, w, h) in enumerate(rois))  # fmt: skip
    return Result("q", (20, 10), text, (Target("", "one", 0.7, bool(rois)),), instances, words)


def truth(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((10, 20), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_sample_counts_what_was_found_and_meant():
    row = scoring.sample("the mug", found((0, 0, 4, 4), (10, 0, 2, 4)), [truth(0, 0, 4, 4)], [(0, 0, 4, 4)])
    assert row["iou"] == 0.5  # one mask too many
    assert row["joint"] == pytest.approx(16 / 24)
    assert (row["true"], row["found"], row["boxes_found"], row["presence"]) == (1, 2, 1, 0.7)
    miss = scoring.sample("the mug", found(), [truth(0, 0, 4, 4)], [(0, 0, 4, 4)])
    assert (miss["iou"], miss["joint"], miss["found"]) == (0.0, 0.0, 0)


def test_word_scores_of_the_truth_and_of_silence():
    places = (WordLocation(0, 3, (0, 0, 4, 4)), WordLocation(4, 7, (0, 0, 4, 4)))
    true = [("red", (0.0, 0.0, 0.2, 0.4)), ("mug", (0.0, 0.0, 0.2, 0.4))]
    assert scoring.word_scores(found(text="red mug", words=places), true) == {"distance": 0.0, "said": 2, "true": 2, "lbm": 0.0}
    assert scoring.word_scores(found(text="red mug"), true) == {"distance": 0, "said": 0, "true": 2, "lbm": 1.0}


@pytest.fixture
def folder(tmp_path):
    """One photograph with two dogs, a cat, a crowd of sheep and a bird that is too small to ask for."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((100, 200, 3), np.uint8)).save(tmp_path / "images" / "a.jpg")

    def square(number: int, x: int, size: int, crowd: int = 0) -> dict:
        outline = [x, 10, x + size, 10, x + size, 10 + size, x, 10 + size]
        counts = {"counts": [0, 100 * 200], "size": [100, 200]}
        return {"image_id": 7, "category_id": number, "iscrowd": crowd, "bbox": [x, 10, size, size],
                "segmentation": counts if crowd else [outline]}  # fmt: skip

    names = ["dog", "cat", "sheep", "bird", "horse"]
    data = {"images": [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 100}],
            "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
            "annotations": [square(0, 10, 30), square(0, 60, 30), square(1, 120, 30), square(2, 0, 5, 1), square(3, 180, 5)]}  # fmt: skip
    (tmp_path / "annotations.json").write_text(json.dumps(data))
    return tmp_path


def test_photographs_are_asked_about_what_is_clear(folder):
    (photograph,), categories = photographs.load(folder)
    assert photograph.unclear == {"sheep", "bird"}
    asked = photographs.questions(photograph, categories, random.Random(0))
    assert sorted(asked) == [("absent", "the horse", []), ("all_of", "all dogs", [0, 1]), ("refer", "the cat", [2])]


def test_polygons_and_run_lengths():
    mask = photographs.decode([[10, 20, 40, 20, 40, 50, 10, 50]], (100, 80))
    expected = np.zeros((80, 100), bool)
    expected[20:50, 10:40] = True
    assert np.count_nonzero(mask ^ expected) <= 120  # a polygon's border may fall on either side of a pixel
    counts = [3, 2, 5]  # column by column: pixels 3 and 4 of a 2 high, 5 wide mask
    assert photographs.decode({"counts": counts, "size": [2, 5]}, (5, 2)).tolist() == [
        [False, False, True, False, False], [False, True, False, False, False]]  # fmt: skip


def test_photograph_that_is_not_there(folder):
    (folder / "images" / "a.jpg").unlink()
    with pytest.raises(photographs.PhotographError, match=r"names 'a\.jpg', which is not in the folder"):
        photographs.load(folder)


def test_no_annotations(tmp_path):
    with pytest.raises(photographs.PhotographError, match=r"annotations\.json: not found"):
        photographs.load(tmp_path)
