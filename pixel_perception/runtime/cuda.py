"""The few calls of the CUDA driver that TensorRT leaves to its user, through libcuda: it comes with every driver and Jetson,
and its interface is versioned by symbol, so that nothing has to be compiled or installed."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path

import numpy as np

from pixel_perception.errors import PerceptionError

_OUT_OF_MEMORY = 2
_DEVICE = 2  # CU_MEMORYTYPE_DEVICE
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NON_BLOCKING, _THREAD_LOCAL = 1, 1  # CU_STREAM_NON_BLOCKING, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_pointer = c_ulonglong  # CUdeviceptr
_SIGNATURES = {
    "cuInit": [c_uint], "cuDriverGetVersion": [POINTER(c_int)], "cuDeviceGetCount": [POINTER(c_int)],
    "cuDeviceGet": [POINTER(c_int), c_int], "cuDeviceGetName": [c_char_p, c_int, c_int],
    "cuDeviceGetAttribute": [POINTER(c_int), c_int, c_int], "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
    "cuCtxSetCurrent": [c_void_p], "cuCtxGetStreamPriorityRange": [POINTER(c_int), POINTER(c_int)],
    "cuStreamCreateWithPriority": [POINTER(c_void_p), c_uint, c_int], "cuStreamSynchronize": [c_void_p],
    "cuMemAlloc_v2": [POINTER(_pointer), c_size_t], "cuMemFree_v2": [_pointer],
    "cuMemcpyHtoDAsync_v2": [_pointer, c_void_p, c_size_t, c_void_p],
    "cuMemcpyDtoHAsync_v2": [c_void_p, _pointer, c_size_t, c_void_p],
    "cuMemcpy3DAsync_v2": [c_void_p, c_void_p], "cuMemsetD8Async": [_pointer, ctypes.c_ubyte, c_size_t, c_void_p],
    "cuStreamBeginCapture_v2": [c_void_p, c_int], "cuStreamEndCapture": [c_void_p, POINTER(c_void_p)],
    "cuGraphInstantiateWithFlags": [POINTER(c_void_p), c_void_p, c_ulonglong], "cuGraphLaunch": [c_void_p, c_void_p],
    "cuGraphDestroy": [c_void_p], "cuGraphExecDestroy": [c_void_p], "cuGetErrorName": [c_int, POINTER(c_char_p)],
}  # fmt: skip


class _Copy3D(ctypes.Structure):
    """CUDA_MEMCPY3D."""

    _fields_ = [
        *((f"src{name}", c_size_t) for name in ("XInBytes", "Y", "Z", "LOD")), ("srcMemoryType", c_int), ("srcHost", c_void_p),
        ("srcDevice", _pointer), ("srcArray", c_void_p), ("reserved0", c_void_p), ("srcPitch", c_size_t), ("srcHeight", c_size_t),
        *((f"dst{name}", c_size_t) for name in ("XInBytes", "Y", "Z", "LOD")), ("dstMemoryType", c_int), ("dstHost", c_void_p),
        ("dstDevice", _pointer), ("dstArray", c_void_p), ("reserved1", c_void_p), ("dstPitch", c_size_t), ("dstHeight", c_size_t),
        ("WidthInBytes", c_size_t), ("Height", c_size_t), ("Depth", c_size_t),
    ]  # fmt: skip


class Cuda:
    """The first device. Its methods may be called from any thread; each raises PerceptionError OUT_OF_MEMORY or INTERNAL."""

    def __init__(self) -> None:
        """Raises PerceptionError INVALID_QUERY where there is no driver or no device."""
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
            for name, arguments in _SIGNATURES.items():
                getattr(self._library, name).argtypes = arguments
        except (OSError, AttributeError) as error:
            raise _no_device(f"no driver of it ({error})") from None
        count = c_int()
        if self._library.cuInit(0) or self._library.cuDeviceGetCount(byref(count)) or not count.value:
            raise _no_device("a driver but no device")
        device, context, major, minor, cuda = c_int(), c_void_p(), c_int(), c_int(), c_int()
        self._call("cuDeviceGet", byref(device), 0)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, 256, device)
        self._call("cuDeviceGetAttribute", byref(major), _MAJOR, device)
        self._call("cuDeviceGetAttribute", byref(minor), _MINOR, device)
        self._call("cuDriverGetVersion", byref(cuda))
        # The primary context is the one that TensorRT, which uses the runtime's interface, works in.
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._context = context
        self.device = name.value.decode()
        self.compute_capability = f"{major.value}.{minor.value}"
        self.version = f"{cuda.value // 1000}.{cuda.value % 1000 // 10}"
        """Newest CUDA that the driver runs."""
        self.driver = _driver_version()

    def use(self) -> None:
        """Make the device current in this thread."""
        self._call("cuCtxSetCurrent", self._context)

    def stream(self, urgent: bool) -> int:
        """A stream of the highest or the lowest priority."""
        self.use()
        least, greatest, stream = c_int(), c_int(), c_void_p()
        self._call("cuCtxGetStreamPriorityRange", byref(least), byref(greatest))
        self._call("cuStreamCreateWithPriority", byref(stream), _NON_BLOCKING, greatest if urgent else least)
        return stream.value

    def wait(self, stream: int) -> None:
        """Until the stream has done all its work."""
        self._call("cuStreamSynchronize", stream)

    def allocate(self, size: int) -> Memory:
        """Device memory of at least `size` bytes."""
        self.use()
        address = _pointer()
        self._call("cuMemAlloc_v2", byref(address), max(size, 1))
        return Memory(self, address.value, size)

    def free(self, address: int) -> None:
        """Give memory back."""
        self.use()
        self._call("cuMemFree_v2", address)

    def clear(self, memory: Memory, stream: int) -> None:
        """Set memory to zeros."""
        self._call("cuMemsetD8Async", memory.address, 0, memory.size, stream)

    def upload(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy a contiguous array to the device; `array` must live until the stream has done it."""
        self._call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, stream)

    def download(self, array: np.ndarray, address: int, stream: int) -> None:
        """Copy from the device into a contiguous array, which is filled when the stream has done it."""
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, stream)

    def copy_rows(self, target: int, target_pitch: int, target_rows: int, source: int, source_pitch: int, source_rows: int,
                  width: int, rows: int, blocks: int, stream: int) -> None:
        """Copy `blocks` blocks of `rows` rows of `width` bytes. The rows of a block lie `pitch` bytes apart, and blocks
        `pitch * target_rows` (or `source_rows`) bytes."""
        copy = _Copy3D(srcMemoryType=_DEVICE, srcDevice=source, srcPitch=source_pitch, srcHeight=source_rows, dstMemoryType=_DEVICE,
                       dstDevice=target, dstPitch=target_pitch, dstHeight=target_rows, WidthInBytes=width, Height=rows,
                       Depth=blocks)  # fmt: skip
        self._call("cuMemcpy3DAsync_v2", byref(copy), stream)

    def begin_capture(self, stream: int) -> None:
        """Record what follows on the stream instead of doing it."""
        self._call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """What was recorded, ready to be launched."""
        graph, executable = c_void_p(), c_void_p()
        self._call("cuStreamEndCapture", stream, byref(graph))
        self._call("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
        self._call("cuGraphDestroy", graph)
        return executable.value

    def launch(self, executable: int, stream: int) -> None:
        """Do what was recorded."""
        self._call("cuGraphLaunch", executable, stream)

    def forget(self, executable: int) -> None:
        """Free what was recorded."""
        self._call("cuGraphExecDestroy", executable)

    def _call(self, name: str, *arguments) -> None:
        status = getattr(self._library, name)(*arguments)
        if status == _OUT_OF_MEMORY:
            raise PerceptionError("OUT_OF_MEMORY", "the GPU has no memory left for this query; use fewer boxes.")
        if status:
            text = c_char_p()
            self._library.cuGetErrorName(status, byref(text))
            raise PerceptionError("INTERNAL", f"{name}: {(text.value or b'error ' + str(status).encode()).decode()}")


class Memory:
    """Device memory, given back when nobody holds it."""

    def __init__(self, cuda: Cuda, address: int, size: int) -> None:
        self._cuda, self.address, self.size = cuda, address, size

    def __del__(self) -> None:
        # At the interpreter's end the driver may be gone before us.
        with contextlib.suppress(PerceptionError, TypeError, AttributeError):
            self._cuda.free(self.address)


@functools.cache
def cuda() -> Cuda:
    """The device of this process. Raises PerceptionError INVALID_QUERY where there is none."""
    return Cuda()


def _driver_version() -> str:
    """The kernel driver's version, such as "560.35.03"; Jetson's release where there is no such file."""
    for path in (Path("/proc/driver/nvidia/version"), Path("/etc/nv_tegra_release")):
        if path.is_file():
            line = path.read_text().splitlines()[0]
            words = [word for word in line.split() if word[0].isdigit()]
            return words[0] if "Kernel Module" in line and words else line
    return "unknown"


def _no_device(found: str) -> PerceptionError:
    return PerceptionError("INVALID_QUERY", f"backend: expected an NVIDIA GPU, found {found}; use the backend onnxruntime-cpu.")
