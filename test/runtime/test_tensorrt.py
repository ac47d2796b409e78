"""The TensorRT backend as far as it goes without a GPU.

TensorRT's interface is checked against the installed library. What we do around it (binding, profiles, keys and values,
recorded steps) runs for real against `HostEngine`: the same graphs on ONNX Runtime behind TensorRT's interface, reading and
writing at the addresses that are bound, with the host's memory in the place of the device's.
"""

import ast
import ctypes
import inspect
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pixel_perception.errors import PerceptionError
from pixel_perception.export.fused_language import FusedLanguage
from pixel_perception.export.gpu_graph import gpu_graph
from pixel_perception.export.language_graph import language_graph
from pixel_perception.export.tiny import write_tiny_bundle
from pixel_perception.runtime import cuda, tensorrt, tensorrt_context
from pixel_perception.runtime.engine_key import POSITIONS, STEP, profiles_of
from pixel_perception.runtime.onnxruntime import OnnxRuntime
from pixel_perception.runtime.tensorrt import TensorRtSession
from pixel_perception.runtime.tensorrt_decoder import ALIGNED, KEPT, PLACES, Layout, TensorRtDecoder
from pixel_perception.runtime.tensorrt_library import find_tensorrt

trt = pytest.importorskip("tensorrt_rtx")


class HostCuda:
    """What `cuda.Cuda` offers, on the host's memory. A stream does everything at once; a recording is played by its engine."""

    device = "the host"

    def __init__(self):
        self.recording, self.launches = None, 0

    def use(self):
        pass

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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def model(tiny):
    return gpu_graph(tiny.graph("language_model"))


@pytest.fixture
def device():
    return HostCuda()


@pytest.fixture
def decoder(model, device):
    return TensorRtDecoder(trt, HostEngine(model, device, "language_model"), device, 0, "language_model")


@pytest.fixture(scope="module")
def reference(tiny, tmp_path_factory):
    """The same weights in the fused graph, in fp32: the bundle's own rounds activations to 8 bits."""
    path = tmp_path_factory.mktemp("exact") / "language_model.onnx"
    weights = FusedLanguage(onnx.load(tiny.graph("language_model")), path)
    onnx.save(language_graph(weights.shape, weights, "fp32"), path)
    return OnnxRuntime(threads=1).decoder(path)


def embeddings(count, rows=1, seed=0):
    return np.random.default_rng(seed).normal(0, 0.5, (rows, count, 64)).astype(np.float32)


def same(step, wanted):
    """fp16 against fp32."""
    a, b = np.concatenate(list(step.states)), np.concatenate(list(wanted.states))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    near = all(np.abs(x - y).max() < 0.02 for x, y in zip(step.logits, wanted.logits, strict=True) if x.size)
    return cosine.min() > 0.99999 and near and step.past.lengths == wanted.past.lengths


def test_reading_in_steps_equals_the_other_backend(decoder, reference, device):
    past = expected = None
    for i, count in enumerate((30, 1, 1, 1, 4, 1, 1, 5, 1)):
        x = embeddings(count, seed=i)
        step, wanted = decoder.read(x, past), reference.read(x, expected)
        assert same(step, wanted), i
        past, expected = step.past, wanted.past
    assert device.launches == 5  # six single tokens, of which the first prepares; the second is recorded and replayed too


def test_a_past_has_any_number_of_continuations(decoder, reference):
    x = embeddings(20)
    past, expected = decoder.read(x, None).past, reference.read(x, None).past
    chains = []
    for seed in (1, 2, 3):
        step, wanted = decoder.read(embeddings(6, seed=seed), past), reference.read(embeddings(6, seed=seed), expected)
        assert same(step, wanted)
        chains.append((step.past, wanted.past))
    for seed in (4, 5):  # in turn, so that each would overwrite the others if they shared places
        for i, (mine, other) in enumerate(chains):
            step, wanted = decoder.read(embeddings(1, seed=seed), mine), reference.read(embeddings(1, seed=seed), other)
            assert same(step, wanted)
            chains[i] = step.past, wanted.past
    assert same(decoder.read(embeddings(1, seed=9), past), reference.read(embeddings(1, seed=9), expected))


