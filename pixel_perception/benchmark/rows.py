"""Rows of the benchmark, and fair timing: what is compared takes turns, and medians are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Bar:
    """What a row must reach on two processor cores."""

    text: str
    met: Callable[[Row], bool | None]
    """None where that was not measured."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    ours: float | None
    reference: float | None
    unit: str
    ratio: float | None
    """How many times better than the reference."""
    roofline: float | None
    """Fraction of what memory or arithmetic would allow; None where that has no meaning."""
    note: str = ""
    """What was compared, in a sentence."""
    details: dict = field(default_factory=dict)


def at_least(ratio: float) -> Bar:
    return Bar(f">= {ratio:g}x", lambda row: None if row.ratio is None else row.ratio >= ratio)


def _ours(text: str, met: Callable[[float], bool]) -> Bar:
    return Bar(text, lambda row: None if row.ours is None else met(row.ours))


COMPARED = Bar("reported", lambda row: None if row.ratio is None else True)
"""The ratio to a reference is told, whatever it is."""
TORCH = ("decode_vs_torch", "decode_vs_torch_compile", "follow_vs_torch", "follow_vs_torch_compile")
"""Rows that compare a network with itself in torch."""


BARS = {
    "decode_vs_llamacpp": at_least(1.2),
    "prefill_vs_llamacpp": at_least(2),
    "ask_vs_reference": at_least(10),
    "codebook_run_vs_token": at_least(2),
    "follow_fps": _ours(">= 15 frames/s", lambda rate: rate >= 15),
    "regions_batched": at_least(3),
    "memory_mb": _ours("<= 600 MB", lambda size: size <= 600),
    "cold_start_ms": _ours("reported", lambda spent: True),
    **dict.fromkeys(TORCH, COMPARED),
}  # fmt: skip
"""Row names in the order of the table, and their bars."""


def take_turns(rounds: int, **work: Callable[[], float | None]) -> dict[str, float]:
    """Median seconds of each piece of work, which run one after the other in every round, once more before to warm up.

    Work that returns a number has timed itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, function in work.items():
            time.sleep(0.02)  # threads of the one before may still spin
            begun = time.perf_counter()
            own = function()
            spent = time.perf_counter() - begun
            if turn:
                seconds[name].append(spent if own is None else own)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def table(rows: Mapping[str, Row]) -> str:
    """The rows as aligned text, with their bars."""
    lines = [("row", "ours", "reference", "unit", "ratio", "bar", "", "roofline")]
    for name, row in rows.items():
        bar = BARS[name]
        lines.append((name, number(row.ours), number(row.reference), row.unit, "-" if row.ratio is None else f"{row.ratio:.2f}x", bar.text,
                      {True: "reached", False: "MISSED", None: "not measured"}[bar.met(row)],
                      "-" if row.roofline is None else f"{100 * row.roofline:.0f} %"))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = [f"{row.name}: {row.note}" for row in rows.values() if row.note]
    return "\n".join([*text, "", *notes])


def number(value: float | None) -> str:
    """Three figures."""
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
