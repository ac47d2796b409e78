"""Rows for a decoder that knows one sequence: each is continued on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixel_perception.runtime.session import Step


@dataclass(frozen=True, eq=False)
class RowPasts:
    """One past of the inner decoder for each row."""

    rows: tuple[Any, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """See `Past.lengths`."""
        return tuple(row.length for row in self.rows)


class RowByRow:
    """Decoder over one with `hidden` and `read(embeddings (1, count, hidden), past or None)`, whose pasts have a `length`, any number
    of continuations each, and whose logits and states have a leading axis of one."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.hidden = decoder.hidden

    def read(self, parts: Sequence[np.ndarray], past: RowPasts | None) -> Step:
        """See `Decoder.read`."""
        rows = past.rows if past else (None,)
        if past and len(rows) == 1:
            rows *= len(parts)
        if len(rows) != len(parts) or not any(map(len, parts)):
            raise ValueError(f"parts: expected one for each of {len(rows)} rows, not all empty, found {[len(p) for p in parts]} positions")
        logits, states, after = [], [], []
        for part, row in zip(parts, rows, strict=True):
            if len(part):
                step = self._decoder.read(part[None], row)
                logits.append(step.logits[0])
                states.append(step.states[0])
                after.append(step.past)
            else:
                logits.append(np.zeros(0, np.float32))
                states.append(part)
                after.append(row)
        return Step(logits, states, RowPasts(tuple(after)))
