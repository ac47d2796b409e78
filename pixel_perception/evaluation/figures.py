"""Sums the marks of a split up to its figures, in the papers' units: percent, but LBM as a distance and times in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pixel_perception.evaluation import captions, dense_captions, metrics, muse, presence
from pixel_perception.evaluation.answers import regions
from pixel_perception.evaluation.judge import Judge, JudgeError

THRESHOLDS = {"p50": 0.5, "p70": 0.7, "p90": 0.9}
CURVE = tuple(round(0.05 * i, 2) for i in range(20))
"""Thresholds of the curves "share of requests with a larger IoU"."""


@dataclass(frozen=True)
class Figure:
    """One measure of one split; `value` None where it could not be taken, and `missing` says why."""

    data: str
    """Data set and split, "refcoco/val"."""
    kind: str
    metric: str
    value: float | None
    n: int
    missing: str = ""


@dataclass
class Summary:
    """The figures of a split, and what its plots show."""

    figures: list[Figure] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)
    """What has an IoU: for each threshold of `CURVE` the percentage of requests above it."""
    reliability: list[dict] = field(default_factory=list)
    """See `presence.reliability`."""
    categories: dict[str, dict] = field(default_factory=dict)
    """Class: {"n", "giou"}, over the images that have it."""
    grid: list[list[float]] = field(default_factory=list)
    """Average precision in percent, IoU thresholds down, METEOR thresholds across."""
    notes: list[str] = field(default_factory=list)
    """What else to know about the figures."""


def summarise(data: str, records: Sequence[dict], judge: Judge | None = None) -> Summary:
    """The figures of a split's records (`run.py` describes one), by kind and mode.

    A judge is asked about sets ("MUSE"); verdicts that it has given before are taken from its file.
    """
    out = Summary()
    groups: dict[tuple[str, str], list[dict]] = {}
    for record in records:
        for request in record["requests"]:
            for mode, marks in request["answers"].items():
                groups.setdefault((request["kind"], mode), []).append(marks | {"asked": request["text"]})
    for (kind, mode), marks in groups.items():
        adder = _Adder(out, data, kind, f"{mode}_" if mode else "")
        SUMMARIES[kind](adder, marks) if kind != "set" else _sets(adder, marks, judge)
    _times(out, data, records)
    return out


@dataclass(frozen=True)
class _Adder:
    """Adds the figures of one kind and mode to a summary."""

    summary: Summary
    data: str
    kind: str
    prefix: str

    def __call__(self, metric: str, value: float | None, n: int, missing: str = "", scale: float = 100.0) -> None:
        value = None if value is None else round(scale * float(value), 4)
        self.summary.figures.append(Figure(self.data, self.kind, self.prefix + metric, value, n, missing))

    def overlaps(self, marks: Sequence[dict], extra: int = 0) -> None:
        """gIoU and cIoU of marks that have an overlap; `extra` pixels belong to the union too."""
        union = sum(m["union"] for m in marks) + extra
        self("giou", metrics.mean(m["iou"] for m in marks), len(marks))
        self("ciou", sum(m["intersection"] for m in marks) / union if union else None, len(marks), "" if union else "no mask at all")

    def precision(self, name: str, values: Sequence[float], prefix: str = "") -> None:
        """P@0.5, 0.7 and 0.9 (strictly above) and the curve."""
        for metric, threshold in THRESHOLDS.items():
            self(prefix + metric, metrics.mean(float(v > threshold) for v in values), len(values))
        self.summary.curves[f"{self.prefix.replace('_', ' ')}{name}"] = above(values)


def above(values: Iterable[float]) -> list[float]:
    """Percentage of values above each threshold of `CURVE`."""
    values = np.asarray(list(values))
    return [round(100 * float((values > t).mean()), 3) for t in CURVE]


def _refer(add: _Adder, marks: Sequence[dict]) -> None:
    masked = [m for m in marks if "iou" in m]
    if masked:
        add.overlaps(masked)
        add.precision("masks", [m["iou"] for m in masked], "mask_")
    boxed = [m["box_iou"] for m in marks if "box_iou" in m]
    if boxed:
        add.precision("boxes", boxed)
    add("t_acc", metrics.mean(float(m["found"] > 0) for m in marks), len(marks))


def _list(add: _Adder, marks: Sequence[dict]) -> None:
    masks = [mask for m in marks for mask in m["masks"]]
    add.overlaps(masks, sum(m["extra"] for m in marks))
    add.precision("masks", [m["iou"] for m in masks], "mask_")
    add("count_exact", metrics.mean(float(m["found"] == len(m["masks"])) for m in marks), len(marks))


def _sets(add: _Adder, marks: Sequence[dict], judge: Judge | None) -> None:
    answers = [_pairs(m["pairs"]) for m in marks]
    scores, missing = _verdicts(judge, marks, answers)
    figures = muse.summarise(answers, scores)
    for metric in ("giou", "ciou", "answer_giou", "precision", "recall", "f1", "count_exact"):
        add(metric, figures[metric], figures["n"], "" if figures[metric] is not None else "nothing was found")
    add("count_error", figures["count_error"], figures["n"], scale=1.0)
    for metric in ("judged_giou", "judged_ciou"):
        add(metric, figures.get(metric), figures["n"], missing)
    if all("release_pairs" in m or not m["found"] for m in marks) and any("release_pairs" in m for m in marks):
        released = muse.summarise([_pairs(m.get("release_pairs", m["pairs"])) for m in marks])
        for metric in ("giou", "ciou"):
            add(f"release_{metric}", released[metric], released["n"])
    add.summary.curves["masks"] = above(pair.iou for answer in answers for pair in answer)


def _pairs(rows: Sequence[Sequence[int | None]]) -> list[muse.Pair]:
    return [muse.Pair(*row) for row in rows]


def _verdicts(judge: Judge | None, marks: Sequence[dict], answers: Sequence[list[muse.Pair]]) -> tuple[list[list[float]] | None, str]:
    """The judge's score of each pair of each answer; or None and why there is none."""
    if judge is None:
        return None, "no judge was named (--judge URL --judge-model NAME)"
    try:
        return [muse.judged(judge, m["asked"][:60], m["asked"], m["text"], pairs, m["descriptions"])
                for m, pairs in zip(marks, answers, strict=True)], ""  # fmt: skip
    except JudgeError as error:
        return None, f"the judge gave no verdict ({error}); those so far are kept"


