"""Graphs as TensorRT engines. It works with `tensorrt` 10.x (JetPack) and 11.x and with `tensorrt_rtx`, whichever is installed.

Vision runs on a stream of high priority, language on one of low priority, so that pixels of a new frame overtake a sentence.
Keys and values stay on the device; single tokens are replayed as CUDA graphs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.cuda import Cuda, cuda
from pixel_perception.runtime.device_decoder import DeviceDecoder
from pixel_perception.runtime.engine_key import LANGUAGE, PRECISIONS, EngineKey, Machine, key_of
from pixel_perception.runtime.engines import EngineCache, Progress
from pixel_perception.runtime.tensorrt_context import Context
from pixel_perception.runtime.tensorrt_library import find_tensorrt

LOG = logging.getLogger(__name__)


class TensorRt:
    """Backend: engines of this machine, built into the cache where they are missing."""

    name = "tensorrt"
    threads = 1

    def __init__(self, cache: EngineCache | None = None, progress: Progress | None = None) -> None:
        """Raises PerceptionError INVALID_QUERY where no TensorRT is installed or there is no device."""
        self._trt, version = find_tensorrt()
        self._cuda = cuda()
        self._machine = Machine(version, self._cuda.version, self._cuda.driver, self._cuda.device, self._cuda.compute_capability)
        self._cache, self.progress = cache or EngineCache(), progress
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        try:
            self._runtime = self._trt.Runtime(self._logger)
        except Exception as error:  # the bindings raise what they like, where a driver is too old for the library
            raise PerceptionError("INVALID_QUERY", f"backend: expected a driver that {version} works with, found {self._cuda.driver} "
                                                   f"on {self._cuda.device} ({error}).") from error
        self._pixels, self._words = self._cuda.stream(urgent=True), self._cuda.stream(urgent=False)

    def ready(self, path: Path) -> bool:
        """Whether the graph's engine is in the cache and was found to agree with another backend, or need not."""
        key = self._key(path)
        drift = self._cache.accepted_drift(key)
        if drift:
            LOG.warning("%s: its engine may answer otherwise than the bundle, which was accepted: %s", path.name, drift)
        return bool(drift) or self._cache.has(key) and self._cache.has_agreed(key)

    def agreed(self, path: Path, figures: dict[str, Any]) -> None:
        """Remember with the engine how well it agrees."""
        self._cache.agree(self._key(path), figures)

    def session(self, path: Path) -> TensorRtSession:
        """See `Backend.session`; builds the engine where there is none."""
        return TensorRtSession(self._trt, self._engine(path), self._cuda, self._pixels, str(path))

    def decoder(self, path: Path) -> DeviceDecoder:
        """See `Backend.decoder`; builds the engine where there is none."""
        engine = self._engine(path)
        return DeviceDecoder(lambda profile: Context(self._trt, engine, profile, self._cuda, self._words, str(path)), self._cuda,
                             self._words, str(path))  # fmt: skip

    def _key(self, path: Path) -> EngineKey:
        """Of the engine that was built here last, in whatever precision, or else ahead of time for devices like this one; of one to be
        built where there is neither."""
        ahead = Machine.ahead_of_time(self._machine.runtime, self._machine.compute_capability)
        precisions = PRECISIONS if path.stem == LANGUAGE else PRECISIONS[:1]
        keys = [[key_of(path, precision, machine) for precision in precisions] for machine in (self._machine, ahead)]
        return self._cache.last(keys[0]) or self._cache.last(keys[1]) or keys[0][0]

    def _engine(self, path: Path) -> Any:
        for _ in range(2):
            key = self._key(path)
            stored = self._cache.load(key, path, self.progress)
            self._cuda.use()
            engine = self._runtime.deserialize_cuda_engine(stored)
            if engine is not None:
                return engine
            # The key was right and yet the library refuses it: whatever it is, it is no engine for this machine.
            self._cache.path(key).unlink(missing_ok=True)
        raise PerceptionError("INVALID_BUNDLE", f"{self._cache.path(key)}: expected an engine that {self._machine.runtime} can load on "
                                                f"{self._machine.device}, found one that it refuses.")


class TensorRtSession:
    """One vision graph."""

    def __init__(self, trt: Any, engine: Any, device: Cuda, stream: int, where: str) -> None:
        self._device, self._stream, self._lock = device, stream, threading.Lock()
        self._context = Context(trt, engine, 0, device, stream, where)
        self.inputs, self.outputs = self._context.inputs, self._context.outputs

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Session.run`."""
        context = self._context
        with self._lock:
            self._device.use()
            fed = [context.feed(name, feeds[name]) for name in self.inputs]
            for name in self.outputs:
                context.prepare(name)
            context.run()
            found = {name: context.fetch(name) for name in self.outputs}
            self._device.wait(self._stream)
            del fed
        return found
