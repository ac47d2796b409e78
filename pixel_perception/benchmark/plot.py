"""The rows as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pixel_perception.benchmark.rows import BARS, COMPARED, Row, number


def plot(rows: Mapping[str, Row], title: str, path: Path) -> None:
    """Write bars of ours against the reference, each row scaled to the larger. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows.values() if row.ours is not None]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.62 * len(shown)), layout="constrained")
    for place, row in enumerate(reversed(shown)):
        largest = max(row.ours, row.reference or 0)
        axes.barh(place + 0.18, row.ours / largest, 0.34, color="#1f6f8b")
        axes.text(row.ours / largest + 0.01, place + 0.18, f"{number(row.ours)} {row.unit}", va="center", fontsize=8)
        if row.reference is not None:
            axes.barh(place - 0.18, row.reference / largest, 0.34, color="#c9ced6")
            bar = BARS[row.name]
            ratio = f"   ({row.ratio:.2f}x" + (")" if bar is COMPARED else f", bar {bar.text})")
            axes.text(row.reference / largest + 0.01, place - 0.18, f"{number(row.reference)} {row.unit}{ratio}", va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [row.name for row in reversed(shown)], fontsize=9)
    axes.set_xlim(0, 1.5)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title(f"pixel_perception (blue) and reference (grey)\n{title}", fontsize=9, loc="left")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
