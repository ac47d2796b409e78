"""Graphs on ONNX Runtime, on the CPU."""

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
KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
GROWTH = 256
"""Positions by which a conversation's memory grows; there is always room for so many more when it is made."""
_NEWER = re.compile(r"Opset (\d+) is under development.* till opset (\d+)")
_CACHE = ("past_key_values.", "present.")


class OnnxRuntime:
    """Backend: the bundle's graphs as they are, on the CPU; one thread pool per graph, which spins only while its graph runs."""

    name = "onnxruntime-cpu"

    def __init__(self, threads: int | None = None) -> None:
        """`threads` per graph; None takes every core that this process may use, at most `MOST_THREADS`."""
        self.threads = threads or default_threads()

    def session(self, path: Path) -> OnnxSession:
        """See `Backend.session`."""
        return OnnxSession(self._open(path))

    def decoder(self, path: Path) -> OnnxDecoder:
        """See `Backend.decoder`."""
        decoder = OnnxDecoder(self._open(path), path)
        weights = (path, path.with_name(f"{path.name}.data"))  # those of a large model lie beside its graph
        if sum(file.stat().st_size for file in weights if file.is_file()) >= huge_pages.LEAST:
            huge_pages.advise()
        return decoder

    def _open(self, path: Path) -> ort.InferenceSession:
        return open_session(path, path, ["CPUExecutionProvider"], self.threads)


def default_threads() -> int:
    """Every core that this process may use, at most `MOST_THREADS`."""
    return min(MOST_THREADS, len(os.sched_getaffinity(0)))


def open_session(graph: Path | bytes, where: Path, providers: Sequence, threads: int,
                 entries: Mapping[str, str] | None = None) -> ort.InferenceSession:  # fmt: skip
    """Load a graph; `entries` are further ones of the session's configuration. Raises PerceptionError INVALID_BUNDLE naming
    the file `where`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Hundreds of short operators make one token: threads that spin from one to the next save a third of the time. They must
    # not spin on when the graph is done: language, pixels and the rest of the robot share the cores.
    spinning = {"session.intra_op.allow_spinning": "1", "session.force_spinning_stop": "1"}
    for key, value in {**spinning, **(entries or {})}.items():
        options.add_session_config_entry(key, value)
    options.log_severity_level = 4  # errors come as exceptions
    try:
        return ort.InferenceSession(graph if isinstance(graph, bytes) else str(graph), options, providers=providers)
    except Exception as error:
        raise PerceptionError("INVALID_BUNDLE", f"{where}: expected a graph that ONNX Runtime {ort.__version__} can run, "
                                                f"found: {_first_line(error)}") from error


class OnnxSession:
    """One graph with arrays in and out; inputs are read in place when contiguous."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.inputs = tuple(i.name for i in session.get_inputs())
        self.outputs = tuple(o.name for o in session.get_outputs())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Session.run`."""
        with Reported():
            return dict(zip(self.outputs, self._session.run(self.outputs, dict(feeds)), strict=True))


class _Memory:
    """Keys and values of one conversation, allocated once and written front to back; ONNX Runtime reads and appends in place."""

    def __init__(self, session: ort.InferenceSession, layers: Sequence[str], shape: tuple[int, ...], kind: type) -> None:
        """`layers`: names of the past's inputs; `shape` (1, key/value heads, capacity, head size)."""
        self.session, self.capacity, self.filled = session, shape[2], 0
        # One block, whose pages the system provides when they are first written.
        self.block = np.empty((len(layers), *shape), kind)
        self.values = [ort.OrtValue.ortvalue_from_numpy(layer) for layer in self.block]
        self.binding = session.io_binding()
        self._room: dict[str, np.ndarray] = {}
        for name, value in zip(layers, self.values, strict=True):
            self.binding.bind_ortvalue_input(name, value)
            self.binding.bind_ortvalue_output(name.replace(*_CACHE), value)

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

    def __init__(self, session: ort.InferenceSession, path: Path) -> None:
        inputs = {i.name: i for i in session.get_inputs()}
        outputs = {o.name: o for o in session.get_outputs()}
        self._session, self._lock = session, threading.Lock()
        self._layers = tuple(name for name in inputs if name.startswith(_CACHE[0]))
        present = {name.replace(*_CACHE) for name in self._layers}
        expected = {"inputs_embeds", "position_ids", "attention_bias", "asked", "logits", "hidden_states", *present}
        missing = expected - {*inputs, *outputs}
        if missing or not self._layers:
            raise PerceptionError("INVALID_BUNDLE", f"{path}: expected a language model with inputs inputs_embeds, position_ids, "
                                  f"attention_bias, asked, past_key_values.* and outputs logits, hidden_states, present.*; found no "
                                  f"{', '.join(sorted(missing)) or 'past_key_values.*'}.")
        _, self._heads, _, self._size = inputs[self._layers[0]].shape
        self._kind = KINDS[inputs[self._layers[0]].type]
        self._kinds = {name: KINDS[value.type] for name, value in (inputs | outputs).items() if value.type in KINDS}
        self.hidden, self._vocabulary = int(inputs["inputs_embeds"].shape[2]), int(outputs["logits"].shape[2])

    def read(self, parts: Sequence[np.ndarray], past: OnnxPast | None, asked: Sequence[int] | None = None,
             positions: Sequence[int] | None = None) -> Step:
        """See `Decoder.read`."""
        packing = Packing.of(parts, past, asked, positions)
        kind = self._kinds["attention_bias"]
        feeds = {
            "inputs_embeds": np.concatenate(parts)[None].astype(self._kinds["inputs_embeds"], copy=False),
            "position_ids": packing.positions[None],
            "attention_bias": np.where(packing.seen[packing.owner], kind(0), np.finfo(kind).min)[None, None],
            "asked": packing.asked,
        }
        with Reported():
            memory, logits, states = self._run(feeds, None if past is None else past.memory, packing.seen.shape[1])
        return packing.step(logits, states, OnnxPast(memory, packing.seen, packing.lengths))

    def _run(self, feeds: dict[str, np.ndarray], before: _Memory | None, total: int) -> tuple[_Memory, np.ndarray, np.ndarray]:
        """The memory written to, logits (asked, vocabulary) and states (positions, hidden)."""
        count, asked = feeds["inputs_embeds"].shape[1], len(feeds["asked"])
        target = self._memory(before, total - count, total)
        for name, array in feeds.items():
            target.binding.bind_cpu_input(name, array)
        logits = target.output("logits", (asked, self._vocabulary), self._kinds["logits"])
        states = target.output("hidden_states", (count, self.hidden), self._kinds["hidden_states"])
        self._session.run_with_iobinding(target.binding)
        return target, logits.astype(np.float32, copy=False), states.astype(np.float32)

    def _memory(self, before: _Memory | None, length: int, total: int) -> _Memory:
        """Memory that holds the `length` positions of `before`, with room for up to `total` that is nobody's: the same memory,
        unless another continuation has it."""
        if before is not None and total <= before.capacity and before.session is self._session:
            with self._lock:
                if before.filled == length:
                    before.filled = total
                    return before
        capacity = (total // GROWTH + 2) * GROWTH
        memory = _Memory(self._session, self._layers, (1, self._heads, capacity, self._size), self._kind)
        memory.filled = total
        if before is not None:
            memory.block[..., :length, :] = before.block[..., :length, :]
        return memory


class Reported:
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
