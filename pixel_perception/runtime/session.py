"""What the runtime asks of a backend: graphs that map arrays to arrays, and a decoder that remembers what it has read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


class Session(Protocol):
    """One loaded graph. `run` may be called from several threads at once."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name. Raises PerceptionError OUT_OF_MEMORY or INTERNAL."""


class Past(Protocol):
    """Keys and values of what a decoder has read, in one row or several, held by its backend. Never changed: any number of
    continuations may start from the same one."""

    lengths: tuple[int, ...]
    """The position at which each row goes on: as many as it has read and left out."""

    def first(self, length: int) -> Past:
        """The first positions of a past of one row, as if nothing had been read after them."""


@dataclass(frozen=True, eq=False)
class Step:
    """What a decoder says after its rows have read some more."""

    logits: Sequence[np.ndarray]
    """Row: (vocabulary,) float32 for what follows its last position; (0,) where it read nothing. Where positions were asked for,
    one for each of them. Valid until something reads on from `past`."""
    states: Sequence[np.ndarray]
    """Row: (count, hidden) float32, after the final norm."""
    past: Past


class Decoder(Protocol):
    """The language model. `read` may be called from several threads at once."""

    hidden: int

    def read(self, parts: Sequence[np.ndarray], past: Past | None, asked: Sequence[int] | None = None,
             positions: Sequence[int] | None = None) -> Step:
        """Row i reads parts[i] (count, hidden) float32 after what it has read before (`past` None: nothing yet, one row).

        Counts may differ; a row that has ended reads nothing. Several parts after a past of one row become rows that share it.
        `asked`: places in a single part, rising, whose logits are wanted instead of the last one's. `positions`: where the rows of
        a single part behind a past stand, rising, when some are left out; else each follows the one before.
        Raises PerceptionError OUT_OF_MEMORY or INTERNAL, and ValueError for another number of parts.
        """


class Backend(Protocol):
    """Loads graphs."""

    name: str
    threads: int

    def session(self, path: Path) -> Session:
        """Load a graph. Raises PerceptionError INVALID_BUNDLE naming the file."""

    def decoder(self, path: Path) -> Decoder:
        """Load a language model. Raises PerceptionError INVALID_BUNDLE naming the file."""
