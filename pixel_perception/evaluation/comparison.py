"""Figures beside the papers': as a table for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill

from pixel_perception.evaluation import published
from pixel_perception.evaluation.figures import CURVE, Figure, Summary
from pixel_perception.writing import write_text

LABELS = {
    "giou": "gIoU", "ciou": "cIoU", "p50": "P@0.5, box", "p70": "P@0.7, box", "p90": "P@0.9, box", "mask_p50": "P@0.5, mask",
    "mask_p70": "P@0.7, mask", "mask_p90": "P@0.9, mask", "t_acc": "T-acc", "n_acc": "N-acc", "count_exact": "right count",
    "count_error": "count error", "answer_giou": "gIoU of answers", "precision": "precision", "recall": "recall", "f1": "F1",
    "judged_giou": "judged gIoU", "judged_ciou": "judged cIoU", "cgf1": "cgF1", "pmf1": "pmF1", "mcc": "MCC", "ece": "calibration error",
    "brier": "Brier score", "auc": "AUC of presence", "meteor": "METEOR", "cider": "CIDEr", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L",
    "plain_cider": "CIDEr, plain tokens", "plain_bleu4": "BLEU-4, plain tokens", "plain_rouge_l": "ROUGE-L, plain tokens",
    "dense_caption_map": "dense caption mAP", "detection_map": "mAP of boxes", "lbm": "LBM (less is better)", "lbm_k1": "LBM, k = 1",
    "encode_ms": "encode ms", "first_mask_ms": "first mask ms", "total_ms": "first answer ms",
}  # fmt: skip
WIDTH = 120
"""Of lines of prose in characters."""
MODES = {"generated_": "generated ", "release_": "release "}


def label(metric: str) -> str:
    """A metric's name for people."""
    for prefix, said in MODES.items():
        if metric.startswith(prefix):
            return said + label(metric.removeprefix(prefix))
    return LABELS[metric]


def report(name: str, identity: str, counts: Mapping[str, Mapping[str, int]], summaries: Mapping[str, Summary],
           notes: Mapping[str, str]) -> dict:
    """Everything as plain data.

    Args:
        name: configuration. identity: of the weights.
        counts: {data: {"images", "requests"}}.
        summaries: {data: figures}.
        notes: where the protocol differs, by kind of request.

    Returns:
        {"config", "weights", "data", "figures": [...], "not_computed": [...], "notes": [...], "curve_thresholds", "details"}; a
        figure has what `Figure` has and "published": [{"system", "value", "where"}].
    """
    figures = [figure for summary in summaries.values() for figure in summary.figures]
    missing: dict[tuple[str, str], list[str]] = {}
    for figure in figures:
        if figure.value is None:
            missing.setdefault((figure.data, figure.missing), []).append(label(figure.metric))
    kinds = dict.fromkeys(figure.kind for figure in figures)
    places = dict.fromkeys(p["where"] for figure in figures for p in printed(figure))
    told = [notes.get(kind, "") for kind in kinds] + [published.REMARKS.get(place, "") for place in places]
    told += [note for summary in summaries.values() for note in summary.notes]
    return {
        "config": name,
        "weights": identity,
        "data": {data: dict(count) for data, count in counts.items()},
        "figures": [asdict(figure) | {"published": printed(figure)} for figure in figures],
        "not_computed": [f"{data} {', '.join(names)}: {why}" for (data, why), names in missing.items()],
        "notes": [note for note in dict.fromkeys(told) if note],
        "curve_thresholds": list(CURVE),
        "details": {data: {key: value for key, value in asdict(summary).items() if key not in ("figures", "notes") and value}
                    for data, summary in summaries.items()},
    }  # fmt: skip


def printed(figure: Figure) -> list[dict]:
    """The papers' figures of the same measure on the same split."""
    return [{"system": f.system, "value": f.value, "where": published.where(f)} for f in published.find(figure.data, figure.metric)]


def table(whole: Mapping) -> str:
    """The report as text."""
    lines = [f"{whole['config']} · weights {whole['weights'][:12]}"]
    width = max([16, *(len(label(f["metric"])) for f in whole["figures"])])
    for data, count in whole["data"].items():
        lines += ["", f"{data} · {_many(count['images'], 'image')}, {_many(count['requests'], 'request')}",
                  f"  {'':<{width}}{'ours':>9}{'n':>8}   published"]  # fmt: skip
        for f in whole["figures"]:
            if f["data"] == data:
                beside = ", ".join(f"{p['system']} {p['value']:g} ({p['where']})" for p in f["published"])
                lines.append(f"  {label(f['metric']):<{width}}{_shown(f['value']):>9}{f['n']:>8}   {beside or '-'}")
    for title, texts in (("Not computed", whole["not_computed"]), ("Protocol", whole["notes"])):
        if texts:
            lines += ["", f"{title}:", *(fill(text, WIDTH, initial_indent="  ", subsequent_indent="    ") for text in texts)]
    return "\n".join(lines)


def figures_csv(whole: Mapping) -> str:
    """A row for each figure, and one more for each published one beside it."""
    rows = []
    for f in whole["figures"]:
        rows.append((f["data"], f["kind"], f["metric"], whole["config"], f["value"], f["n"], f["missing"]))
        rows += [(f["data"], f["kind"], f["metric"], p["system"], p["value"], "", p["where"]) for p in f["published"]]
    return _csv(("data", "kind", "metric", "system", "value", "n", "remark"), rows)


def requests_csv(records: Sequence[Mapping]) -> str:
    """A row for each answer, with the numbers that it has."""
    numbers = ("found", "iou", "box_iou", "intersection", "union", "presence", "lbm", "lbm_k1", "first_mask_ms", "total_ms")
    rows = []
    for record in records:
        for number, request in enumerate(record["requests"]):
            rows += [(record["data"], record["index"], number, request["kind"], request["text"], mode, marks["text"],
                      *(marks.get(name) for name in numbers)) for mode, marks in request["answers"].items()]  # fmt: skip
    return _csv(("data", "index", "number", "kind", "asked", "mode", "answer", *numbers), rows)


def write(folder: Path, whole: Mapping, records: Sequence[Mapping]) -> None:
    """report.json, report.txt, figures.csv and requests.csv, each in one step."""
    texts = {"report.json": json.dumps(whole, indent=1, ensure_ascii=False), "report.txt": table(whole),
             "figures.csv": figures_csv(whole).rstrip("\n"), "requests.csv": requests_csv(records).rstrip("\n")}  # fmt: skip
    for name, text in texts.items():
        write_text(folder / name, text + "\n")


def _csv(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return out.getvalue()


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
