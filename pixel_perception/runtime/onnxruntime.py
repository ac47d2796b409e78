"""Graphs on ONNX Runtime, on the CPU or with its CUDA provider."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime import huge_pages
from pixel_perception.runtime.packing import Packing
from pixel_perception.runtime.session import Step

MOST_THREADS = 8
"""More do not make graphs of this size faster."""
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
GROWTH = 256
"""Positions by which a conversation's memory grows; there is always room for so many more when it is made."""
_NEWER = re.compile(r"Opset (\d+) is under development.* till opset (\d+)")
_CACHE = ("past_key_values.", "present.")


class OnnxRuntime:
    """Backend: one thread pool per graph, which spins only while its graph runs."""

    def __init__(self, threads: int | None = None, provider: str = "cpu") -> None:
        """`threads` per graph; None takes every core that this process may use, at most `MOST_THREADS`. `provider` is "cpu" or
        "cuda". Raises PerceptionError INVALID_QUERY where the installed ONNX Runtime lacks it."""
        if provider not in _PROVIDERS:
            raise PerceptionError("INVALID_QUERY", f"provider: expected {' or '.join(_PROVIDERS)}, found {provider!r}.")
        self.name = f"onnxruntime-{provider}"
        self.threads = threads or min(MOST_THREADS, len(os.sched_getaffinity(0)))
        self._provider = _PROVIDERS[provider]
        available = ort.get_available_providers()
        if self._provider not in available:
            raise PerceptionError("INVALID_QUERY", f"backend {self.name}: expected an ONNX Runtime with {self._provider}, found "
                                  f"{ort.__version__} with {', '.join(available)}; install onnxruntime-gpu in place of onnxruntime.")
        if provider == "cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN may come from wheels, where the loader does not look

    def session(self, path: Path) -> OnnxSession:
        """See `Backend.session`."""
        return OnnxSession(self._open(path))

    def decoder(self, path: Path) -> OnnxDecoder:
        """See `Backend.decoder`."""
        cpu = self._provider == _PROVIDERS["cpu"]
        decoder = OnnxDecoder(self._open(path), path, "cpu" if cpu else "cuda")
        if cpu and path.stat().st_size >= huge_pages.LEAST:
            huge_pages.advise()
        return decoder

    def _open(self, path: Path) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Hundreds of short operators make one token: threads that spin from one to the next save a third of the time. They must
        # not spin on when the graph is done: language, pixels and the rest of the robot share the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 4  # errors come as exceptions
        try:
            session = ort.InferenceSession(str(path), options, providers=list(dict.fromkeys((self._provider, _PROVIDERS["cpu"]))))
        except Exception as error:
            raise PerceptionError("INVALID_BUNDLE", f"{path}: expected a graph that ONNX Runtime {ort.__version__} can run, "
                                                    f"found: {_first_line(error)}") from error
        if self._provider not in session.get_providers():  # it falls back in silence where a library or the device is missing
            raise PerceptionError("INVALID_QUERY", f"backend {self.name}: expected a CUDA device and the CUDA and cuDNN libraries that "
                                  f"ONNX Runtime {ort.__version__} was built for, found that {self._provider} does not start.")
        return session


class OnnxSession:
    """One graph with arrays in and out; inputs are read in place when contiguous."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.inputs = tuple(i.name for i in session.get_inputs())
        self.outputs = tuple(o.name for o in session.get_outputs())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Session.run`."""
        with _Reported():
            return dict(zip(self.outputs, self._session.run(self.outputs, dict(feeds)), strict=True))


class _Memory:
    """Keys and values of one conversation, allocated once and written front to back; ONNX Runtime reads and appends in place."""

    def __init__(self, session: ort.InferenceSession, layers: Sequence[str], shape: tuple[int, ...], kind: type, device: str) -> None:
        """`layers`: names of the past's inputs; `shape` (1, key/value heads, capacity, head size)."""
        self.session, self.capacity, self.filled = session, shape[2], 0
        if device == "cpu":
            # One block, whose pages the system provides when they are first written.
            self.block = np.empty((len(layers), *shape), kind)
            self.values = [ort.OrtValue.ortvalue_from_numpy(layer) for layer in self.block]
        else:
            self.values = [ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, device, 0) for _ in layers]
        self.binding = session.io_binding()
        self._layers, self._source, self._room = layers, None, {}
        for name, value in zip(layers, self.values, strict=True):
            self.binding.bind_ortvalue_output(name.replace(*_CACHE), value)

    def bind(self, source: _Memory) -> None:
        """Let the next step read what came before from `source`."""
        if self._source is not source.values:
            self._source = source.values
            for name, value in zip(self._layers, source.values, strict=True):
                self.binding.bind_ortvalue_input(name, value)

    def output(self, name: str, shape: tuple[int, int], kind: type) -> np.ndarray:
        """Where the next step leaves an output (1, *shape): memory that is used again by the steps after it."""
        size = shape[0] * shape[1]
        if self._room.get(name, np.empty(0)).size < size:
            self._room[name] = np.empty(size, kind)
        array = self._room[name][:size].reshape(shape)
        self.binding.bind_output(name, "cpu", 0, kind, (1, *shape), array.ctypes.data)
        return array


@dataclass(frozen=True, eq=False)
class OnnxPast:
    """What was read, by one row or several: the first positions of a memory, and which of them each row has read."""

    memory: _Memory
    seen: np.ndarray
    """(rows, positions) bool."""
    lengths: tuple[int, ...]

    def first(self, length: int) -> OnnxPast:
        """See `Past.first`."""
        return OnnxPast(self.memory, self.seen[:, : self.seen.shape[1] - self.lengths[0] + length], (length,))


