"""Running one TensorRT engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.cuda import Cuda
from pixel_perception.runtime.device_context import DeviceContext


class Context(DeviceContext):
    """One execution context of an engine, with one of its optimisation profiles."""

    records = True

    def __init__(self, trt: Any, engine: Any, profile: int, device: Cuda, stream: int, where: str) -> None:
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        types = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        inputs, outputs = ({name: kind for name, kind in types.items() if engine.get_tensor_mode(name) == mode}
                           for mode in (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT))  # fmt: skip
        super().__init__(device, stream, where, inputs, outputs)
        self._profile, self._engine = profile, engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise PerceptionError("OUT_OF_MEMORY", f"{where}: expected {device.device} to have memory for the engine's work, found none.")
        if not self._context.set_optimization_profile_async(profile, stream):
            raise PerceptionError("INTERNAL", f"{where}: TensorRT has no optimisation profile {profile}")

    def declared(self, name: str) -> tuple[int, ...]:
        """See `DeviceContext.declared`."""
        return tuple(self._engine.get_tensor_shape(name))

    def output_shape(self, name: str) -> tuple[int, ...]:
        """See `DeviceContext.output_shape`."""
        return tuple(self._context.get_tensor_shape(name))

    def say_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """See `DeviceContext.say_shape`: the profile has limits."""
        if not self._context.set_input_shape(name, shape):
            least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
            raise PerceptionError("INVALID_QUERY", f"{self._where}: expected {name} of shape {tuple(least)} to {tuple(most)}, "
                                                   f"found {shape}.")

    def say_address(self, name: str, address: int) -> None:
        """See `DeviceContext.say_address`."""
        self._context.set_tensor_address(name, address)

    def run(self) -> None:
        """See `DeviceContext.run`."""
        if not self._context.execute_async_v3(self._stream):
            raise PerceptionError("INTERNAL", f"{self._where}: TensorRT could not run the engine")