def test_what_was_read_ahead_in_vain_is_forgotten(decoder, reference):
    past, expected = decoder.read(embeddings(10), None).past, reference.read(embeddings(10), None).past
    asked = [0, 3, 8]
    step, wanted = decoder.read(embeddings(9, seed=1), past, asked), reference.read(embeddings(9, seed=1), expected, asked)
    assert len(step.logits) == len(wanted.logits) == 3 and same(step, wanted)
    again, known = decoder.read(embeddings(2, seed=2), step.past.first(14)), reference.read(embeddings(2, seed=2), wanted.past.first(14))
    assert again.past.lengths == known.past.lengths == (16,) and same(again, known)
    # The same as if the four that were right had been read alone.
    right = reference.read(embeddings(9, seed=1)[:, :4], expected).past
    assert same(reference.read(embeddings(2, seed=2), right), known)


def test_rows_read_their_own_parts(decoder, reference):
    x = embeddings(12)
    past, expected = decoder.read(x, None).past, reference.read(x, None).past
    for counts in ((5, 2, 7), (1, 4, 0), (0, 1, 2), (1, 1, 1), (0, 1, 0)):
        parts = [embeddings(max(c, 1), seed=c)[0, :c] for c in counts]
        step, wanted = decoder.read(parts, past), reference.read(parts, expected)
        assert same(step, wanted)
        past, expected = step.past, wanted.past
    assert past.lengths == (19, 21, 22)
    with pytest.raises(ValueError, match="expected one for each of 3 rows"):
        decoder.read(parts[:2], past)
    with pytest.raises(ValueError, match="not all empty"):
        decoder.read([embeddings(1)[0, :0]] * 3, past)


def test_more_than_one_step_holds(decoder, reference):
    """A long prompt, and rows of which the last one alone is asked in the second step."""
    x = embeddings(STEP + 40)
    assert same(decoder.read(x, None), reference.read(x, None))
    step, wanted = decoder.read(x[:, :12], None), reference.read(x[:, :12], None)
    parts = [embeddings(STEP + 3, seed=1)[0], embeddings(9, seed=2)[0]]
    assert same(decoder.read(parts, step.past), reference.read(parts, wanted.past))


def test_places_grow_and_end(decoder, reference):
    x = embeddings(PLACES - 2)
    past, expected = decoder.read(x, None).past, reference.read(x, None).past
    for seed in range(5):
        step, wanted = decoder.read(embeddings(1, seed=seed), past), reference.read(embeddings(1, seed=seed), expected)
        assert same(step, wanted)
        past, expected = step.past, wanted.past
    assert past.lease.places.capacity == 2 * PLACES
    with pytest.raises(PerceptionError, match=f"expected at most {POSITIONS} positions of all rows together, found {POSITIONS + 1}"):
        decoder.read(embeddings(POSITIONS + 1 - past.lengths[0]), past)


def test_places_are_given_back_and_used_again(decoder):
    past = decoder.read(embeddings(4), None).past
    memory = past.lease.places.memory
    del past
    again = decoder.read(embeddings(6), None).past
    assert again.lease.places.memory is memory
    several = [decoder.read(embeddings(4), None).past for _ in range(KEPT + 4)]
    del several, again
    decoder.read(embeddings(4), None)
    assert len(decoder._free) <= KEPT + 1


def test_two_threads_may_decode(decoder, reference):
    wrong = []

    def work(seed):
        past = expected = None
        for i in range(6):
            x = embeddings(5 if i == 0 else 1, seed=10 * seed + i)
            step, wanted = decoder.read(x, past), reference.read(x, expected)
            past, expected = step.past, wanted.past
            if not same(step, wanted):
                wrong.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


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
    with pytest.raises(PerceptionError, match="expected the engine of a language model, found no input asked"):
        TensorRtDecoder(trt, engine, device, 0, "location_head")


@pytest.mark.parametrize(("heads", "size", "positions"), [(3, 64, 1), (3, 64, 256), (32, 128, 7), (1, 8, 3)])
def test_layout(heads, size, positions):
    names = ["inputs_embeds", "asked", *(f"past_key_values.{i}.{kind}" for i in range(12) for kind in ("value", "key"))]
    layout = Layout.of(names, heads, size, 2)
    assert layout.caches[:2] == ("past_key_values.0.key", "past_key_values.0.value") and layout.caches[-1] == "past_key_values.11.value"
    assert layout.new("past_key_values.3.key") == "new_key_values.3.key"
    assert layout.block(positions) % ALIGNED == 0 and layout.block(positions) >= heads * positions * size * 2
    assert layout.block(positions) == layout.rows(positions) * layout.pitch(positions)


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
