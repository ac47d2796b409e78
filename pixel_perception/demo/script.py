"""What the demo asks, and what came of it: plain data that client, table and page share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pixel_perception.demo.recording import RecordedFrame, Recording, RecordingError
from pixel_perception.evaluation import metrics
from pixel_perception.masks import from_run_lengths
from pixel_perception.types import Instance, Mask, Region, Result, Target, Task, WordLocation


@dataclass(frozen=True)
class Step:
    """One instruction of the demo, a row of a recording's instructions.json."""

    kind: str
    """What the instruction shows."""
    scene: str
    via: str
    """ "topic" or "action"."""
    text: str = ""
    task: str = "AUTO"
    box_of: str = ""
    """Name of the thing ("red boot") whose true box is the region prompt."""
    truth: tuple[str, ...] | None = None
    """Names of the things that are meant; empty for an absent one, None where that is not known."""
    answer: str = ""
    """The right caption; empty where that is not known."""
    follow_s: float = 0.0
    """Seconds for which the instruction stands and is followed."""

    @property
    def title(self) -> str:
        """The instruction as a person reads it."""
        return self.text or {"CAPTION_REGION": f"[box of the {self.box_of}]", "CAPTION_DENSE": "[caption everything]",
                             "NARRATE": "[describe the scene]"}.get(self.task, "")  # fmt: skip


def steps(recording: Recording) -> tuple[Step, ...]:
    """The instructions of a recording. Raises RecordingError naming the file and row that is wrong."""
    path = recording.folder / "instructions.json"
    if not path.is_file():
        raise RecordingError(f"{path}: not found; expected a list of instructions about the recording's scenes")
    out = []
    for number, row in enumerate(json.loads(path.read_text())):
        try:
            row = {**row, "truth": tuple(row["truth"])} if "truth" in row else row
            step = Step(**row)
        except TypeError as error:
            raise RecordingError(f"{path}: row {number}: {error}") from None
        scene = recording.scene(step.scene)
        if step.via not in ("topic", "action") or step.task not in Task.__members__:
            raise RecordingError(f"{path}: row {number}: expected via topic or action and a task, found {step.via}, {step.task}")
        if step.via == "topic" and step.task != "AUTO":
            raise RecordingError(f"{path}: row {number}: the topic takes plain text only; use the action for {step.task}")
        if step.box_of and not any(thing.name == step.box_of for thing in scene.frames[0].things):
            raise RecordingError(f"{path}: row {number}: no {step.box_of!r} in the first frame of scene {step.scene}")
        out.append(step)
    return tuple(out)


@dataclass(frozen=True)
class Milliseconds:
    """Where the time of one answer went. `first_mask` and `total` are seen by the client, the rest is the node's account."""

    total: float
    first_mask: float | None
    image_age: float
    queue: float
    vision: float
    language: float
    postprocess: float


@dataclass(frozen=True, eq=False)
class Answer:
    """What came back for one step; `result` is None when nothing did."""

    step: Step
    frame: RecordedFrame | None
    """The recorded frame that was answered, found by the stamp of the answer."""
    result: Result | None
    error_code: int
    error: str
    ms: Milliseconds | None
    iou: float | None
    """Set IoU against the truth, where that is known."""

    @property
    def arrived(self) -> bool:
        """Whether there is an answer ("it is not there" is one)."""
        return self.result is not None


def score(step: Step, frame: RecordedFrame | None, result: Result | None) -> float | None:
    """Hungarian IoU over the larger count against the things that `step.truth` names; None where that is not known."""
    labels = None if frame is None else frame.labels()
    if labels is None or step.truth is None or result is None:
        return None
    things = [thing for thing in frame.things if thing.name in step.truth]
    found = [instance.mask.full(labels.shape[1], labels.shape[0]) for instance in result.instances]
    return metrics.score_set(found, [labels == thing.label for thing in things], [i.box for i in result.instances],
                             [thing.box for thing in things]).iou  # fmt: skip


def header() -> str:
    """First line of the table of answers."""
    return f"{'':<18}{'instruction':<34}{'answer':<44}{'n':>3}{'score':>7}{'IoU':>6}{'first':>7}{'all ms':>8}"


def line(answer: Answer) -> str:
    """One answer as a line of the table."""
    step, result, ms = answer.step, answer.result, answer.ms
    if result is None or ms is None:
        return f"{step.kind:<18}{_cut(step.title, 32):<34}{answer.error or 'no answer'}"
    count = len(result.instances) or len(result.regions)
    scores = [t.score for t in result.targets] or [r.score for r in result.regions]
    shown = "; ".join(r.caption for r in result.regions) if result.regions and not result.text else result.text
    if result.targets and not any(t.present for t in result.targets):
        shown += " (not there)"
    first = "-" if ms.first_mask is None else f"{ms.first_mask:.0f}"
    best = f"{max(scores):.2f}" if scores else "-"
    iou = "-" if answer.iou is None else f"{answer.iou:.2f}"
    return (f"{step.kind:<18}{_cut(step.title, 32):<34}{_cut(shown, 42):<44}{count:>3}{best:>7}{iou:>6}{first:>7}{ms.total:>8.0f}")


def _cut(text: str, length: int) -> str:
    text = " ".join(text.split())  # a line of the table is one line
    return text if len(text) <= length else text[: length - 1] + "…"


def result_from_plain(row: dict) -> Result:
    """A Result of the JSON that `pixel_perception.plain.plain` makes (timings and standing instruction are left out)."""

    def mask(item: dict) -> Mask:
        x, y, w, h = item["roi"]
        return Mask((x, y, w, h), from_run_lengths(np.asarray(item["counts"]), w, h))

    targets = tuple(Target(t["label"], t["quantity"], t["score"], t["present"], tuple(t["span"])) for t in row["targets"])
    instances = tuple(Instance(i["label"], i["score"], tuple(i["box"]), mask(i["mask"]), i["mask_score"],
                               targets[i["target"]].span, i["target"], i["track_id"]) for i in row["instances"])  # fmt: skip
    return Result(row["query_id"], tuple(row["image_size"]), row["text"], targets, instances,
                  tuple(WordLocation(*w["span"], tuple(w["box"])) for w in row["words"]),
                  tuple(Region(tuple(r["box"]), r["caption"], r["score"]) for r in row["regions"]),
                  finish_reason=row["finish_reason"], model=row["model"], digest=row["digest"])  # fmt: skip


def median(values: Sequence[float]) -> float | None:
    """Median rounded to a tenth; None of nothing."""
    return round(float(np.median(values)), 1) if len(values) else None
