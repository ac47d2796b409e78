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
    """Keys and values of what a decoder has read, held by its backend. Never changed: any number of continuations may start
    from the same one."""

    rows: int
    length: int


@dataclass(frozen=True, eq=False)
class Step:
    """What a decoder says after reading some more."""

    logits: np.ndarray
    """(rows, vocabulary) float32, for what follows the last position."""
    states: np.ndarray
    """(rows, read, hidden) float32, after the final norm."""
    past: Past


class Decoder(Protocol):
    """The language model. `read` may be called from several threads at once."""

    hidden: int

    def read(self, embeddings: np.ndarray, past: Past | None) -> Step:
        """Read embeddings (rows, count, hidden) float32 after `past` (None: nothing yet). With more than one row and a past,
        `count` must be 1. Raises PerceptionError OUT_OF_MEMORY or INTERNAL."""

    def stack(self, pasts: Sequence[Past]) -> Past:
        """One past whose rows are those of several of equal length."""


class Backend(Protocol):
    """Loads graphs."""

    name: str
    threads: int

    def session(self, path: Path) -> Session:
        """Load a graph. Raises PerceptionError INVALID_BUNDLE naming the file."""

    def decoder(self, path: Path) -> Decoder:
        """Load a language model. Raises PerceptionError INVALID_BUNDLE naming the file."""
