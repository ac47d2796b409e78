"""Sums rows of an evaluation up: the one JSON line, a table for people, and files with pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pixel_perception.evaluation import metrics
from pixel_perception.writing import write_text

FAMILIES = ("refer", "several", "all_of", "reasoning")
JOINT = ("refer",)
"""Families whose answer is one thing: the union of what was found counts, as usual for single references."""


def summarise(rows: list[dict], bundle: str, split: str) -> dict:
    """The report's figures. A figure without a sample is None, and its count `n` is 0.

    families  n, giou (set IoU, misses 0), ciou, p50 (share of true boxes found with IoU > 0.5), t_acc (share answered)
    absent    n and n_acc over absent requests; t_acc over `refer`
    words     l1 over the true words that were said (`details` has their share); lbm over answers
    """
    samples = [sample for row in rows for sample in row["samples"]]
    steps = [step for row in rows for step in row["follow"]]
    standing, again = metrics.mean(s["standing"] for s in steps), metrics.mean(s["again"] for s in steps)
    regions, words = [r for row in rows for r in row["regions"]], [w for row in rows for w in row["words"]]
    said = sum(w["said"] for w in words)
    gone = [s for s in samples if s["family"] == "absent"]
    families = {name: family([s for s in samples if s["family"] == name], name in JOINT) for name in FAMILIES}
    return {
        "bundle": bundle,
        "split": split,
        "scenes": len(rows),
        "families": families,
        "absent": {"n": len(gone), "n_acc": _share(s["found"] == 0 for s in gone), "t_acc": families["refer"]["t_acc"]},
        "regions": {"n": len(regions)} | {name: _share(r[name] for r in regions) for name in ("noun", "attribute")},
        "words": {"l1": _rounded(sum(w["distance"] for w in words) / said) if said else None,
                  "lbm": _rounded(metrics.mean(w["lbm"] for w in words))},
        "follow": {"frames": len(steps), "ratio": _rounded(standing / again) if again else None},
        "latency_ms": {name: _median(row[f"{name}_ms"] for row in rows) for name in ("first_mask", "all_masks")},
    }


def family(samples: list[dict], joint: bool) -> dict:
    """Figures of samples that have at least one true target each."""
    prefix = "joint_" if joint else ""
    union, true = sum(s[f"{prefix}union"] for s in samples), sum(s["true"] for s in samples)
    return {
        "n": len(samples),
        "giou": _rounded(metrics.mean(s["joint" if joint else "iou"] for s in samples)),
        "ciou": _rounded(sum(s[f"{prefix}intersection"] for s in samples) / union) if union else None,
        "p50": _rounded(sum(s["boxes_found"] for s in samples) / true) if true else None,
        "t_acc": _share(s["found"] > 0 for s in samples),
    }


def details(rows: list[dict]) -> dict:
    """Figures beyond the one line: single references and absent requests by form, calibration of presence."""
    samples = [sample for row in rows for sample in row["samples"]]
    refer, gone = ([s for s in samples if s["family"] == name] for name in ("refer", "absent"))
    scores = np.array([s["presence"] for s in refer + gone])
    outcomes = np.array([1] * len(refer) + [0] * len(gone))
    by_step: dict[int, list[dict]] = {}
    for step in (step for row in rows for step in row["follow"]):
        by_step.setdefault(step["step"], []).append(step)
    words = [w for row in rows for w in row["words"]]
    return {
        "words_said": _rounded(sum(w["said"] for w in words) / sum(w["true"] for w in words)) if words else None,
        "refer_by_form": {form: family([s for s in refer if s["form"] == form], True) for form in _forms(refer)},
        "absent_by_form": {form: _share(s["found"] == 0 for s in gone if s["form"] == form) for form in _forms(gone)},
        "presence": {"ece": _rounded(metrics.calibration_error(scores, outcomes)),
                     "auc": _rounded(metrics.ranking_auc(scores, outcomes)), "best": best_threshold(scores, outcomes)},
        "follow_by_step": {str(k): {name: _rounded(metrics.mean(s[name] for s in v)) for name in ("standing", "again")}
                           for k, v in sorted(by_step.items())},
    }  # fmt: skip


def best_threshold(scores: np.ndarray, outcomes: np.ndarray) -> dict | None:
    """The presence threshold where the lesser of N-acc and T-acc is largest, with both; None without both kinds."""
    if not outcomes.any() or outcomes.all():
        return None
    candidates = np.unique(np.round(scores, 3))
    gone, there = scores[outcomes == 0], scores[outcomes == 1]
    t = max(candidates, key=lambda c: min(np.mean(gone < c), np.mean(there >= c)))
    return {"threshold": float(t), "n_acc": _rounded(np.mean(gone < t)), "t_acc": _rounded(np.mean(there >= t))}


def table(summary: dict, more: dict | None = None) -> str:
    """The figures as text for people."""
    lines = [f"{summary['bundle']} · {summary['split']} · {summary['scenes']} scenes", "",
             f"{'family':<22}{'n':>6}{'gIoU':>8}{'cIoU':>8}{'P@0.5':>8}{'T-acc':>8}"]  # fmt: skip
    rows = list(summary["families"].items())
    if more:
        rows[1:1] = [(f"  {form}", row) for form, row in more["refer_by_form"].items()]
    for name, row in rows:
        lines.append(f"{name:<22}{row['n']:>6}" + "".join(f"{_shown(row[k]):>8}" for k in ("giou", "ciou", "p50", "t_acc")))
    absent, regions, words, follow, latency = (summary[k] for k in ("absent", "regions", "words", "follow", "latency_ms"))
    lines += [
        "",
        f"absent     N-acc {_shown(absent['n_acc'])} at T-acc {_shown(absent['t_acc'])} (n {absent['n']})",
        f"regions    noun {_shown(regions['noun'])}, colour {_shown(regions['attribute'])} (n {regions['n']})",
        f"words      L1 {_shown(words['l1'])}, LBM {_shown(words['lbm'])}"
        + (f", {_shown(more['words_said'])} of the true words said" if more else ""),
        f"follow     {_shown(follow['ratio'])} of asking again ({follow['frames']} frames)",
        f"latency    first mask {_shown(latency['first_mask'])} ms, all masks {_shown(latency['all_masks'])} ms",
    ]
    if more and more["presence"]["best"]:
        best = more["presence"]["best"]
        ece, auc = _shown(more["presence"]["ece"]), _shown(more["presence"]["auc"])
        lines.append(f"presence   ECE {ece}, AUC {auc}; best balance at threshold {best['threshold']:.3f}: "
                     f"N-acc {_shown(best['n_acc'])}, T-acc {_shown(best['t_acc'])}")  # fmt: skip
    return "\n".join(lines)


def write(folder: Path, summary: dict, more: dict) -> None:
    """Write report.json and report.txt into `folder`, each in one step."""
    texts = {"report.json": json.dumps(summary | {"details": more}, indent=1), "report.txt": table(summary, more)}
    for name, text in texts.items():
        write_text(folder / name, text + "\n")


def sheet(folder: Path, columns: int = 6) -> Path | None:
    """Put the overlays in `folder/pictures` on one contact sheet, `folder/sheet.jpg`; None when there are none."""
    from PIL import Image

    from pixel_perception.drawing import contact_sheet

    files = sorted((folder / "pictures").glob("*.jpg"))[:120]
    if not files:
        return None
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    Image.fromarray(contact_sheet(pictures, columns)).save(folder / "sheet.jpg", quality=85)
    return folder / "sheet.jpg"


def _forms(samples: list[dict]) -> list[str]:
    return sorted({sample["form"] for sample in samples})


def _share(outcomes) -> float | None:
    return _rounded(metrics.mean(float(o) for o in outcomes))


def _median(values) -> float | None:
    values = [v for v in values if v is not None]
    return round(float(np.median(values)), 1) if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.3f}"
