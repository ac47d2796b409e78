"""Graphs on ONNX Runtime's CUDA provider: vision in fp16, language with its keys and values on the device.

What the bundle's graphs are converted into (export/cuda_graph.py) is kept in the cache of engines, and built as those are.
Vision runs on a stream of high priority, language on one of low priority, as with TensorRT.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.cuda import Cuda, cuda
from pixel_perception.runtime.device_context import DeviceContext
from pixel_perception.runtime.device_decoder import DeviceDecoder
from pixel_perception.runtime.engine_key import EngineKey, Machine, key_of
from pixel_perception.runtime.engines import EngineCache, Progress
from pixel_perception.runtime.onnxruntime import KINDS, OnnxSession, Reported, default_threads, open_session

PROVIDER = "CUDAExecutionProvider"
FOLDER_OF_WEIGHTS = "session.model_external_initializers_file_folder_path"
SMALLEST = bytes.fromhex("08083a320a0b0a017812017922034e65671201675a0f0a0178120a0a0808"
                         "0112040a020801620f0a0179120a0a08080112040a02080142040a00100d")
"""An ONNX graph y = -x: the runtime goes without onnx."""


class OnnxRuntimeCuda:
    """Backend: ONNX Runtime on the first device."""

    name = "onnxruntime-cuda"
    memory = "cuda"
    """Where ONNX Runtime finds what is bound."""

    def __init__(self, threads: int | None = None, cache: EngineCache | None = None, device: Cuda | None = None,
                 progress: Progress | None = None) -> None:  # fmt: skip
        """`threads` of what runs on the CPU nevertheless. Raises PerceptionError INVALID_QUERY where there is no device, the
        installed ONNX Runtime lacks the provider, or it does not start."""
        self.threads, self._cache, self.progress = threads or default_threads(), cache or EngineCache(), progress
        self._cuda = device or cuda()
        self._pixels, self._words = self._cuda.stream(urgent=True), self._cuda.stream(urgent=False)
        self._check()
        self._machine = Machine(f"onnxruntime {ort.__version__}", self._cuda.version, self._cuda.driver, self._cuda.device,
                                self._cuda.compute_capability, "CUDA provider")  # fmt: skip

    def ready(self, path: Path) -> bool:
        """Whether the graph is in the cache and was found to agree with another backend."""
        key = self._key(path)
        return self._cache.has(key) and self._cache.has_agreed(key)

    def agreed(self, path: Path, figures: dict[str, Any]) -> None:
        """Remember how well it agrees."""
        self._cache.agree(self._key(path), figures)

    def session(self, path: Path) -> CudaSession:
        """See `Backend.session`."""
        return CudaSession(self._open(path, self._pixels))

    def decoder(self, path: Path) -> DeviceDecoder:
        """See `Backend.decoder`."""
        session = self._open(path, self._words)
        return DeviceDecoder(lambda _: OnnxContext(session, self._cuda, self._words, str(path), self.memory), self._cuda, self._words,
                             str(path))  # fmt: skip

    def _check(self) -> None:
        """Is the provider installed, and does it start?"""
        available = ort.get_available_providers()
        if PROVIDER not in available:
            raise PerceptionError("INVALID_QUERY", f"backend {self.name}: expected an ONNX Runtime with {PROVIDER}, found "
                                  f"{ort.__version__} with {', '.join(available)}; install onnxruntime-gpu in place of onnxruntime.")
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN may come from wheels, where the loader does not look
        session = open_session(SMALLEST, Path("a first graph"), self._providers(self._words), self.threads)
        if PROVIDER not in session.get_providers():  # it falls back in silence where a library or the device is missing
            raise PerceptionError("INVALID_QUERY", f"backend {self.name}: expected a CUDA device and the CUDA and cuDNN libraries that "
                                  f"ONNX Runtime {ort.__version__} was built for, found that {PROVIDER} does not start.")

    def _providers(self, stream: int) -> list:
        """Providers of a session that works on a stream."""
        # Numbers of targets and regions change from frame to frame: an exhaustive search for each would stop the robot.
        options = {"user_compute_stream": str(stream), "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
        return [(PROVIDER, options), "CPUExecutionProvider"]

    def _key(self, path: Path) -> EngineKey:
        return key_of(path, "fp16", self._machine)

    def _open(self, path: Path, stream: int) -> ort.InferenceSession:
        graph = self._cache.load(self._key(path), path, self.progress)
        # Weights of a language graph that lie beside it stay there.
        return open_session(graph, path, self._providers(stream), self.threads, {FOLDER_OF_WEIGHTS: str(path.parent)})


class CudaSession(OnnxSession):
    """One vision graph. Runs of several threads follow each other: they share a stream."""

    def __init__(self, session: ort.InferenceSession) -> None:
        super().__init__(session)
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Session.run`."""
        with self._lock:
            return super().run(feeds)


class OnnxContext(DeviceContext):
    """A session with inputs and outputs at addresses of our own."""

    def __init__(self, session: ort.InferenceSession, device: Cuda, stream: int, where: str, memory: str) -> None:
        inputs, outputs = ({v.name: np.dtype(KINDS[v.type]) for v in values} for values in (session.get_inputs(), session.get_outputs()))
        super().__init__(device, stream, where, inputs, outputs)
        self._session, self._binding, self._memory = session, session.io_binding(), memory
        self._declared = {v.name: tuple(v.shape) for v in (*session.get_inputs(), *session.get_outputs())}
        self._sizes: dict[str, int] = {}
        self._bound: dict[str, tuple] = {}

    def declared(self, name: str) -> tuple[int | str, ...]:
        """See `DeviceContext.declared`."""
        return self._declared[name]

    def output_shape(self, name: str) -> tuple[int, ...]:
        """See `DeviceContext.output_shape`."""
        return tuple(size if isinstance(size, int) else self._sizes[size] for size in self._declared[name])

    def say_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """See `DeviceContext.say_shape`: any shape that fits the graph."""
        self._sizes |= {axis: size for axis, size in zip(self._declared[name], shape, strict=True) if isinstance(axis, str)}

    def run(self) -> None:
        """See `DeviceContext.run`; returns when it is done."""
        places = [(self._binding.bind_input, name, self._shapes[name]) for name in self.inputs]
        places += [(self._binding.bind_output, name, self.output_shape(name)) for name in self.outputs]
        for bind, name, shape in places:
            if self._bound.get(name) != (shape, self._addresses[name]):
                bind(name, self._memory, 0, self.types[name].type, shape, self._addresses[name])
                self._bound[name] = shape, self._addresses[name]
        with Reported():
            self._session.run_with_iobinding(self._binding)
