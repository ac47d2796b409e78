"""The report: our figures beside the papers', what is missing, what differs; CSV for programs; plots and pictures."""

import csv
import io
import json

import numpy as np
from PIL import Image

from pixel_perception.evaluation import comparison, pictures, plots
from pixel_perception.evaluation.answers import Answer, mark
from pixel_perception.evaluation.figures import Figure, Summary
from pixel_perception.evaluation.requests import Request
from pixel_perception.training.tasks.rle import from_bits
from pixel_perception.training.tasks.sample import Caption, Target
from pixel_perception.types import WordLocation

SUMMARIES = {
    "refcoco/val": Summary([Figure("refcoco/val", "refer", "ciou", 71.25, 3), Figure("refcoco/val", "refer", "generated_ciou", 60.0, 3)],
                           {"masks": [90.0] * 20, "boxes": [80.0] * 20}),
    "paco/val": Summary([Figure("paco/val", "all", metric, None, 0, "nobody knows") for metric in ("n_acc", "mcc")], {},
                        [{"n": 3, "confidence": 0.1, "share": 0.0}, {"n": 1, "confidence": 0.9, "share": 1.0}],
                        {f"class {i}": {"n": 1, "giou": float(i)} for i in range(60)}, [[1.0] * 6] * 5, ["One more thing."]),
}  # fmt: skip
COUNTS = {"refcoco/val": {"images": 1, "requests": 3}, "paco/val": {"images": 2, "requests": 2}}
REPORT = comparison.report("pixellm-7b", "abcdef0123456789", COUNTS, SUMMARIES, {"refer": "How it was asked.", "all": ""})


def test_report_is_plain_json():
    assert json.loads(json.dumps(REPORT, allow_nan=False)) == REPORT
    assert set(REPORT) == {"config", "weights", "data", "figures", "not_computed", "notes", "curve_thresholds", "details"}
    (figure,) = (f for f in REPORT["figures"] if f["metric"] == "ciou")
    assert figure == {"data": "refcoco/val", "kind": "refer", "metric": "ciou", "value": 71.25, "n": 3, "missing": "", "published": [
        {"system": "PixelLM-7B", "value": 73.0, "where": "PixelLM table 3"},
        {"system": "PixelLLM", "value": 76.9, "where": "PixelLLM table 1"}]}  # fmt: skip
    assert REPORT["not_computed"] == ["paco/val N-acc, MCC: nobody knows"]
    assert REPORT["notes"][0] == "How it was asked." and "One more thing." in REPORT["notes"]
    assert any("names neither measure nor size" in note for note in REPORT["notes"])
    assert REPORT["details"]["paco/val"]["grid"] == [[1.0] * 6] * 5


def test_table():
    lines = [" ".join(line.split()) for line in comparison.table(REPORT).splitlines()]
    assert lines[0] == "pixellm-7b · weights abcdef012345"
    assert "refcoco/val · 1 image, 3 requests" in lines
    assert "cIoU 71.2 3 PixelLM-7B 73 (PixelLM table 3), PixelLLM 76.9 (PixelLLM table 1)" in lines
    assert "generated cIoU 60.0 3 -" in lines and "N-acc - 0 -" in lines
    assert "paco/val N-acc, MCC: nobody knows" in lines


def test_csv():
    rows = list(csv.DictReader(io.StringIO(comparison.figures_csv(REPORT))))
    assert [(r["system"], r["value"]) for r in rows if r["metric"] == "ciou"] == [
        ("pixellm-7b", "71.25"), ("PixelLM-7B", "73.0"), ("PixelLLM", "76.9")]  # fmt: skip
    assert [r["remark"] for r in rows if r["metric"] == "n_acc"] == ["nobody knows"]
    record = {"data": "d/val", "index": 4, "requests": [{"kind": "refer", "text": 'a "b", c', "answers": {
        "": {"text": "x", "iou": 0.5}, "generated": {"text": "y", "iou": 0.25}}}]}  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(comparison.requests_csv([record]))))
    assert [(r["asked"], r["mode"], r["answer"], r["iou"], r["presence"]) for r in rows] == [
        ('a "b", c', "", "x", "0.5", ""), ('a "b", c', "generated", "y", "0.25", "")]  # fmt: skip


def test_every_metric_has_a_name():
    assert comparison.label("generated_lbm_k1") == "generated LBM, k = 1"
    assert comparison.label("release_giou") == "release gIoU"


def test_plots_show_something(tmp_path):
    files = plots.write(tmp_path, SUMMARIES)
    assert sorted(f.name for f in files) == [f"paco-val-{n}.png" for n in ("calibration", "classes", "dense")] + ["refcoco-val-iou.png"]
    for file in files:
        assert np.asarray(Image.open(file).convert("L")).std() > 5, file


def test_pictures_of_every_kind_of_answer(tmp_path):
    image = np.full((80, 100, 3), 60, np.uint8)
    mask = np.zeros((80, 100), bool)
    mask[10:40, 10:50] = True
    target = Target(("the mug",), from_bits(mask), (10, 10, 50, 40))
    caption = Caption("red mug", (10, 10, 50, 40))
    narrative = Caption("red mug", words=(WordLocation(0, 3, (0, 0, 10, 8)), WordLocation(4, 7, (50, 40, 60, 60))))
    cases = [
        (Request("refer", "the mug", targets=(target,)), Answer("it is {seg}", [mask], [(10, 10, 50, 40)])),
        (Request("list", "a and b", ("a", "b"), targets=(target, target)), Answer(masks=[mask])),
        (Request("set", "what?", targets=(target,)), Answer("{seg}", [mask])),
        (Request("all", "cow"), Answer(presence=0.25)),
        (Request("region", box=(10, 10, 50, 40), captions=(caption,)), Answer("a mug", boxes=[(10, 10, 50, 40)], captions=["a mug"])),
        (Request("dense", captions=(caption,)), Answer(boxes=[(0, 0, 20, 20)], scores=[0.5], captions=["cup"])),
        (Request("narrate", "red mug", captions=(narrative,)), Answer("a mug", trace=np.array([[0, 0, 0.2, 0.2], [0.5, 0.5, 1, 1]]))),
        (Request("caption", captions=(Caption("A mug."),)), Answer("A cup.")),
    ]
    for i, (request, answer) in enumerate(cases):
        pictures.picture(image, request, answer, mark(request, answer, (100, 80)), tmp_path / "pictures" / f"{i}.jpg")
        drawn = np.asarray(Image.open(tmp_path / "pictures" / f"{i}.jpg"))
        assert drawn.shape[1] == 2 * pictures.WIDE + 4 and drawn.std() > 20
    sheet = Image.open(pictures.sheet(tmp_path))
    assert sheet.width == 3 * (2 * pictures.WIDE + 10)
    assert pictures.sheet(tmp_path / "nothing") is None
