"""The plain language graph on a device: keys and values stay there; where the library allows it, single tokens are replayed as
CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.cuda import Cuda, Memory
from pixel_perception.runtime.device_context import DeviceContext
from pixel_perception.runtime.engine_key import POSITIONS, ROWS, STEP
from pixel_perception.runtime.packing import Packing
from pixel_perception.runtime.session import Step

ALIGNED = 256
"""Bytes to which TensorRT wants addresses aligned."""
PLACES = 256
"""Key/value buffers are made in multiples of so many positions."""
KEPT = 4
"""Buffers that are kept for the next question."""
HIDDEN = np.float32(-1e9)
"""Added to the score of what a position must not see."""


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
        """Of a graph's inputs."""
        caches = [name for name in inputs if name.startswith("past_key_values.")]
        return Layout(tuple(sorted(caches, key=lambda name: (int(name.split(".")[1]), name))), heads, size, itemsize)

    def new(self, cache: str) -> str:
        """The output that holds the new positions of a cache."""
        return cache.replace("past_key_values", "new_key_values")

    def pitch(self, positions: int) -> int:
        """Bytes of one head."""
        return positions * self.size * self.itemsize

    def rows(self, positions: int) -> int:
        """Heads with the unused ones that fill a cache up, so that the next one is aligned."""
        rows = self.heads
        while rows * self.pitch(positions) % ALIGNED:
            rows += 1
        return rows

    def block(self, positions: int) -> int:
        """Bytes from one cache to the next."""
        return self.rows(positions) * self.pitch(positions)


@dataclass(eq=False)
class Places:
    """Key/value memory, its execution context for single tokens, and that as a CUDA graph."""

    capacity: int
    memory: Memory
    used: int = 0
    context: DeviceContext | None = None
    prepared: bool = False
    graph: int | None = None


@dataclass(eq=False)
class Lease:
    """Hands its places back to the decoder when the last past that needs them is gone."""

    places: Places
    free: list[Places] = field(repr=False)

    def __del__(self) -> None:
        self.free.append(self.places)


@dataclass(frozen=True, eq=False)
class DevicePast:
    """What was read, by one row or several: the first places of a buffer, and which of them each row has read. What lies behind
    them may belong to a continuation."""

    lease: Lease
    seen: np.ndarray
    """(rows, positions) bool."""
    lengths: tuple[int, ...]

    def first(self, length: int) -> DevicePast:
        """See `Past.first`."""
        return DevicePast(self.lease, self.seen[:, : self.seen.shape[1] - self.lengths[0] + length], (length,))


