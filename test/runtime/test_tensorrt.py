"""The TensorRT backend as far as it goes without a GPU.

TensorRT's interface is checked against the installed library. What we do around it (binding, profiles) runs for real against
`HostEngine`: the same graphs on ONNX Runtime behind TensorRT's interface, reading and writing at the addresses that are bound, with the
host's memory in the place of the device's. The decoder has its own tests.
"""

import ast
import ctypes
import inspect
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from host_device import HostCuda, HostEngine

from pixel_perception.errors import PerceptionError
from pixel_perception.export.gpu_graph import gpu_graph
from pixel_perception.runtime import cuda, tensorrt, tensorrt_context
from pixel_perception.runtime.device_decoder import DeviceDecoder
from pixel_perception.runtime.onnxruntime import OnnxRuntime
from pixel_perception.runtime.tensorrt import TensorRtSession
from pixel_perception.runtime.tensorrt_context import Context
from pixel_perception.runtime.tensorrt_library import find_tensorrt

trt = pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def device():
    return HostCuda()


@pytest.mark.parametrize("graph", ["image_encoder", "pixel_decoder", "location_head"])
def test_a_session_equals_the_other_backend(tiny, device, graph):
    session = TensorRtSession(trt, HostEngine(gpu_graph(tiny.graph(graph)), device, graph), device, 0, graph)
    other = OnnxRuntime(threads=1).session(tiny.graph(graph))
    assert set(session.inputs) == set(other.inputs) and set(session.outputs) == set(other.outputs)
    shapes = {i.name: i.shape for i in onnxruntime.InferenceSession(tiny.graph(graph)).get_inputs()}
    rng = np.random.default_rng(0)
    for size in (2, 1, 3):  # memory is kept where it is large enough
        feeds = {name: rng.uniform(0, 1, [d if isinstance(d, int) else size for d in shape]).astype(np.float32)
                 for name, shape in shapes.items()}  # fmt: skip
        if "image" in feeds:
            feeds["image"] = (255 * feeds["image"]).astype(np.uint8)
        found, wanted = session.run(feeds), other.run(feeds)
        for name, value in wanted.items():
            assert found[name].dtype == value.dtype and found[name].shape == value.shape
            np.testing.assert_allclose(found[name], value, atol=0.05, rtol=0.01)


def test_more_than_the_profile_holds(tiny, device):
    session = TensorRtSession(trt, HostEngine(gpu_graph(tiny.graph("location_head")), device, "location_head"), device, 0, "heads.onnx")
    with pytest.raises(PerceptionError, match=r"heads.onnx: expected hidden_states of shape \(1, 64\) to \(1024, 64\), found \(2000, 64\)"):
        session.run({"hidden_states": np.zeros((2000, 64), np.float32)})


def test_an_engine_that_is_no_language_model(tiny, device):
    engine = HostEngine(gpu_graph(tiny.graph("location_head")), device, "location_head")
    with pytest.raises(PerceptionError, match="location_head: expected a language model, found no input asked"):
        DeviceDecoder(lambda profile: Context(trt, engine, profile, device, 0, "location_head"), device, 0, "location_head")


def test_the_copy_has_the_size_that_the_driver_expects():
    assert ctypes.sizeof(cuda._Copy3D) == 200 and cuda._Copy3D.dstXInBytes.offset == 88 and cuda._Copy3D.WidthInBytes.offset == 176


def used(module, owner):
    """Attributes that a module asks of `owner` (the end of an expression such as self._context)."""
    tree = ast.parse(inspect.getsource(module))
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] == owner}


def test_the_library_has_what_is_asked_of_it():
    assert used(tensorrt_context, "_context") - set(dir(trt.IExecutionContext)) == set()
    assert len(used(tensorrt_context, "engine")) > 3
    assert (used(tensorrt_context, "engine") | used(tensorrt_context, "_engine")) - set(dir(trt.ICudaEngine)) == set()
    assert used(tensorrt, "_runtime") - set(dir(trt.Runtime)) == set()
    assert used(tensorrt, "_trt") - set(dir(trt)) == set()


def test_the_library_that_is_installed(monkeypatch):
    module, version = find_tensorrt()
    assert module is trt and version == f"tensorrt_rtx {trt.__version__}" or version.startswith("tensorrt ")
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PerceptionError, match=r"expected TensorRT to be installed \(pip install .*\), found none"):
        find_tensorrt()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_without_a_gpu_the_backend_says_so():
    with pytest.raises(PerceptionError, match="backend: expected an NVIDIA GPU, found no driver of it .*use the backend onnxruntime-cpu"):
        tensorrt.TensorRt()
