"""TensorRT accepts and builds every graph, ahead of time and without a GPU; what it does not know is reported by name."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file

from pixel_perception.bundle import FAMILIES, Manifest
from pixel_perception.errors import PerceptionError
from pixel_perception.export import skeleton
from pixel_perception.export.base_weights import DecoderShape
from pixel_perception.export.build_engine import build, keep_timings, use_timings
from pixel_perception.export.bundle import TRAINED, VISION
from pixel_perception.export.gpu_graph import gpu_graph, write_gpu_graph
from pixel_perception.export.half import to_half
from pixel_perception.export.plain_graph import plain_graph
from pixel_perception.export.tiny import write_tiny_bundle
from pixel_perception.runtime.engine_key import EngineKey, Machine, key_of

trt = pytest.importorskip("tensorrt_rtx")
PARTS = Path(__file__).parents[2] / "weights" / "compact"
VERSION = f"tensorrt_rtx {trt.__version__}"
AMPERE = Machine.ahead_of_time(VERSION, "8.6")
REAL = DecoderShape(layers=2, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=4096, rms_epsilon=1e-5,
                    rope_base=1e5, positions=4096)  # fmt: skip
"""SmolLM2-135M but for 28 of its layers and most of its words."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def key(graph, machine=AMPERE):
    return EngineKey(graph, "0" * 64, "0" * 64, "fp16", "", **dataclasses.asdict(machine))


def built(model, graph, tmp_path, machine=AMPERE):
    """The engine, and the progress that was reported."""
    done = []
    onnx.save(model, tmp_path / "graph.onnx")
    engine = build(trt, tmp_path / "graph.onnx", key(graph, machine), tmp_path / "timing", done.append)
    return len(engine), done


@pytest.mark.parametrize("graph", FAMILIES["compact"])
def test_tiny(tiny, graph, tmp_path):
    size, done = built(gpu_graph(tiny.graph(graph)), graph, tmp_path)
    assert size > 100_000 and 0.5 < max(done) <= 1 and min(done) >= 0


@pytest.mark.parametrize("graph", VISION)
def test_shipped_vision(graph, tmp_path):
    manifest = Manifest.from_json((PARTS / "manifest.json").read_text())
    model = skeleton.fill(onnx.load(PARTS / manifest.graphs[graph].file), load_file(PARTS / TRAINED), graph)
    size, _ = built(to_half(model, graph), graph, tmp_path)
    assert size > 500_000


@pytest.mark.parametrize("graph", FAMILIES["pixellm"])
def test_pixellm(pixellm, graph, tmp_path):
    path = write_gpu_graph(pixellm.bundle.graph(graph), "auto", tmp_path / "graph.onnx")
    assert len(build(trt, path, key(graph), tmp_path / "timing", lambda done: None)) > 100_000


def test_language_with_the_shapes_of_the_shipped_model(tmp_path):
    rng = np.random.default_rng(0)
    wide, narrow = REAL.heads * REAL.head_dim, REAL.kv_heads * REAL.head_dim
    sizes = {"q": (wide, 576), "k": (narrow, 576), "v": (narrow, 576), "o": (576, wide), "gate": (1536, 576), "up": (1536, 576),
             "down": (576, 1536)}  # fmt: skip
    weights = {"embeddings": rng.normal(size=(REAL.vocabulary, 576)).astype(np.float32), "final_norm": np.ones(576, np.float32)}
    for i in range(REAL.layers):
        weights |= {f"layers.{i}.{part}": rng.normal(size=size).astype(np.float32) for part, size in sizes.items()}
        weights |= {f"layers.{i}.{norm}": np.ones(576, np.float32) for norm in ("attention_norm", "mlp_norm")}
    engines = {name: built(plain_graph(REAL, weights, name), "language_model", tmp_path)[0] for name in ("int4", "int8", "fp16")}
    # 4-bit weights stay 4-bit in the engine: 9.4 million weights at 2 and at 0.5625 bytes. Not all of the 8-bit ones stay.
    assert engines["fp16"] - engines["int4"] > 8_000_000 and engines["int4"] < engines["int8"] < engines["fp16"]


def test_unsupported_operators_are_named(tiny, tmp_path):
    fused = onnx.load(tiny.graph("language_model"))
    with pytest.raises(PerceptionError) as caught:
        built(fused, "language_model", tmp_path)
    assert "language_model: expected operators that tensorrt_rtx" in caught.value.message and "\n" not in caught.value.message
    assert "found the unsupported layers.0." in caught.value.message  # which of its contrib operators depends on the version


@pytest.mark.parametrize(("name", "said"), [("odd one", "odd one"), ("", "a node without a name")])
def test_an_unknown_operator(name, said, tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("FastGelu", ["x"], ["y"], name, domain="example.org")], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("example.org", 1)], ir_version=10)
    with pytest.raises(PerceptionError, match=rf"found the unsupported {said} \(FastGelu\)"):
        built(model, "proposals", tmp_path)


@pytest.mark.parametrize("axis", ["depth", None])
def test_an_axis_of_unknown_size(axis, tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", axis]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(PerceptionError, match=f"proposals: expected changing axes of x among batch, .*, found {axis or 'one without'}"):
        built(model, "proposals", tmp_path)


def test_timings_are_read_and_kept(tmp_path):
    """TensorRT for RTX has the interface, and nothing behind it."""
    config, file = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config(), tmp_path / "timing.cache"
    for before in (None, b"damaged"):
        if before:
            file.write_bytes(before)
        use_timings(config, file)
        keep_timings(config, file)
        assert file.read_bytes() == bytes(memoryview(config.get_timing_cache().serialize())) != b""
    assert [path.name for path in tmp_path.iterdir()] == ["timing.cache"]


def test_a_compute_capability_that_it_cannot_build_for(tiny, tmp_path):
    model = gpu_graph(tiny.graph("location_head"))
    with pytest.raises(PerceptionError, match=r"ahead of time \(7.5, 8.0, 8.6, .*\), found 8.7"):
        built(model, "location_head", tmp_path, Machine.ahead_of_time(VERSION, "8.7"))


def test_the_key_of_a_graph(tiny):
    wanted = key_of(tiny.graph("proposals"), "fp16", AMPERE)
    assert wanted.graph == "proposals" and wanted.compute_capability == "8.6" and '"batch": [1, 1, 8]' in wanted.profiles
