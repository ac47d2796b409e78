"""The plots that people look at: how the IoU is spread, whether presence means what it says, classes, dense captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pixel_perception.evaluation.dense_captions import IOU_THRESHOLDS, METEOR_THRESHOLDS
from pixel_perception.evaluation.figures import CURVE, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, which most colour-blind people can tell apart."""
MOST_CLASSES = 40
"""Bars in a plot of classes; of more, the best and the worst halves."""


def write(folder: Path, summaries: Mapping[str, Summary]) -> list[Path]:
    """Write what each split has to show as `folder/{data}-{what}.png`; returns the files."""
    written = []
    for data, summary in summaries.items():
        for name, shown, draw in (("iou", summary.curves, _curves), ("calibration", summary.reliability, _calibration),
                                  ("classes", summary.categories, _classes), ("dense", summary.grid, _dense)):  # fmt: skip
            if shown:
                written.append(_save(folder / f"{data.replace('/', '-')}-{name}.png", data, shown, draw))
    return written


def _save(path: Path, title: str, shown, draw) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no window system, no global state
    from matplotlib.figure import Figure

    bars = min(len(shown), MOST_CLASSES) if draw is _classes else 0
    figure = Figure(figsize=(6.4, max(4.2, 1.2 + 0.24 * bars)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw(axes, shown)
    axes.set_title(f"{title}: {axes.get_title()}", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _curves(axes: Axes, curves: Mapping[str, list[float]]) -> None:
    for (name, values), color in zip(curves.items(), COLORS * len(curves), strict=False):
        axes.plot(CURVE, values, color=color, label=name, marker="o", markersize=3)
    axes.axvline(0.5, color="#999999", linewidth=0.8, linestyle=":")
    axes.set(xlabel="IoU threshold", ylabel="above it, %", xlim=(0, 1), ylim=(0, 100))
    axes.set_title("precision at every IoU")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _calibration(axes: Axes, bins: list[dict]) -> None:
    total = sum(row["n"] for row in bins)
    confidence, share = ([row[key] for row in bins] for key in ("confidence", "share"))
    axes.plot((0, 1), (0, 1), color="#999999", linewidth=0.8, linestyle=":", label="perfect")
    axes.bar(confidence, [row["n"] / total for row in bins], width=0.03, color="#bbbbbb", label="share of requests")
    axes.plot(confidence, share, color=COLORS[0], marker="o", label="is there")
    axes.set(xlabel="presence that the model gives", ylabel="share that is there", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"calibration of presence, {total} requests")
    axes.legend(frameon=False, loc="upper left")


def _classes(axes: Axes, categories: Mapping[str, dict]) -> None:
    ranked = sorted(categories.items(), key=lambda item: item[1]["giou"])
    half = MOST_CLASSES // 2
    shown = ranked if len(ranked) <= MOST_CLASSES else ranked[:half] + ranked[-half:]
    axes.barh([f"{name} ({row['n']})" for name, row in shown], [row["giou"] for _, row in shown], color=COLORS[0], height=0.7)
    axes.set(xlabel="gIoU, % (number of images)", xlim=(0, 100))
    axes.set_title(f"{len(ranked)} classes" if len(shown) == len(ranked) else f"best and worst {half} of {len(ranked)} classes")
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.01)


def _dense(axes: Axes, grid: list[list[float]]) -> None:
    axes.imshow(grid, cmap="Blues", vmin=0, aspect="auto")
    top = max(max(row) for row in grid)
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", color="white" if value > 0.6 * top > 0 else "black", fontsize=9)
    axes.set_xticks(range(len(METEOR_THRESHOLDS)), [f"> {s:g}" for s in METEOR_THRESHOLDS])
    axes.set_yticks(range(len(IOU_THRESHOLDS)), [f"{t:g}" for t in IOU_THRESHOLDS])
    axes.set(xlabel="METEOR of the caption", ylabel="IoU of the box, at least")
    axes.set_title("average precision, %")