class OnnxDecoder:
    """The language model, whose graph reads one sequence: rows are packed into it and told apart by the attention bias.

    A past is never changed and can be shared: the first continuation writes behind it in the same memory, every other one
    starts with a copy.
    """

    def __init__(self, session: ort.InferenceSession, path: Path, device: str = "cpu") -> None:
        inputs = {i.name: i for i in session.get_inputs()}
        outputs = {o.name: o for o in session.get_outputs()}
        self._session, self._device, self._lock = session, device, threading.Lock()
        self._layers = tuple(name for name in inputs if name.startswith(_CACHE[0]))
        present = {name.replace(*_CACHE) for name in self._layers}
        expected = {"inputs_embeds", "position_ids", "attention_bias", "asked", "logits", "hidden_states", *present}
        missing = expected - {*inputs, *outputs}
        if missing or not self._layers:
            raise PerceptionError("INVALID_BUNDLE", f"{path}: expected a language model with inputs inputs_embeds, position_ids, "
                                  f"attention_bias, asked, past_key_values.* and outputs logits, hidden_states, present.*; found no "
                                  f"{', '.join(sorted(missing)) or 'past_key_values.*'}.")
        _, self._heads, _, self._size = inputs[self._layers[0]].shape
        self._kind = _KINDS[inputs[self._layers[0]].type]
        self._kinds = {name: _KINDS[value.type] for name, value in (inputs | outputs).items() if value.type in _KINDS}
        self.hidden, self._vocabulary = int(inputs["inputs_embeds"].shape[2]), int(outputs["logits"].shape[2])

    def read(self, parts: Sequence[np.ndarray], past: OnnxPast | None, asked: Sequence[int] | None = None,
             positions: Sequence[int] | None = None) -> Step:
        """See `Decoder.read`."""
        packing = Packing.of(parts, *((None, (0,)) if past is None else (past.seen, past.lengths)), asked, positions)
        kind = self._kinds["attention_bias"]
        feeds = {
            "inputs_embeds": np.concatenate(parts)[None].astype(self._kinds["inputs_embeds"], copy=False),
            "position_ids": packing.positions[None],
            "attention_bias": np.where(packing.seen[packing.owner], kind(0), np.finfo(kind).min)[None, None],
            "asked": packing.asked,
        }
        with _Reported():
            memory, logits, states = self._run(feeds, None if past is None else past.memory, packing.seen.shape[1])
        return packing.step(logits, states, OnnxPast(memory, packing.seen, packing.lengths))

    def _run(self, feeds: dict[str, np.ndarray], before: _Memory | None, total: int) -> tuple[_Memory, np.ndarray, np.ndarray]:
        """The memory written to, logits (asked, vocabulary) and states (positions, hidden)."""
        count, asked = feeds["inputs_embeds"].shape[1], len(feeds["asked"])
        source, target = self._memories(before, total - count, total)
        target.bind(source)
        for name, array in feeds.items():
            target.binding.bind_cpu_input(name, array)
        logits = target.output("logits", (asked, self._vocabulary), self._kinds["logits"])
        states = target.output("hidden_states", (count, self.hidden), self._kinds["hidden_states"])
        self._session.run_with_iobinding(target.binding)
        return target, logits.astype(np.float32, copy=False), states.astype(np.float32)

    def _memories(self, before: _Memory | None, length: int, total: int) -> tuple[_Memory, _Memory]:
        """Where to read `length` positions and where to write up to `total`: the same memory, unless another continuation has
        it."""
        if before is None:
            memory = self._memory(total)
            memory.filled = total
            return memory, memory
        fits = total <= before.capacity and before.session is self._session
        with self._lock:
            if fits and before.filled == length:
                before.filled = total
                return before, before
        if fits and self._device != "cpu":
            # Written to another buffer of the same size, the operator itself copies what came before, on the device.
            target = self._memory(before.capacity, exactly=True)
            target.filled = total
            return before, target
        target = self._memory(total)
        target.filled = total
        if self._device == "cpu":
            target.block[..., :length, :] = before.block[..., :length, :]
        else:
            room = np.zeros((1, self._heads, target.capacity, self._size), self._kind)
            for old, new in zip(before.values, target.values, strict=True):
                room[:, :, :length] = old.numpy()[:, :, :length]
                new.update_inplace(room)
        return target, target

    def _memory(self, total: int, exactly: bool = False) -> _Memory:
        capacity = total if exactly else (total // GROWTH + 2) * GROWTH
        return _Memory(self._session, self._layers, (1, self._heads, capacity, self._size), self._kind, self._device)


class _Reported:
    """Turns ONNX Runtime's exceptions into PerceptionError."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if kind is None or not kind.__module__.startswith("onnxruntime"):
            return
        if "allocate" in str(error).lower() or "bad_alloc" in str(error):
            raise PerceptionError("OUT_OF_MEMORY", "the model found no memory for this query; use fewer boxes.") from error
        raise PerceptionError("INTERNAL", f"ONNX Runtime: {_first_line(error)}") from error


def _first_line(error: BaseException | None) -> str:
    newer = _NEWER.search(str(error))
    if newer:
        return f"opset {newer[1]}, newer than the {newer[2]} that it knows"
    return (str(error).splitlines() or [type(error).__name__])[0]