class DeviceDecoder:
    """The language model, whose graph reads one sequence: rows are packed into it and told apart by the attention bias. A past is
    continued where it lies; a second continuation of it gets a copy."""

    def __init__(self, context: Callable[[int], DeviceContext], device: Cuda, stream: int, where: str) -> None:
        """`context` makes a new one with the profile for prompts (0) or for a few positions (1); `where` names the graph. Raises
        PerceptionError INVALID_BUNDLE where it is no language model."""
        self._new_context, self._device, self._stream, self._where = context, device, stream, where
        self._prompt = context(0)
        missing = {"inputs_embeds", "position_ids", "attention_bias", "asked", "past_key_values.0.key"} - set(self._prompt.inputs)
        if missing:
            raise PerceptionError("INVALID_BUNDLE", f"{where}: expected a language model, found no input {min(missing)}.")
        self._few = context(1)
        self.hidden = int(self._prompt.declared("inputs_embeds")[2])
        _, heads, _, size = self._prompt.declared("past_key_values.0.key")
        self._layout = Layout.of(self._prompt.inputs, heads, size, self._prompt.types["past_key_values.0.key"].itemsize)
        self._lock, self._free = threading.Lock(), []
        # As large as it will ever be, because CUDA graphs hold its address.
        self._new = device.allocate(len(self._layout.caches) * max(self._layout.block(1), self._layout.block(STEP)))

    def read(self, parts: Sequence[np.ndarray], past: DevicePast | None, asked: Sequence[int] | None = None,
             positions: Sequence[int] | None = None) -> Step:
        """See `Decoder.read`."""
        packing = Packing.of(parts, past, asked, positions)
        seen, owner, before, places = packing.seen, packing.owner, packing.before, packing.asked
        if seen.shape[1] > POSITIONS:
            raise PerceptionError("INVALID_QUERY", f"{self._where}: expected at most {POSITIONS} positions of all rows together, "
                                                   f"found {seen.shape[1]}; ask less at once.")
        embeddings, where = np.concatenate(parts)[None], packing.positions[None]
        logits, states = [], []
        with self._lock:
            self._device.use()
            lease = self._claim(past, before, seen.shape[1])
            for begin in range(0, len(owner), STEP):
                part = slice(begin, begin + STEP)
                # A position sees what its row has read, and nothing that comes after itself.
                visible = np.tri(len(owner[part]), before + begin + len(owner[part]), before + begin, dtype=bool)
                visible &= seen[owner[part], : visible.shape[1]]
                which = places[(places >= begin) & (places < begin + STEP)] - begin
                found = self._step(lease.places, embeddings[:, part], where[:, part], visible, which)
                logits += list(found[0])
                states.append(found[1])
        return packing.step(logits, np.concatenate(states), DevicePast(lease, seen, packing.lengths))

    def _step(self, places: Places, embeddings: np.ndarray, positions: np.ndarray, visible: np.ndarray,
              asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read one step behind what is in these places: logits (asked, vocabulary) and states (count, hidden). `visible` (count,
        positions) says what each new position may see."""
        count, filled = embeddings.shape[1], places.used
        bias = np.full((1, 1, count, places.capacity + count), HIDDEN)
        bias[0, 0, :, :filled][visible[:, :filled]] = 0
        bias[0, 0, :, places.capacity :][visible[:, filled:]] = 0
        context = self._single(places) if count == 1 else self._few if count <= ROWS else self._prompt
        feeds = {"inputs_embeds": embeddings, "position_ids": positions, "attention_bias": bias,
                 "asked": asked if len(asked) else np.zeros(1, np.int64)}  # fmt: skip
        fed = [context.feed(name, array) for name, array in feeds.items()]
        self._bind(context, places, count)
        self._run(context, places, count)
        self._append(places, filled, count)
        logits, states = context.fetch("logits"), context.fetch("hidden_states")
        self._device.wait(self._stream)
        places.used = filled + count
        del fed
        return logits[0, : len(asked)], states[0]

    def _claim(self, past: DevicePast | None, before: int, total: int) -> Lease:
        """Places that hold `past`, with room behind it that is nobody's."""
        if past and past.lease.places.used == before and total <= past.lease.places.capacity:
            return past.lease
        lease = self._take(total)
        if past:
            self._copy(past.lease.places, lease.places, before)
        lease.places.used = before
        return lease

    def _take(self, total: int) -> Lease:
        capacity = min(POSITIONS, (total // PLACES + 1) * PLACES)
        while len(self._free) > KEPT:
            oldest = self._free.pop(0)
            if oldest.graph is not None:
                self._device.forget(oldest.graph)
        for places in self._free:
            if places.capacity == capacity:
                self._free.remove(places)
                return Lease(places, self._free)
        memory = self._device.allocate(len(self._layout.caches) * self._layout.block(capacity))
        self._device.clear(memory, self._stream)  # places that are not filled are multiplied by zero, which must not be NaN
        return Lease(Places(capacity, memory), self._free)

    def _copy(self, source: Places, target: Places, length: int) -> None:
        """Copy the first places of a buffer into another one."""
        layout = self._layout
        self._device.copy_rows(target.memory.address, layout.pitch(target.capacity), layout.rows(target.capacity), source.memory.address,
                               layout.pitch(source.capacity), layout.rows(source.capacity), layout.pitch(length), layout.heads,
                               len(layout.caches), self._stream)  # fmt: skip

    def _append(self, places: Places, filled: int, count: int) -> None:
        """Put the keys and values of a step behind those that were there."""
        layout = self._layout
        self._device.copy_rows(places.memory.address + layout.pitch(filled), layout.pitch(places.capacity), layout.rows(places.capacity),
                               self._new.address, layout.pitch(count), layout.rows(count), layout.pitch(count), layout.heads,
                               len(layout.caches), self._stream)  # fmt: skip

    def _single(self, places: Places) -> DeviceContext:
        """The context for single tokens in these places: a CUDA graph holds a context's memory and needs it for itself."""
        if places.context is None:
            places.context = self._new_context(1)
        return places.context

    def _bind(self, context: DeviceContext, places: Places, count: int) -> None:
        layout = self._layout
        for i, cache in enumerate(layout.caches):
            context.shape(cache, (1, layout.heads, places.capacity, layout.size))
            context.address(cache, places.memory.address + i * layout.block(places.capacity))
            context.address(layout.new(cache), self._new.address + i * layout.block(count))
        for name in ("logits", "hidden_states"):
            context.prepare(name)

    def _run(self, context: DeviceContext, places: Places, count: int) -> None:
        """The first single token in these places runs as it is, because TensorRT prepares itself for the shapes; the second is
        recorded, and every later one is a replay."""
        if count > 1 or not places.prepared or not context.records:
            context.run()
            places.prepared = places.prepared or count == 1
            return
        if places.graph is None:
            self._device.begin_capture(self._stream)
            try:
                context.run()
            finally:
                places.graph = self._device.end_capture(self._stream)
        self._device.launch(places.graph, self._stream)
