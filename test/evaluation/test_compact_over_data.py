"""A bundle over data sets whose right answers are known: its weights are set by hand, mugs are red and bananas yellow.

Its masks have a cell for every four pixels of its small frame, so that a right one overlaps these boxes by nearly 0.9.
"""

import json

import numpy as np
import pytest
from PIL import Image

from pixel_perception import cli
from pixel_perception.evaluation import captions
from pixel_perception.export.tiny import write_tiny_bundle

WIDTH, HEIGHT = 640, 480
MUGS, BANANA = ((70, 100, 170, 200), (100, 340, 190, 430)), (420, 250, 560, 370)


def image():
    out = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for (x0, y0, x1, y1), colour in ((MUGS[0], (200, 30, 30)), (MUGS[1], (200, 30, 30)), (BANANA, (220, 200, 40))):
        out[y0:y1, x0:x1] = colour
    return out


def polygon(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def annotation(number, box, category, **more):
    x0, y0, x1, y1 = box
    return {"id": number, "image_id": 1, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": polygon(*box),
            "area": (x1 - x0) * (y1 - y0), "iscrowd": 0} | more  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """One photograph as four data sets, and the bundle."""
    base = tmp_path_factory.mktemp("painted")
    for folder in ("train2014", "images/val2017", "VG_100K"):
        (base / folder).mkdir(parents=True)
        Image.fromarray(image()).save(base / folder / "1.png")
    images = [{"id": 1, "file_name": "1.png", "width": WIDTH, "height": HEIGHT}]
    expressions = [annotation(1, BANANA, 1, expressions=["the banana"])]
    (base / "refcoco_unc_val.json").write_text(json.dumps({"images": images, "annotations": expressions}))
    things = [*(annotation(i, box, 1) for i, box in enumerate(MUGS, 1)), annotation(3, BANANA, 2), annotation(4, (300, 20, 340, 60), 3)]
    kinds = [{"id": 1, "name": "mug"}, {"id": 2, "name": "banana"}, {"id": 3, "name": "unicorn"}]
    stored = [images[0] | {"file_name": "val2017/1.png"}]
    (base / "paco_lvis_v1_val.json").write_text(json.dumps({"images": stored, "annotations": things, "categories": kinds}))
    told = [annotation(i, box, 1, caption="red mug") for i, box in enumerate(MUGS, 1)]
    (base / "test.json").write_text(json.dumps({"images": images, "annotations": told, "categories": kinds}))
    banana = {"bbox": annotation(1, BANANA, 1)["bbox"], "segmentation": polygon(*BANANA), "category_id": 1, "category_name": "banana"}
    item = {"file_name": "1.png", "width": WIDTH, "height": HEIGHT, "ann_list": [banana], "questions": ["the banana"],
            "answers": [[banana]]}  # fmt: skip
    (base / "muse_val.json").write_text(json.dumps([item]))
    write_tiny_bundle(base / "bundle")
    return base


@pytest.fixture(scope="module")
def report(base):
    """What the command writes about all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captions, "has_java", lambda: False)
        data = [f"--data={name}={base}" for name in ("refcoco", "paco", "visual_genome", "muse")]
        assert cli.main(["evaluate", "--bundle", str(base / "bundle"), "--threads", "1", "--out", str(base / "out"), *data]) == 0
    return json.loads((base / "out" / "report.json").read_text())


def values(report, data):
    return {f["metric"]: f["value"] for f in report["figures"] if f["data"] == data}


def test_an_expression_is_found(report):
    found = values(report, "refcoco/val")
    assert found["giou"] > 85 and found["giou"] == pytest.approx(found["ciou"], abs=1e-3)
    assert found["p50"] == found["p70"] == found["mask_p70"] == found["t_acc"] == 100.0
    assert 0 < found["encode_ms"] < found["first_mask_ms"] <= found["total_ms"]


def test_all_of_a_class_are_found_and_one_that_the_model_never_saw_is_not(report):
    found = values(report, "paco/val")
    # Of three classes two are found.
    assert found["t_acc"] == pytest.approx(200 / 3, abs=1e-3) and 55 < found["giou"] < 200 / 3
    classes = report["details"]["paco/val"]["categories"]
    assert classes["mug"]["giou"] > 85 and classes["banana"]["giou"] > 85 and classes["unicorn"]["giou"] == 0
    assert found["n_acc"] is None and any(text.startswith("paco/val N-acc") for text in report["not_computed"])


def test_boxes_are_captioned(report):
    found = values(report, "visual_genome/test")
    assert found["plain_rouge_l"] == 100.0
    assert found["detection_map"] is not None and found["dense_caption_map"] is None


def test_a_question_is_answered_with_the_right_masks(report):
    found = values(report, "muse/val")
    assert found["giou"] > 85 and found["precision"] == found["recall"] == found["count_exact"] == 100.0
    assert "release_giou" not in found, "decided masks have no logits"


def test_the_answer_is_kept_with_its_slots(base, report):
    rows = [json.loads(line) for line in (base / "out" / "records.jsonl").read_text().splitlines()]
    (muse,) = (row for row in rows if row["data"] == "muse/val")
    assert muse["requests"][0]["answers"][""]["text"] == "yellow banana {seg}"
