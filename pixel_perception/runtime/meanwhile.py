"""One backend answers until a better one has loaded its graphs, and has shown that it computes the same.

The first runs of every graph are done by both; the better one takes over only if they agree. So an engine that was built
wrong, on whatever device, costs speed and not answers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.agreement import cosine
from pixel_perception.runtime.session import Backend, Decoder, Past, Session, Step

LOG = logging.getLogger(__name__)
AGREEMENT = 0.99
"""Least cosine of every output, and of every hidden state, for which two backends agree."""
RUNS = 100
"""Runs of a vision graph that are compared at most. One that agrees is enough: proposals of nearly equal score may come in another
order for as long as the scene stays the same."""
STEPS = 16
"""Steps of the language model that are compared: prompts, single tokens, and whatever a backend does only when it repeats them."""


class Builder(Backend, Protocol):
    """A backend that may have to build what it loads."""

    def ready(self, path: Path) -> bool:
        """Whether a graph can be loaded without building, and has been found to agree before."""

    def agreed(self, path: Path, figures: dict[str, Any]) -> None:
        """Remember that a graph agrees, and how well."""


class Meanwhile:
    """Backend: every graph runs on `first` until `better` has loaded it in a thread of its own and agrees. What is ready is loaded at
    once. A graph that `better` cannot run stays where it is, and the log says why."""

    def __init__(self, first: Backend, better: Builder) -> None:
        self._first, self._better = first, better
        self.threads = first.threads
        self._waiting: list[Callable[[], None]] = []
        self._lock, self._thread = threading.Lock(), None
        self._left = 0
        self.progress = ""
        """What is being built, in words; empty when nothing is."""

    @property
    def name(self) -> str:
        """`better`'s, and `first`'s as long as that answers for some graph."""
        return self._better.name if not self._left else f"{self._better.name} ({self._first.name} for {self._left} graphs)"

    def report(self, graph: str, done: float) -> None:
        """Progress of a build."""
        self.progress = f"building the engine of {graph}: {100 * done:.0f} %" if done < 1 else ""

    def session(self, path: Path) -> Session:
        """See `Backend.session`."""
        if self._better.ready(path):
            return self._better.session(path)
        session = _Session(self._first.session(path), lambda least, why: self._judge(path, least, why))
        self._later(path, lambda: session.try_out(self._better.session(path)))
        return session

    def decoder(self, path: Path) -> Decoder:
        """See `Backend.decoder`."""
        if self._better.ready(path):
            return self._better.decoder(path)
        decoder = _Decoder(self._first.decoder(path), lambda least, why: self._judge(path, least, why))
        self._later(path, lambda: decoder.try_out(self._better.decoder(path)))
        return decoder

    def wait(self, timeout: float | None = None) -> bool:
        """Until every graph is loaded or given up; whether that was reached within `timeout` seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def _judge(self, path: Path, least: float, why: str) -> bool:
        """Whether `better` may take a graph over, whose least cosine is known, or that failed (`why`)."""
        if why or not least >= AGREEMENT:
            reason = why or f"expected what {self._better.name} computes to have a cosine of at least {AGREEMENT}, found {least:.4f}."
            LOG.error("%s stays on %s: %s", path.name, self._first.name, reason)
            return False
        self._better.agreed(path, {"against": self._first.name, "least_cosine": round(least, 6)})
        LOG.info("%s runs on %s from now on (cosine %.5f)", path.name, self._better.name, least)
        with self._lock:
            self._left -= 1
        return True

    def _later(self, path: Path, load: Callable[[], None]) -> None:
        def change() -> None:
            try:
                load()
            except PerceptionError as error:
                self._judge(path, 0.0, error.message)
            except Exception as error:  # whatever a foreign library throws, the robot goes on
                LOG.exception("%s", path.name)
                self._judge(path, 0.0, f"{type(error).__name__}: {error}")
            finally:
                self.progress = ""

        with self._lock:
            self._left += 1
            self._waiting.append(change)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="engines", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                change = self._waiting.pop(0)
            change()


Verdict = Callable[[float, str], bool]
"""Given the least cosine and what failed, whether the candidate takes over."""


class _Session:
    """A session that is exchanged after a run that both did."""

    def __init__(self, session: Session, verdict: Verdict) -> None:
        self._current, self._verdict = session, verdict
        self._candidate: Session | None = None
        self._runs, self._lock = 0, threading.Lock()
        self.inputs, self.outputs = session.inputs, session.outputs

    def try_out(self, candidate: Session) -> None:
        """Compare with another session at the next runs."""
        self._candidate = candidate

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Session.run`."""
        found = self._current.run(feeds)
        with self._lock:
            candidate, self._candidate = self._candidate, None
        if candidate is not None:
            least, why = 0.0, ""
            try:
                other = candidate.run(feeds)
                least = min(float(cosine(found[name].ravel(), other[name].ravel())) for name in self.outputs)
            except PerceptionError as error:
                why = error.message
            self._runs += 1
            if not why and least < AGREEMENT and self._runs < RUNS:
                self._candidate = candidate
            elif self._verdict(least, why):
                self._current = candidate
        return found


@dataclass(frozen=True, eq=False)
class _Past:
    """A past, the decoder whose it is, and the same past of a decoder that is being tried out."""

    decoder: Decoder
    past: Past
    lengths: tuple[int, ...]
    shadow: Past | None = None

    def first(self, length: int) -> _Past:
        """See `Past.first`."""
        return _Past(self.decoder, self.past.first(length), (length,), self.shadow and self.shadow.first(length))


class _Decoder:
    """A decoder that is exchanged between two sequences, after some steps that both did. What one has read, it goes on with to
    the end."""

    def __init__(self, decoder: Decoder, verdict: Verdict) -> None:
        self._current, self._verdict = decoder, verdict
        self._candidate: Decoder | None = None
        self._least, self._steps = 1.0, 0
        self._lock = threading.Lock()
        self.hidden = decoder.hidden

    def try_out(self, candidate: Decoder) -> None:
        """Compare with another decoder in the sequences that begin from now on."""
        self._candidate = candidate

    def read(self, parts: Sequence[np.ndarray], past: _Past | None, asked: Sequence[int] | None = None,
             positions: Sequence[int] | None = None) -> Step:
        """See `Decoder.read`."""
        decoder = past.decoder if past else self._current
        step = decoder.read(parts, past.past if past else None, asked, positions)
        shadow = self._compare(past, step, lambda other, its: other.read(parts, its, asked, positions))
        return Step(step.logits, step.states, _Past(decoder, step.past, step.past.lengths, shadow))

    def _compare(self, past: _Past | None, step: Step, read: Callable[[Decoder, Past | None], Step]) -> Past | None:
        """Let the candidate do the same step, where there is one that has read everything before it."""
        with self._lock:
            candidate = self._candidate
            if candidate is None or (past is not None and past.shadow is None):
                return None
            least, why = 0.0, ""
            try:
                other = read(candidate, past.shadow if past else None)
                pairs = [*zip(step.logits, other.logits, strict=True),
                         *zip(np.concatenate(list(step.states)), np.concatenate(list(other.states)), strict=True)]  # fmt: skip
                least = min(float(cosine(a, b)) for a, b in pairs)
            except PerceptionError as error:
                why = error.message
            self._least, self._steps = min(self._least, least), self._steps + 1
            if not why and self._least >= AGREEMENT and self._steps < STEPS:
                return other.past
            self._candidate = None
            if self._verdict(self._least, why):
                self._current = candidate
            return None
