"""The language model as a TensorRT engine: keys and values stay on the device, single tokens are replayed as CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.cuda import Cuda, Memory
from pixel_perception.runtime.engine_key import CONTEXT, ROWS
from pixel_perception.runtime.session import Step
from pixel_perception.runtime.tensorrt_context import Context

ALIGNED = 256
"""Bytes to which TensorRT wants addresses aligned."""
PLACES = 256
"""Key/value buffers are made in multiples of so many positions."""
KEPT = 4
"""Buffers of one row that are kept for the next question."""


@dataclass(frozen=True)
class Layout:
    """How the keys and values of all layers lie in one piece of memory, so that one copy moves those of a step."""

    caches: tuple[str, ...]
    """Names past_key_values.{i}.key and .value, in the order in which they lie."""
    heads: int
    size: int
    """Key/value heads and their size."""
    itemsize: int = 2

    @staticmethod
    def of(inputs: Sequence[str], heads: int, size: int, itemsize: int) -> Layout:
        """Of an engine's inputs."""
        caches = [name for name in inputs if name.startswith("past_key_values.")]
        return Layout(tuple(sorted(caches, key=lambda name: (int(name.split(".")[1]), name))), heads, size, itemsize)

    def new(self, cache: str) -> str:
        """The output that holds the new positions of a cache."""
        return cache.replace("past_key_values", "new_key_values")

    def pitch(self, positions: int) -> int:
        """Bytes of one head of one row."""
        return positions * self.size * self.itemsize

    def rows(self, rows: int, positions: int) -> int:
        """Heads of a block with the unused ones that fill it up, so that the next block is aligned."""
        heads = rows * self.heads
        while heads * self.pitch(positions) % ALIGNED:
            heads += 1
        return heads

    def block(self, rows: int, positions: int) -> int:
        """Bytes from one cache to the next."""
        return self.rows(rows, positions) * self.pitch(positions)


@dataclass(eq=False)
class Places:
    """Key/value memory of some rows, its execution context for single tokens, and that as a CUDA graph."""

    rows: int
    capacity: int
    memory: Memory
    used: int = 0
    context: Context | None = None
    runs: int = 0
    graph: int | None = None


@dataclass(frozen=True, eq=False)
class TensorRtPast:
    """The first `length` places of a buffer; what lies behind them may belong to a continuation."""

    lease: Lease
    rows: int
    length: int


@dataclass(eq=False)
class Lease:
    """Hands its places back to the decoder when the last past that needs them is gone."""

    places: Places
    free: list[Places] = field(repr=False)

    def __del__(self) -> None:
        self.free.append(self.places)


