"""Backends by name."""

from __future__ import annotations

import logging

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime import BACKENDS
from pixel_perception.runtime.meanwhile import Meanwhile
from pixel_perception.runtime.session import Backend

LOG = logging.getLogger(__name__)


def open_backend(name: str = "auto", threads: int | None = None) -> Backend:
    """The backend of a name; "auto" is the best that is installed and has a device: tensorrt, onnxruntime-cuda, onnxruntime-cpu.

    `threads` (None: all cores) are those of ONNX Runtime. On a GPU a graph answers once it agrees with the CPU, which answers
    meanwhile. Raises PerceptionError INVALID_QUERY for a name that is none of `BACKENDS`, or a backend that is not installed or
    has no device: what was expected, what was found, and how to get it.
    """
    if name not in BACKENDS:
        raise PerceptionError("INVALID_QUERY", f"backend: expected one of {', '.join(BACKENDS)}, found {name!r}.")
    from pixel_perception.runtime.onnxruntime import OnnxRuntime  # `--help` and wrong arguments need not wait for it

    if name == "auto":
        return _best(threads)
    if name == "tensorrt":
        return _tensorrt(threads)
    return _cuda(threads) if name == "onnxruntime-cuda" else OnnxRuntime(threads)


def _best(threads: int | None) -> Backend:
    from pixel_perception.runtime.cuda import cuda
    from pixel_perception.runtime.onnxruntime import OnnxRuntime

    try:
        cuda()  # first, because importing TensorRT takes time and memory that a robot without a GPU should not spend
    except PerceptionError as error:
        LOG.info("%s", error.message)
        return OnnxRuntime(threads)
    reasons = []
    for backend in (_tensorrt, _cuda):
        try:
            return backend(threads)
        except PerceptionError as error:
            reasons.append(error.message)
    LOG.warning("the GPU is not used: %s", " ".join(reasons))
    return OnnxRuntime(threads)


def _tensorrt(threads: int | None) -> Backend:
    from pixel_perception.runtime.onnxruntime import OnnxRuntime
    from pixel_perception.runtime.tensorrt import TensorRt

    engines = TensorRt()
    backend = Meanwhile(OnnxRuntime(threads), engines)
    engines.progress = backend.report
    return backend


def _cuda(threads: int | None) -> Backend:
    from pixel_perception.runtime.onnxruntime import OnnxRuntime
    from pixel_perception.runtime.onnxruntime_cuda import OnnxRuntimeCuda

    graphs = OnnxRuntimeCuda(threads)
    backend = Meanwhile(OnnxRuntime(threads), graphs)
    graphs.progress = backend.report
    return backend
