"""The shipped recording and its script, broken ones, and the page made of results."""

import json
import shutil
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pixel_perception.demo import script
from pixel_perception.demo.page import write_page
from pixel_perception.demo.recording import RecordedFrame, Recording, RecordingError, back_and_forth
from pixel_perception.plain import plain
from pixel_perception.types import Instance, Mask, Region, Result, Target, WordLocation

SHIPPED = Path(__file__).parents[2] / "demo" / "recording"


@pytest.fixture
def copy(tmp_path):
    """A copy of the shipped recording that a test may break."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "recording"))


def test_shipped_frames_hold_together():
    recording = Recording.open(SHIPPED)
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) < 3_000_000
    assert {scene.kind for scene in recording.scenes} == {"simulated", "photograph"}
    for frame in recording.frames:
        image = frame.image()
        assert image.ndim == 3 and image.dtype == np.uint8
        if frame.labels_file is None:
            continue
        labels, depth = frame.labels(), frame.depth()
        assert labels.shape == depth.shape == image.shape[:2] == (480, 640)
        assert set(np.unique(labels)) - {0} == {thing.label for thing in frame.things}
        for thing in frame.things:
            ys, xs = np.nonzero(labels == thing.label)
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == thing.box
            assert 300 < np.median(depth[labels == thing.label]) < 2000  # millimetres on a table


def test_every_source_is_named():
    text = (SHIPPED / "ATTRIBUTION.md").read_text()
    for scene in Recording.open(SHIPPED).scenes:
        if scene.kind == "photograph":
            assert scene.credit.endswith("(CC BY 2.0)")
            assert all(frame.image_file.name in text for frame in scene.frames)


def test_frames_turn_at_the_ends():
    frames = tuple(RecordedFrame("s", k, Path(), None, None, None, ()) for k in range(4))
    assert [f.index for f in islice(back_and_forth(frames), 10)] == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert [f.index for f in islice(back_and_forth(frames[:1]), 3)] == [0, 0, 0]
    assert [f.index for f in islice(back_and_forth(frames[:2]), 4)] == [0, 1, 0, 1]


def test_shipped_script_asks_everything_by_topic_and_action():
    asked = script.steps(Recording.open(SHIPPED))
    assert len(asked) >= 8 and {step.via for step in asked} == {"topic", "action"}
    assert {"CAPTION_REGION", "CAPTION_DENSE", "NARRATE", "AUTO"} == {step.task for step in asked}
    assert any(step.truth == () for step in asked), "one asks for what is not there"
    assert any(len(step.truth or ()) > 1 for step in asked)
    names = {scene.name: {t.name for t in scene.frames[0].things} for scene in Recording.open(SHIPPED).scenes}
    assert all(set(step.truth or ()) <= names[step.scene] for step in asked)


def test_missing_recording(tmp_path):
    with pytest.raises(RecordingError, match=r"recording\.json: not found"):
        Recording.open(tmp_path)


def test_missing_file(copy):
    (copy / "depth" / "900040-1.png").unlink()
    with pytest.raises(RecordingError, match=r"900040-1\.png: not found"):
        Recording.open(copy)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data.pop("rate_hz"), "lacks the field 'rate_hz'"),
        (lambda data: data.update(rate_hz=0), "rate_hz above 0"),
        (lambda data: data.update(scenes=[]), "at least one scene"),
        (lambda data: data["scenes"][0]["frames"][0].pop("image"), "lacks the field 'image'"),
    ],
)
def test_wrong_field(copy, change, sentence):
    data = json.loads((copy / "recording.json").read_text())
    change(data)
    (copy / "recording.json").write_text(json.dumps(data))
    with pytest.raises(RecordingError, match=sentence):
        Recording.open(copy)


def test_broken_json(copy):
    (copy / "recording.json").write_text("{")
    with pytest.raises(RecordingError, match="not valid JSON"):
        Recording.open(copy)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"kind": "a", "scene": "nowhere", "via": "topic"}, "no scene 'nowhere'"),
        ({"kind": "a", "scene": "900021", "via": "mail"}, "expected via topic or action"),
        ({"kind": "a", "scene": "900021", "via": "topic", "task": "NARRATE"}, "plain text only"),
        ({"kind": "a", "scene": "900021", "via": "action", "box_of": "green elephant"}, "no 'green elephant'"),
        ({"kind": "a", "scene": "900021", "via": "action", "colour": "red"}, "colour"),
    ],
)
def test_wrong_script(copy, row, sentence):
    (copy / "instructions.json").write_text(json.dumps([row]))
    with pytest.raises(RecordingError, match=sentence):
        script.steps(Recording.open(copy))


def answered(step: script.Step, frame: RecordedFrame) -> Result:
    """A result whose instances are the true masks of what the step means."""
    labels, instances, targets = frame.labels(), [], []
    for k, thing in enumerate(t for t in frame.things if t.name in (step.truth or ())):
        x0, y0, x1, y1 = (int(v) for v in thing.box)
        mask = Mask((x0, y0, x1 - x0, y1 - y0), (labels == thing.label)[y0:y1, x0:x1])
        targets.append(Target(thing.name, "one", 0.9, True, (0, 4)))
        instances.append(Instance(thing.name, 0.9, thing.box, mask, 0.8, (0, 4), k, k + 1))
    words = (WordLocation(0, 4, (1.0, 2.0, 3.0, 4.0)),)
    return Result("q", (640, 480), "cup ä <b>", tuple(targets), tuple(instances), words, (Region((0, 0, 9, 9), "a cup", 0.5),))


def test_score_and_json_round_trip():
    recording = Recording.open(SHIPPED)
    step = next(s for s in script.steps(recording) if len(s.truth or ()) == 2)
    frame = recording.scene(step.scene).frames[0]
    result = answered(step, frame)
    assert script.score(step, frame, result) == 1.0
    back = script.result_from_plain(json.loads(json.dumps(plain(result))))
    assert script.score(step, frame, back) == 1.0
    assert (back.text, back.targets, back.words, back.regions) == (result.text, result.targets, result.words, result.regions)
    fewer = Result("q", (640, 480), instances=result.instances[:1], targets=result.targets)
    assert script.score(step, frame, fewer) == 0.5
    assert script.score(step, None, result) is None


def test_page_shows_answers_and_losses(tmp_path):
    recording = Recording.open(SHIPPED)
    step = next(s for s in script.steps(recording) if len(s.truth or ()) == 2)
    result = plain(answered(step, recording.scene(step.scene).frames[0]))
    times = asdict(script.Milliseconds(300.0, 200.0, 350.0, 1.0, 2.0, 3.0, 4.0))
    row = {"step": asdict(step), "title": step.title, "arrived": True, "error_code": 0, "error": "", "iou": 1.0, "ms": times,
           "frame": [step.scene, 0], "result": result}  # fmt: skip
    lost = row | {"arrived": False, "result": None, "frame": None, "ms": None, "iou": None, "error": "no image <arrived>"}
    following = {"text": "x", "seconds": 1.0, "frames": 2, "frames_per_s": 9.9, "language_runs": 0, "vision_ms": 5.0,
                 "image_age_ms": 6.0, "worst_image_age_ms": 7.0, "iou": 0.9,
                 "pictures": [{"frame": [step.scene, 1], "result": result}, {"frame": None, "result": result}]}  # fmt: skip
    results = {"model": {"name": "m", "version": "1", "digest": "d", "backend": "b", "bundle_mb": 1.0}, "memory_mb": 100.0,
               "rate_hz": 10.0, "answers": [row, lost], "following": following}  # fmt: skip
    text = write_page(tmp_path, recording, results).read_text()
    assert "cup ä &lt;b&gt;" in text and "no image &lt;arrived&gt;" in text and "<b>" not in text
    shown = sorted(p.name for p in (tmp_path / "overlays").iterdir())
    assert shown == ["01.jpg", "standing-0.jpg"]
    assert all(f"overlays/{name}" in text for name in shown)


def test_table_has_a_line_for_every_kind_of_answer():
    step = script.Step("absent", "s", "action", "find the hammer, please, wherever in the world it is", truth=())
    ms = script.Milliseconds(300.0, None, 350.0, 1.0, 2.0, 3.0, 4.0)
    gone = Result("q", (640, 480), "hammer", (Target("hammer", "one", 0.1, False),))
    line = script.line(script.Answer(step, None, gone, 10, "", ms, 1.0))
    assert "hammer (not there)" in line and "0.10" in line and "1.00" in line and "300" in line
    assert "no answer" in script.line(script.Answer(step, None, None, -1, "", None, None))
    rambling = Result("q", (640, 480), "one line\nand another, and so on and on without an end")
    assert "\n" not in script.line(script.Answer(step, None, rambling, 0, "", ms, None))
    captions = Result("q", (640, 480), regions=(Region((0, 0, 1, 1), "red mug", 0.7), Region((0, 0, 1, 1), "bowl", 0.6)))
    assert "red mug; bowl" in script.line(script.Answer(step, None, captions, 0, "", ms, None))
