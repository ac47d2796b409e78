"""One graph on a device, whichever library runs it: shapes, addresses and memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from pixel_perception.runtime.cuda import Cuda, Memory


class DeviceContext(ABC):
    """Shapes and addresses are set when they change, which after the first run is rarely."""

    records = False
    """Whether a run can be recorded as a CUDA graph."""

    def __init__(self, device: Cuda, stream: int, where: str, inputs: Mapping[str, np.dtype], outputs: Mapping[str, np.dtype]) -> None:
        """`where` names the graph in errors; `inputs` and `outputs`: types by name."""
        self._device, self._stream, self._where = device, stream, where
        self.inputs, self.outputs, self.types = tuple(inputs), tuple(outputs), {**inputs, **outputs}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._own: dict[str, Memory] = {}

    @abstractmethod
    def declared(self, name: str) -> tuple[int | str, ...]:
        """Shape of an input or output as the graph has it: an axis whose size may change is -1 or a word."""

    @abstractmethod
    def output_shape(self, name: str) -> tuple[int, ...]:
        """Shape of an output, once those of all inputs are known."""

    @abstractmethod
    def run(self) -> None:
        """Start the graph on its stream. Raises PerceptionError INTERNAL or OUT_OF_MEMORY."""

    @abstractmethod
    def say_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Tell the library an input's new shape. Raises PerceptionError INVALID_QUERY where it does not take it."""

    def say_address(self, name: str, address: int) -> None:  # noqa: B027  (one library is told with every run)
        """Tell the library where an input or output lies from now on."""

    def shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Say an input's shape. Raises as `say_shape`."""
        if self._shapes.get(name) != shape:
            self.say_shape(name, shape)
            self._shapes[name] = shape

    def address(self, name: str, address: int) -> None:
        """Say where an input or output lies."""
        if self._addresses.get(name) != address:
            self.say_address(name, address)
            self._addresses[name] = address

    def memory(self, name: str, shape: tuple[int, ...]) -> int:
        """Address of memory of this context's own for an input or output, which only ever grows."""
        size = int(np.prod(shape)) * self.types[name].itemsize
        if name not in self._own or self._own[name].size < size:
            self._own[name] = self._device.allocate(size)
        self.address(name, self._own[name].address)
        return self._own[name].address

    def feed(self, name: str, array: np.ndarray) -> np.ndarray:
        """Shape and upload an input; returns what has to live until the stream is waited for."""
        array = np.ascontiguousarray(array, self.types[name])
        self.shape(name, array.shape)
        self._device.upload(self.memory(name, array.shape), array, self._stream)
        return array

    def prepare(self, name: str) -> None:
        """Give an output memory of its own, once the shapes of all inputs are known."""
        self.memory(name, self.output_shape(name))

    def fetch(self, name: str) -> np.ndarray:
        """Download a prepared output; it is filled when the stream is waited for."""
        array = np.empty(self.output_shape(name), self.types[name])
        self._device.download(array, self._addresses[name], self._stream)
        return array
