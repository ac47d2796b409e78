"""Batches in an order that depends on the seed alone, prepared ahead, and resumable."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

from pixel_perception.training.tasks.mixture import Drawn, Mixture

B = TypeVar("B")


class Stream(Protocol):
    """What the loop takes its micro-batches from."""

    def next(self, done: float) -> Any:
        """The next one of this process; `done` is the share of the run's budget that is spent."""

    def state(self) -> dict[str, Any]:
        """What must be known to go on behind the last batch taken: JSON values, the same in every process."""

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises TaskError when it is that of another run."""


class MixtureStream(Generic[B]):
    """Batches of `micro` draws from a mixture, collated by `workers` threads ahead of time (0: when they are asked for)."""

    def __init__(self, mixture: Mixture, collate: Callable[[Sequence[Drawn]], B], micro: int, workers: int):
        self.mixture, self.collate, self.micro = mixture, collate, micro
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._ahead: deque[tuple[Future[B], dict[str, Any]]] = deque()
        self._depth, self._state = 2 * workers, mixture.state()

    def next(self, done: float) -> B:
        """Raises TaskError for a damaged record."""
        if self._pool is None:
            batch = self.collate(self._draw())
            self._state = self.mixture.state()
            return batch
        while len(self._ahead) < self._depth:
            drawn = self._draw()
            self._ahead.append((self._pool.submit(self.collate, drawn), self.mixture.state()))
        future, state = self._ahead.popleft()
        batch, self._state = future.result(), state
        return batch

    def state(self) -> dict[str, Any]:
        """That of the mixture behind the last batch taken, whatever was drawn ahead."""
        return self._state

    def resume(self, state: dict[str, Any]) -> None:
        """Raises TaskError when data sets, their sizes, weights or the seed are others."""
        self._ahead.clear()
        self.mixture.resume(state)
        self._state = self.mixture.state()

    def _draw(self) -> list[Drawn]:
        return [next(self.mixture) for _ in range(self.micro)]
