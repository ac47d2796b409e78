"""Backends by name, and one that answers with a slower backend until the engines of a faster one are built."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime import BACKENDS
from pixel_perception.runtime.session import Backend, Decoder, Past, Session, Step

LOG = logging.getLogger(__name__)


def open_backend(name: str = "auto", threads: int | None = None) -> Backend:
    """The backend of a name; "auto" is the best that is installed and has a device: tensorrt, onnxruntime-cuda, onnxruntime-cpu.

    `threads` (None: all cores) are those of ONNX Runtime. "tensorrt" answers with ONNX Runtime while engines are built.
    Raises PerceptionError INVALID_QUERY for a name that is none of `BACKENDS`, or a backend that is not installed or has no
    device: what was expected, what was found, and how to get it.
    """
    if name not in BACKENDS:
        raise PerceptionError("INVALID_QUERY", f"backend: expected one of {', '.join(BACKENDS)}, found {name!r}.")
    from pixel_perception.runtime.onnxruntime import OnnxRuntime  # `--help` and wrong arguments need not wait for it

    if name == "auto":
        return _best(threads)
    if name == "tensorrt":
        return _tensorrt(threads)
    return OnnxRuntime(threads, "cuda" if name.endswith("-cuda") else "cpu")


def _best(threads: int | None) -> Backend:
    from pixel_perception.runtime.cuda import cuda
    from pixel_perception.runtime.onnxruntime import OnnxRuntime

    try:
        cuda()  # first, because importing TensorRT takes time and memory that a robot without a GPU should not spend
        return _tensorrt(threads)
    except PerceptionError as error:
        LOG.info("%s", error.message)
    return _onnxruntime_cuda(threads) or OnnxRuntime(threads)


def _tensorrt(threads: int | None) -> Backend:
    from pixel_perception.runtime.onnxruntime import OnnxRuntime
    from pixel_perception.runtime.tensorrt import TensorRt

    engines = TensorRt()
    backend = Meanwhile(_onnxruntime_cuda(threads) or OnnxRuntime(threads), engines)
    engines.progress = backend.report
    return backend


def _onnxruntime_cuda(threads: int | None) -> Backend | None:
    """ONNX Runtime on a GPU, where it was built for one and there is one."""
    from pixel_perception.runtime.cuda import cuda
    from pixel_perception.runtime.onnxruntime import OnnxRuntime

    try:
        backend = OnnxRuntime(threads, "cuda")
        cuda()
    except PerceptionError as error:
        LOG.info("%s", error.message)
        return None
    return backend


class Meanwhile:
    """Backend: every graph runs on `first` until `better` has loaded it, which happens in a thread of its own unless `better` is
    ready. A graph that `better` cannot run stays where it is, and the log says why."""

    def __init__(self, first: Backend, better: Any) -> None:
        """`better` is a Backend with `ready(path)`: whether it can load a graph without building."""
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
        session = _Session(self._first.session(path))
        self._later(path, lambda: setattr(session, "current", self._better.session(path)))
        return session

    def decoder(self, path: Path) -> Decoder:
        """See `Backend.decoder`."""
        if self._better.ready(path):
            return self._better.decoder(path)
        decoder = _Decoder(self._first.decoder(path))
        self._later(path, lambda: setattr(decoder, "current", self._better.decoder(path)))
        return decoder

    def wait(self, timeout: float | None = None) -> bool:
        """Until every graph is where it will stay; whether that was reached within `timeout` seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def _later(self, path: Path, load: Callable[[], None]) -> None:
        def change() -> None:
            try:
                load()
                with self._lock:
                    self._left -= 1
            except PerceptionError as error:
                LOG.error("%s stays on %s: %s", path.name, self._first.name, error.message)
            except Exception:
                LOG.exception("%s stays on %s", path.name, self._first.name)
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


class _Session:
    """A session that may be exchanged between two runs."""

    def __init__(self, session: Session) -> None:
        self.current = session
        self.inputs, self.outputs = session.inputs, session.outputs

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Session.run`."""
        return self.current.run(feeds)


@dataclass(frozen=True, eq=False)
class _Past:
    """A past and the decoder whose it is."""

    decoder: Decoder
    past: Past
    lengths: tuple[int, ...]


class _Decoder:
    """A decoder that may be exchanged between two sequences: what one has read, it goes on with to the end."""

    def __init__(self, decoder: Decoder) -> None:
        self.current = decoder
        self.hidden = decoder.hidden

    def read(self, parts: Sequence[np.ndarray], past: _Past | None) -> Step:
        """See `Decoder.read`."""
        decoder = past.decoder if past else self.current
        step = decoder.read(parts, past.past if past else None)
        return Step(step.logits, step.states, _Past(decoder, step.past, step.past.lengths))