def _reason(add: _Adder, marks: Sequence[dict]) -> None:
    add.overlaps(marks)
    add.precision("masks", [m["iou"] for m in marks], "mask_")
    add("t_acc", metrics.mean(float(m["found"] > 0) for m in marks), len(marks))


def _all(add: _Adder, marks: Sequence[dict]) -> None:
    there, gone = [m for m in marks if m["true"]], [m for m in marks if not m["true"]]
    if there:
        add.overlaps(there)
        add.summary.curves["masks"] = above(m["iou"] for m in there)
        for name in sorted({m["asked"] for m in there}):
            values = [m["iou"] for m in there if m["asked"] == name]
            add.summary.categories[name] = {"n": len(values), "giou": round(100 * float(np.mean(values)), 3)}
    add("t_acc", metrics.mean(float(m["found"] > 0) for m in there), len(there), "" if there else "nothing that is there was asked for")
    why = "" if gone else "the data set does not say what is absent"
    add("n_acc", metrics.mean(float(m["found"] == 0) for m in gone), len(gone), why)
    grouped = presence.cgf1([np.array(m["table"], np.float64).reshape(m["found"], m["true"]) for m in marks])
    for metric, scale in (("cgf1", 100.0), ("pmf1", 100.0), ("mcc", 1.0)):
        add(metric, grouped[metric] if gone else None, len(marks), why, scale)
    scored = [m for m in marks if m["presence"] is not None]
    if not scored:
        why = "the model gives no probability that something is there"
    figures = presence.summarise([m["presence"] for m in scored], [m["true"] > 0 for m in scored]) if scored and gone else {}
    for metric in ("ece", "brier", "auc"):
        add(metric, figures.get(metric), len(scored), why, 100.0 if metric != "brier" else 1.0)
    add.summary.reliability = figures.get("reliability", [])


def _captions(add: _Adder, marks: Sequence[dict]) -> None:
    said = {str(i): m["text"] for i, m in enumerate(marks)}
    try:
        scores = captions.score(said, {str(i): m["references"] for i, m in enumerate(marks)})
    except RuntimeError as error:
        for metric in ("meteor", "cider", "bleu4", "rouge_l"):
            add(metric, None, len(marks), str(error))
        return
    plain = "" if scores.tokeniser == "ptb" else "plain_"  # no figure of the papers stands beside another tokeniser's
    add.summary.notes += [note for note in scores.notes if scores.n == 1 or not note.startswith("CIDEr counts")]
    add("meteor", scores.meteor, scores.n, "" if scores.meteor is not None else "METEOR is a Java program, and there is no java")
    for metric, value in (("cider", scores.cider), ("bleu4", scores.bleu[3]), ("rouge_l", scores.rouge_l)):
        add(plain + metric, value, scores.n)


def _dense(add: _Adder, marks: Sequence[dict]) -> None:
    if not any(m["true"]["boxes"] for m in marks):
        add("dense_caption_map", None, len(marks), "there is no true box")
        return
    try:
        scores = dense_captions.score([regions(m["predicted"]) for m in marks], [regions(m["true"]) for m in marks])
    except RuntimeError as error:
        add("dense_caption_map", None, len(marks), str(error))
        return
    add("dense_caption_map", scores.map, scores.true, scores.note)
    add("detection_map", scores.detection_map, scores.true)
    add.summary.grid = [] if scores.grid is None else (100 * scores.grid).round(3).tolist()


def _narrate(add: _Adder, marks: Sequence[dict]) -> None:
    for metric in ("lbm", "lbm_k1"):
        add(metric, metrics.mean(m[metric] for m in marks), len(marks), scale=1.0)
    if add.prefix:  # what was said, and not given
        _captions(add, marks)


SUMMARIES: dict[str, Callable[[_Adder, Sequence[dict]], None]] = {
    "refer": _refer, "list": _list, "reason": _reason, "all": _all, "region": _captions, "dense": _dense, "caption": _captions,
    "narrate": _narrate,
}  # fmt: skip


def _times(out: Summary, data: str, records: Sequence[dict]) -> None:
    """Medians over images: encoding, and from the image to the first mask and to the end of the first request's first answer."""
    first = [next(iter(record["requests"][0]["answers"].values())) | {"encode": record["encode_ms"]}
             for record in records if record["requests"]]  # fmt: skip
    add = _Adder(out, data, "time", "")
    masks = [m["encode"] + m["first_mask_ms"] for m in first if m["first_mask_ms"] is not None]
    if masks:
        add("first_mask_ms", float(np.median(masks)), len(masks), scale=1.0)
    if first:
        add("encode_ms", float(np.median([m["encode"] for m in first])), len(first), scale=1.0)
        add("total_ms", float(np.median([m["encode"] + m["total_ms"] for m in first])), len(first), scale=1.0)
