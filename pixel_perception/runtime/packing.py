"""Rows of different length as one sequence: where each new position belongs, what it may see and whose logits are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pixel_perception.runtime.session import Step


class Rows(Protocol):
    """A past, as far as packing looks into it."""

    seen: np.ndarray
    """(rows, positions) bool: the positions that belong to each row."""
    lengths: tuple[int, ...]
    """Where each row goes on."""


@dataclass(frozen=True, eq=False)
class Packing:
    """What `Decoder.read` was asked, for a graph that reads one sequence."""

    counts: tuple[int, ...]
    """New positions of each row."""
    owner: np.ndarray
    """(count,): the row of each new position."""
    before: int
    """Positions that were read before, of all rows together."""
    seen: np.ndarray
    """(rows, before + count) bool: the positions that belong to each row."""
    positions: np.ndarray
    """(count,): place of each new position in its own row."""
    asked: np.ndarray
    """Places among the new positions whose logits are wanted, rising."""
    chosen: bool
    """Whether they were named; else they are the last of each row."""
    lengths: tuple[int, ...]
    """Where each row goes on afterwards."""

    @staticmethod
    def of(parts: Sequence[np.ndarray], past: Rows | None, asked: Sequence[int] | None,
           positions: Sequence[int] | None = None) -> Packing:
        """Rows that read `parts` after a past (None: nothing yet, one row). Raises ValueError as `read`."""
        rows, counts = len(parts), tuple(len(part) for part in parts)
        seen, lengths = (np.zeros((1, 0), bool), (0,)) if past is None else (past.seen, past.lengths)
        if rows > 1 == len(lengths) and past is not None:
            seen, lengths = np.repeat(seen, rows, 0), lengths * rows
        if rows != len(lengths) or not any(counts):
            raise ValueError(f"parts: expected one for each of {len(lengths)} rows, not all empty, "
                             f"found {rows} of {list(counts)} positions")  # fmt: skip
        if positions is not None and (rows > 1 or past is None):  # ONNX Runtime counts the first positions by itself
            raise ValueError("positions: expected a single part behind a past")
        owner = np.repeat(np.arange(rows), counts)
        after = tuple(n + c for n, c in zip(lengths, counts, strict=True)) if positions is None else (int(positions[-1]) + 1,)
        if positions is None:
            positions = np.concatenate([np.arange(n, m) for n, m in zip(lengths, after, strict=True)])
        places = np.cumsum(counts)[np.flatnonzero(counts)] - 1 if asked is None else np.asarray(asked, np.int64)
        return Packing(counts, owner, seen.shape[1], np.concatenate((seen, owner == np.arange(rows)[:, None]), 1),
                       np.asarray(positions, np.int64), places, asked is not None, after)

    def step(self, logits: Sequence[np.ndarray], states: np.ndarray, past) -> Step:
        """The answer of `read`: logits of the places that were asked, states (count, hidden)."""
        following, nothing = iter(logits), np.zeros(0, np.float32)
        said = list(logits) if self.chosen else [next(following) if c else nothing for c in self.counts]
        return Step(said, np.split(states, np.cumsum(self.counts)[:-1]), past)
