"""Running one engine: its shapes, addresses and memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.cuda import Cuda, Memory


class Context:
    """One execution context: shapes and addresses are set when they change, which after the first run is rarely."""

    def __init__(self, trt: Any, engine: Any, profile: int, device: Cuda, stream: int, where: str) -> None:
        self._device, self._stream, self._where, self._profile, self._engine = device, stream, where, profile, engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise PerceptionError("OUT_OF_MEMORY", f"{where}: expected {device.device} to have memory for the engine's work, found none.")
        if not self._context.set_optimization_profile_async(profile, stream):
            raise PerceptionError("INTERNAL", f"{where}: TensorRT has no optimisation profile {profile}")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.types = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        modes = {name: engine.get_tensor_mode(name) for name in names}
        self.inputs = tuple(name for name in names if modes[name] == trt.TensorIOMode.INPUT)
        self.outputs = tuple(name for name in names if modes[name] == trt.TensorIOMode.OUTPUT)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._own: dict[str, Memory] = {}

    def shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Say an input's shape. Raises PerceptionError INVALID_QUERY where the engine's profile does not hold it."""
        if self._shapes.get(name) == shape:
            return
        if not self._context.set_input_shape(name, shape):
            least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
            raise PerceptionError("INVALID_QUERY", f"{self._where}: expected {name} of shape {tuple(least)} to {tuple(most)}, "
                                                   f"found {shape}.")
        self._shapes[name] = shape

    def address(self, name: str, address: int) -> None:
        """Say where an input or output lies."""
        if self._addresses.get(name) != address:
            self._context.set_tensor_address(name, address)
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

    def output_shape(self, name: str) -> tuple[int, ...]:
        """Shape of an output, once those of all inputs are known."""
        return tuple(self._context.get_tensor_shape(name))

    def prepare(self, name: str) -> None:
        """Give an output memory of its own, once the shapes of all inputs are known."""
        self.memory(name, self.output_shape(name))

    def fetch(self, name: str) -> np.ndarray:
        """Download a prepared output; it is filled when the stream is waited for."""
        array = np.empty(self.output_shape(name), self.types[name])
        self._device.download(array, self._addresses[name], self._stream)
        return array

    def run(self) -> None:
        """Start the engine on its stream."""
        if not self._context.execute_async_v3(self._stream):
            raise PerceptionError("INTERNAL", f"{self._where}: TensorRT could not run the engine")
