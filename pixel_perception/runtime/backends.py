"""Backends by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime import BACKENDS
from pixel_perception.runtime.meanwhile import Meanwhile
from pixel_perception.runtime.session import Backend, Decoder, Session

LOG = logging.getLogger(__name__)
Loaded = TypeVar("Loaded")


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

    try:
        cuda()  # first, because importing TensorRT takes time and memory that a robot without a GPU should not spend
        return _tensorrt(threads)
    except PerceptionError as error:
        LOG.info("%s", error.message)
    return _onnxruntime(threads)


def _tensorrt(threads: int | None) -> Backend:
    from pixel_perception.runtime.tensorrt import TensorRt

    engines = TensorRt()
    backend = Meanwhile(_onnxruntime(threads), engines)
    engines.progress = backend.report
    return backend


def _onnxruntime(threads: int | None) -> Backend:
    """ONNX Runtime on the GPU where it was built for one and there is one, else on the CPU."""
    from pixel_perception.runtime.cuda import cuda
    from pixel_perception.runtime.onnxruntime import OnnxRuntime

    try:
        cuda()
        return Either(OnnxRuntime(threads, "cuda"), OnnxRuntime(threads))
    except PerceptionError as error:
        LOG.info("%s", error.message)
    return OnnxRuntime(threads)


class Either:
    """Backend: the first, or the second from the moment on at which the first refuses to start. That a library is missing shows
    only when ONNX Runtime loads a graph."""

    def __init__(self, first: Backend, second: Backend) -> None:
        self._now, self._second = first, second
        self.threads = first.threads

    @property
    def name(self) -> str:
        """Of the one that loads."""
        return self._now.name

    def session(self, path: Path) -> Session:
        """See `Backend.session`."""
        return self._load(lambda backend: backend.session(path))

    def decoder(self, path: Path) -> Decoder:
        """See `Backend.decoder`."""
        return self._load(lambda backend: backend.decoder(path))

    def _load(self, load: Callable[[Backend], Loaded]) -> Loaded:
        try:
            return load(self._now)
        except PerceptionError as error:
            if error.code != "INVALID_QUERY" or self._now is self._second:
                raise
            LOG.warning("%s %s is used instead.", error.message, self._second.name)
            self._now = self._second
            return load(self._now)
