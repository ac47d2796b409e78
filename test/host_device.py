"""A device that is the host: its memory in the place of the device's, and ONNX Runtime's work behind TensorRT's interface."""

import ctypes

import numpy as np
import onnxruntime

from pixel_perception.runtime import cuda
from pixel_perception.runtime.device_decoder import ALIGNED
from pixel_perception.runtime.engine_key import profiles_of
from pixel_perception.runtime.engines import EngineCache
from pixel_perception.runtime.onnxruntime_cuda import OnnxRuntimeCuda

try:
    import tensorrt_rtx as trt
except ImportError:  # there is none for this machine: the other backend is still tested
    trt = None


class HostCuda:
    """What `cuda.Cuda` offers, on the host's memory. A stream does everything at once; a recording is played by its engine."""

    device, version, driver, compute_capability = "the host", "none", "none", "none"

    def __init__(self):
        self.recording, self.launches = None, 0

    def use(self):
        pass

    def stream(self, urgent):
        return int(urgent)

    def wait(self, stream):
        pass

    def allocate(self, size):
        buffer = np.full(size + ALIGNED, 255, np.uint8)  # fp16 NaN, as fresh device memory may be
        memory = cuda.Memory(self, -(-buffer.ctypes.data // ALIGNED) * ALIGNED, size)
        memory.buffer = buffer
        return memory

    def free(self, address):
        pass

    def clear(self, memory, stream):
        ctypes.memset(memory.address, 0, memory.size)

    def upload(self, address, array, stream):
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array, address, stream):
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def copy_rows(self, target, target_pitch, target_rows, source, source_pitch, source_rows, width, rows, blocks, stream):
        for block in range(blocks):
            for row in range(rows):
                ctypes.memmove(target + target_pitch * (block * target_rows + row),
                               source + source_pitch * (block * source_rows + row), width)  # fmt: skip

    def begin_capture(self, stream):
        self.recording = []

    def end_capture(self, stream):
        (play,), self.recording = self.recording, None
        return play

    def launch(self, executable, stream):
        self.launches += 1
        executable()

    def forget(self, executable):
        pass


class HostEngine:
    """A TensorRT engine whose work ONNX Runtime does."""

    def __init__(self, model, device, graph):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.device, self.profiles = device, profiles_of(graph)
        self.inputs, self.outputs = ({v.name: v for v in values} for values in (self.session.get_inputs(), self.session.get_outputs()))
        self.names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return trt.TensorIOMode.INPUT if name in self.inputs else trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        kinds = {"tensor(float)": trt.float32, "tensor(float16)": trt.float16, "tensor(int64)": trt.int64, "tensor(uint8)": trt.uint8}
        return kinds[(self.inputs | self.outputs)[name].type]

    def get_tensor_shape(self, name):
        return [d if isinstance(d, int) else -1 for d in (self.inputs | self.outputs)[name].shape]

    def get_tensor_profile_shape(self, name, profile):
        sizes = self.profiles[profile]
        return [[d if isinstance(d, int) else sizes[d][which] for d in self.inputs[name].shape] for which in range(3)]

    def create_execution_context(self):
        return HostContext(self)


class HostContext:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.sizes = engine, {}, {}, {}

    def set_optimization_profile_async(self, profile, stream):
        self.profile = profile
        return profile < len(self.engine.profiles)

    def set_input_shape(self, name, shape):
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            return False
        declared = self.engine.inputs[name].shape
        self.shapes[name] = shape
        self.sizes |= {d: size for d, size in zip(declared, shape, strict=True) if isinstance(d, str)}
        return True

    def get_tensor_shape(self, name):
        return [d if isinstance(d, int) else self.sizes[d] for d in (self.engine.inputs | self.engine.outputs)[name].shape]

    def set_tensor_address(self, name, address):
        assert address % ALIGNED == 0, f"{name} is not aligned"
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        if self.engine.device.recording is not None:
            shapes, addresses = dict(self.shapes), dict(self.addresses)
            self.engine.device.recording.append(lambda: self.work(shapes, addresses))
            return True
        self.work(self.shapes, self.addresses)
        return True

    def work(self, shapes, addresses):
        feeds = {}
        for name in self.engine.inputs:
            kind = np.dtype(trt.nptype(self.engine.get_tensor_dtype(name)))
            feeds[name] = np.empty(shapes[name], kind)
            ctypes.memmove(feeds[name].ctypes.data, addresses[name], feeds[name].nbytes)
        for name, found in zip(self.engine.outputs, self.engine.session.run(list(self.engine.outputs), feeds), strict=True):
            found = np.ascontiguousarray(found)
            ctypes.memmove(addresses[name], found.ctypes.data, found.nbytes)


class OnHost(OnnxRuntimeCuda):
    """The CUDA backend with everything in the host's memory, on the CPU provider."""

    memory = "cpu"

    def __init__(self, folder, device=None):
        super().__init__(1, EngineCache(folder), device or HostCuda())

    def _check(self):
        pass

    def _providers(self, stream):
        return ["CPUExecutionProvider"]