class TensorRtDecoder:
    """The language model. A past is continued where it lies; a second continuation of it gets a copy."""

    def __init__(self, trt: Any, engine: Any, device: Cuda, stream: int, where: str) -> None:
        self._trt, self._engine, self._device, self._stream, self._where = trt, engine, device, stream, where
        self._prompt = Context(trt, engine, 0, device, stream, where)
        missing = {"inputs_embeds", "past_length", "past_key_values.0.key"} - set(self._prompt.inputs)
        if missing:
            raise PerceptionError("INVALID_BUNDLE", f"{where}: expected the engine of a language model, found no input {min(missing)}.")
        self.hidden = int(engine.get_tensor_shape("inputs_embeds")[2])
        _, heads, _, size = tuple(engine.get_tensor_shape("past_key_values.0.key"))
        self._layout = Layout.of(self._prompt.inputs, heads, size, self._prompt.types["past_key_values.0.key"].itemsize)
        self._lock, self._free = threading.Lock(), []
        self._new: Memory | None = None

    def read(self, embeddings: np.ndarray, past: TensorRtPast | None) -> Step:
        """Read embeddings (rows, count, hidden) float32 after `past`; with more than one row, `count` must be 1."""
        rows, count, _ = embeddings.shape
        length = past.length if past else 0
        if (past and rows != past.rows) or (rows > 1 and count > 1):
            raise ValueError(f"embeddings: expected {past.rows if past else 1} rows, of one position where there are several, "
                             f"found {rows} of {count}")
        if length + count > CONTEXT:
            raise PerceptionError("INVALID_QUERY", f"{self._where}: expected at most {CONTEXT} positions, found {length + count}.")
        with self._lock:
            self._device.use()
            lease = self._claim(past, rows, length + count)
            places = lease.places
            context = self._single(places) if count == 1 else self._prompt
            fed = context.feed("inputs_embeds", embeddings), context.feed("past_length", np.array([length], np.int64))
            self._bind(context, places, count)
            self._run(context, places, count)
            self._append(places, length, count)
            logits, states = context.fetch("logits"), context.fetch("hidden_states")
            self._device.wait(self._stream)
            places.used = length + count
            del fed
        return Step(logits[:, -1], states, TensorRtPast(lease, rows, length + count))

    def stack(self, pasts: Sequence[TensorRtPast]) -> TensorRtPast:
        """One past whose rows are those of several of equal length."""
        if len({p.length for p in pasts}) != 1:
            raise ValueError(f"pasts: expected one length, found {sorted({p.length for p in pasts})}")
        rows, length = sum(p.rows for p in pasts), pasts[0].length
        with self._lock:
            self._device.use()
            lease, row = self._take(rows, length + 1), 0
            for past in pasts:
                self._copy(lease.places, row, past)
                row += past.rows
            self._device.wait(self._stream)
            lease.places.used = length
        return TensorRtPast(lease, rows, length)

    def _claim(self, past: TensorRtPast | None, rows: int, length: int) -> Lease:
        """Places that hold `past`, with room behind it that is nobody's."""
        if past and past.lease.places.used == past.length and length <= past.lease.places.capacity:
            return past.lease
        lease = self._take(rows, length)
        if past:
            self._copy(lease.places, 0, past)
        return lease

    def _take(self, rows: int, length: int) -> Lease:
        capacity = min(CONTEXT, (length // PLACES + 1) * PLACES)
        while len(self._free) > KEPT or any(p.rows > 1 for p in self._free):
            surplus = next((p for p in self._free if p.rows > 1), self._free[0])
            self._free.remove(surplus)
            if surplus.graph is not None:
                self._device.forget(surplus.graph)
        for places in self._free:
            if (places.rows, places.capacity) == (rows, capacity):
                self._free.remove(places)
                return Lease(places, self._free)
        memory = self._device.allocate(len(self._layout.caches) * self._layout.block(rows, capacity))
        self._device.clear(memory, self._stream)  # places that are not filled are multiplied by zero, which must not be NaN
        return Lease(Places(rows, capacity, memory), self._free)

    def _copy(self, places: Places, row: int, past: TensorRtPast) -> None:
        """Copy a past into the rows of other places from `row` on."""
        layout, source = self._layout, past.lease.places
        target = places.memory.address + row * layout.heads * layout.pitch(places.capacity)
        self._device.copy_rows(target, layout.pitch(places.capacity), layout.rows(places.rows, places.capacity),
                               source.memory.address, layout.pitch(source.capacity), layout.rows(source.rows, source.capacity),
                               layout.pitch(past.length), past.rows * layout.heads, len(layout.caches), self._stream)  # fmt: skip

    def _append(self, places: Places, length: int, count: int) -> None:
        """Put the keys and values of a step behind those that were there."""
        layout = self._layout
        self._device.copy_rows(places.memory.address + layout.pitch(length), layout.pitch(places.capacity),
                               layout.rows(places.rows, places.capacity), self._new.address, layout.pitch(count),
                               layout.rows(places.rows, count), layout.pitch(count), places.rows * layout.heads, len(layout.caches),
                               self._stream)  # fmt: skip

    def _single(self, places: Places) -> Context:
        """The context for single tokens in these places: a CUDA graph holds a context's memory and needs it for itself."""
        if places.context is None:
            places.context = Context(self._trt, self._engine, 1, self._device, self._stream, self._where)
        return places.context

    def _bind(self, context: Context, places: Places, count: int) -> None:
        layout = self._layout
        size = len(layout.caches) * layout.block(places.rows, count)
        if self._new is None or self._new.size < size:
            # As large as it will ever be, because graphs hold its address.
            largest = max(size, len(layout.caches) * max(layout.block(1, CONTEXT), layout.block(ROWS, 1)))
            self._new = self._device.allocate(largest)
        for i, cache in enumerate(layout.caches):
            context.shape(cache, (places.rows, layout.heads, places.capacity, layout.size))
            context.address(cache, places.memory.address + i * layout.block(places.rows, places.capacity))
            context.address(layout.new(cache), self._new.address + i * layout.block(places.rows, count))
        for name in ("logits", "hidden_states"):
            context.prepare(name)

    def _run(self, context: Context, places: Places, count: int) -> None:
        """The first single token in these places runs as it is, because TensorRT prepares itself for the shapes; the second is
        recorded, and every later one is a replay."""
        if count > 1 or places.runs == 0:
            context.run()
        else:
            if places.graph is None:
                self._device.begin_capture(self._stream)
                try:
                    context.run()
                finally:
                    places.graph = self._device.end_capture(self._stream)
            self._device.launch(places.graph, self._stream)
        if count == 1:
            places.runs += 1
