"""Figures of a split from marks, worked out by hand."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pixel_perception.evaluation import captions, figures
from pixel_perception.evaluation.judge import Endpoint, Judge


def record(*requests, encode=10.0):
    return {"encode_ms": encode, "requests": [{"kind": kind, "text": text, "answers": answers} for kind, text, answers in requests]}


def overlap(i, u, **more):
    return {"text": "", "found": 1, "intersection": i, "union": u, "iou": i / u, "first_mask_ms": 5.0, "total_ms": 7.0} | more


def of(records, judge=None):
    summary = figures.summarise("d/val", records, judge)
    return {f.metric: f.value for f in summary.figures}, summary


def test_expressions():
    marks = [overlap(8, 10, box_iou=0.95), overlap(1, 10, box_iou=0.7), overlap(0, 20, box_iou=0.0, found=0)]
    values, summary = of([record(("refer", "a", {"": marks[0]})), record(("refer", "b", {"": marks[1]}), ("refer", "c", {"": marks[2]}))])
    assert values["giou"] == pytest.approx(30.0) and values["ciou"] == pytest.approx(100 * 9 / 40)
    assert values["mask_p50"] == values["mask_p70"] == pytest.approx(100 / 3, abs=1e-3) and values["mask_p90"] == 0.0
    # 0.7 is not above 0.7.
    assert [values[k] for k in ("p50", "p70", "p90")] == pytest.approx([200 / 3, 100 / 3, 100 / 3], abs=1e-3)
    assert values["t_acc"] == pytest.approx(200 / 3, abs=1e-3)
    assert summary.curves["masks"][0] == pytest.approx(200 / 3, abs=1e-3) and len(summary.curves["boxes"]) == len(figures.CURVE)
    assert values["first_mask_ms"] == 15.0 and values["encode_ms"] == 10.0 and values["total_ms"] == 17.0


def test_modes_are_kept_apart():
    values, _ = of([record(("refer", "a", {"": overlap(5, 10), "generated": overlap(2, 10)}))])
    assert values["ciou"] == 50.0 and values["generated_ciou"] == 20.0


def test_lists():
    marks = {"text": "", "found": 3, "masks": [overlap(4, 4), overlap(0, 6)], "extra": 10, "first_mask_ms": None, "total_ms": 1.0}
    values, _ = of([record(("list", "a and b", {"": marks}))])
    assert (values["giou"], values["ciou"], values["count_exact"]) == (50.0, 20.0, 0.0)
    assert "first_mask_ms" not in values


SET = {"text": "Tea in {seg}, soup in {seg}.", "found": 2, "pairs": [[0, 0, 10, 10], [1, None, 0, 30]], "descriptions": ["the mug"],
       "first_mask_ms": 1.0, "total_ms": 2.0}  # fmt: skip


def test_sets_without_a_judge_say_so():
    values, summary = of([record(("set", "What holds tea?", {"": SET | {"release_pairs": SET["pairs"]}}))])
    assert (values["giou"], values["ciou"], values["precision"], values["recall"]) == (50.0, 25.0, 50.0, 100.0)
    assert values["count_error"] == 1.0 and values["release_giou"] == 50.0
    assert values["judged_giou"] is None
    assert [f.missing for f in summary.figures if f.metric == "judged_ciou"] == ["no judge was named (--judge URL --judge-model NAME)"]


@pytest.fixture
def endpoint():
    """A server on this machine that gives every bracket 8 of 10, and counts how often it is asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"])
            body = json.dumps({"choices": [{"message": {"content": '{"scores": [8]}'}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()


def test_sets_with_a_judge(endpoint, tmp_path):
    url, asked = endpoint
    records = [record(("set", "What holds tea?", {"": SET}))]
    for _ in range(2):  # the second time from the file
        values, _ = of(records, Judge(Endpoint(url, "m"), tmp_path / "verdicts.jsonl"))
        assert (values["judged_giou"], values["judged_ciou"]) == (40.0, 20.0)
    assert len(asked) == 1 and "What holds tea?" in asked[0] and "(1: the mug)" in asked[0] and "(nothing)" in asked[0]


def test_a_judge_that_is_not_there_is_said(tmp_path):
    judge = Judge(Endpoint("http://127.0.0.1:9/v1", "m", attempts=1), tmp_path / "verdicts.jsonl")
    _, summary = of([record(("set", "What holds tea?", {"": SET}))], judge)
    (missing,) = {f.missing for f in summary.figures if f.metric.startswith("judged")}
    assert missing.startswith("the judge gave no verdict (What holds tea?: no answer from http://127.0.0.1:9/v1")


def classes(name, found, true, presence, iou=0.0):
    return "all", name, {"": {"text": "", "found": found, "true": true, "presence": presence, "table": [[iou] * true] * found,
                              "intersection": int(10 * iou), "union": 10 if found or true else 0, "iou": iou if found or true else 1.0,
                              "first_mask_ms": None, "total_ms": 1.0}}  # fmt: skip


def test_classes_and_presence():
    values, summary = of([record(classes("mug", 1, 1, 0.9, 0.8), classes("cow", 0, 0, 0.1)),
                          record(classes("mug", 1, 1, 0.8, 0.6), classes("bowl", 0, 1, 0.2), classes("dog", 1, 0, 0.6))])  # fmt: skip
    assert values["giou"] == pytest.approx(140 / 3, abs=1e-3) and values["ciou"] == pytest.approx(140 / 3, abs=1e-3)
    assert values["t_acc"] == pytest.approx(200 / 3, abs=1e-3) and values["n_acc"] == 50.0
    # Presence: tp 2, fp 1, fn 1, tn 1; (2 - 1) / sqrt(3 * 3 * 2 * 2).
    assert values["mcc"] == pytest.approx(1 / 6, abs=1e-4)
    # Positives: 2 found, 3 true. Two hits up to IoU 0.6 (three thresholds), one up to 0.8 (four more).
    assert values["pmf1"] == pytest.approx(100 * (3 * 4 / 5 + 4 * 2 / 5) / 10, abs=1e-3)
    assert values["cgf1"] == pytest.approx(values["pmf1"] / 6, abs=1e-2)
    # Each probability in a bin of its own: gaps 0.1, 0.1, 0.2, 0.8, 0.6.
    assert values["ece"] == pytest.approx(100 * (0.1 + 0.1 + 0.2 + 0.8 + 0.6) / 5, abs=1e-3)
    assert summary.categories == {"bowl": {"n": 1, "giou": 0.0}, "mug": {"n": 2, "giou": 70.0}}
    assert len(summary.reliability) == 5


def test_what_a_data_set_or_a_model_does_not_say_is_said():
    values, summary = of([record(classes("mug", 1, 1, None, 0.8))])
    missing = {f.metric: f.missing for f in summary.figures if f.value is None}
    assert values["t_acc"] == 100.0 and missing["n_acc"] == missing["cgf1"] == "the data set does not say what is absent"
    assert missing["ece"] == "the model gives no probability that something is there"


SAID = [("a red mug", ["a red mug"]), ("a dog", ["the black dog", "a dog"]), ("table", ["a big wooden table"])]


def spoken(kind="region", mode=""):
    common = {"first_mask_ms": None, "total_ms": 1.0, "lbm": 0.2, "lbm_k1": 0.1}
    return [record((kind, "", {mode: {"text": said, "references": meant} | common})) for said, meant in SAID]


def test_captions_are_those_of_the_scorers():
    values, _ = of(spoken())
    direct = captions.score({str(i): said for i, (said, _) in enumerate(SAID)}, {str(i): meant for i, (_, meant) in enumerate(SAID)})
    prefix = "" if captions.has_java() else "plain_"
    assert values[f"{prefix}bleu4"] == pytest.approx(100 * direct.bleu[3], abs=1e-3)
    assert values[f"{prefix}cider"] == pytest.approx(100 * direct.cider, abs=1e-3)
    assert values["meteor"] == (None if direct.meteor is None else pytest.approx(100 * direct.meteor, abs=1e-3))


def test_without_java_meteor_is_said_to_be_missing_and_other_tokens_have_other_names(monkeypatch):
    monkeypatch.setattr(captions, "has_java", lambda: False)
    values, summary = of(spoken())
    assert values["meteor"] is None and "cider" not in values and values["plain_cider"] > 0
    assert "METEOR is a Java program, and there is no java" in [f.missing for f in summary.figures]
    assert any("plain tokeniser" in note for note in summary.notes)


def test_narratives(monkeypatch):
    monkeypatch.setattr(captions, "has_java", lambda: False)
    given, _ = of(spoken("narrate"))
    assert (given["lbm"], given["lbm_k1"]) == (0.2, 0.1) and "plain_cider" not in given
    own, _ = of(spoken("narrate", "generated"))
    assert own["generated_lbm"] == 0.2 and "generated_plain_cider" in own


def test_dense_captions_without_java_still_have_their_boxes(monkeypatch):
    monkeypatch.setattr(captions, "has_java", lambda: False)
    regions = {"boxes": [[0, 0, 4, 4]], "captions": ["a mug"], "scores": [0.5]}
    marks = {"text": "", "predicted": regions, "true": regions | {"scores": None}, "first_mask_ms": None, "total_ms": 1.0}
    values, _ = of([record(("dense", "", {"": marks}))])
    assert values["dense_caption_map"] is None and values["detection_map"] == 100.0
