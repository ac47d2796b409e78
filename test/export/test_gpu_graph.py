"""Graphs whose weights lie beside them, as those of 7B do: converted one weight at a time, to the same."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pixel_perception.errors import PerceptionError
from pixel_perception.export.base_weights import DecoderShape
from pixel_perception.export.gpu_graph import gpu_graph, write_gpu_graph
from pixel_perception.export.language_graph import language_graph

LLAMA = DecoderShape(layers=1, hidden=256, intermediate=352, heads=2, kv_heads=2, head_dim=128, vocabulary=32008, rms_epsilon=1e-5,
                     rope_base=1e4, positions=256)  # fmt: skip
"""LLaMA 7B but for how wide and deep it is: as many keys as queries, heads of 128, an output layer of its own, odd blocks."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Folders with the fused graph of random weights, whose large ones lie beside it: precision -> path."""
    rng, paths = np.random.default_rng(0), {}
    sizes = {"q": (256, 256), "k": (256, 256), "v": (256, 256), "o": (256, 256), "gate": (352, 256), "up": (352, 256), "down": (256, 352)}
    weights = {f"layers.0.{part}": rng.normal(0, 0.05, size).astype(np.float32) for part, size in sizes.items()}
    norms = "layers.0.attention_norm", "layers.0.mlp_norm", "final_norm"
    weights |= {name: rng.uniform(0.5, 1.5, 256).astype(np.float32) for name in norms}
    weights["output"] = rng.normal(0, 0.05, (32008, 256)).astype(np.float32)
    for precision in ("int8", "int4", "fp32"):
        paths[precision] = tmp_path_factory.mktemp(precision) / "language_model.onnx"
        with open(f"{paths[precision]}.data", "wb") as beside:
            onnx.save(language_graph(LLAMA, weights, precision, beside=beside), paths[precision])
    return paths


def written(path, precision, folder):
    """The written GPU graph with its external data loaded, as bytes."""
    out = write_gpu_graph(path, precision, folder / "graph.onnx")
    assert out.stat().st_size < 60_000 < (folder / "graph.onnx.data").stat().st_size
    return onnx.load(out)


def values(model):
    return {t.name: (t.data_type, numpy_helper.to_array(t).tobytes()) for t in model.graph.initializer}


@pytest.mark.parametrize(("stored", "precision"), [("int8", "auto"), ("int8", "int8"), ("int4", "auto"), ("fp32", "fp16")])
def test_a_llama_beside_its_weights(llama, stored, precision, tmp_path):
    model, whole = written(llama[stored], precision, tmp_path), gpu_graph(llama[stored], precision)
    assert model.graph.node == whole.graph.node and values(model) == values(whole)
    kind = {"int8": TensorProto.INT8, "int4": TensorProto.INT4}.get(stored if precision == "auto" and stored == "int4" else precision)
    assert {t.data_type for t in model.graph.initializer if t.name.endswith(".values")} == ({kind} if kind else set())


@pytest.mark.parametrize("stored", ["int8", "fp32"])
def test_a_llama_computes_the_same(llama, stored, tmp_path):
    x = np.random.default_rng(1).normal(size=(1, 9, 256)).astype(np.float32)
    write_gpu_graph(llama[stored], "fp16", tmp_path / "graph.onnx")
    found = []
    for path, places in ((llama[stored], 0), (tmp_path / "graph.onnx", 1)):  # the plain graph has one place, which is hidden
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        past = {i.name: np.zeros((1, 2, places, 128), np.float16 if "16" in i.type else np.float32) for i in session.get_inputs()
                if "key_values" in i.name}  # fmt: skip
        bias = np.concatenate([np.full((9, places), -1e9, np.float32), np.where(np.tri(9, dtype=bool), 0, -1e9).astype(np.float32)], 1)
        feeds = {"inputs_embeds": x, "position_ids": np.arange(9)[None], "attention_bias": bias[None, None], "asked": np.array([8])}
        found.append(session.run(["logits", "hidden_states"], feeds | past))
    for wanted, ours in zip(*found, strict=True):
        cosine = (wanted * ours).sum(-1) / np.linalg.norm(wanted, axis=-1) / np.linalg.norm(ours, axis=-1)
        assert cosine.min() > (0.99999 if stored == "fp32" else 0.9995)  # the fused one rounds activations to 8 bits


def test_weights_that_are_not_all_there(llama, tmp_path):
    """A truncated download, and one that never came."""
    path, data = tmp_path / "language_model.onnx", tmp_path / "language_model.onnx.data"
    path.write_bytes(llama["int8"].read_bytes())
    with pytest.raises(PerceptionError, match=r"model.onnx.data: expected at least \d+ bytes, for the weight .*, found no such file"):
        gpu_graph(path, "fp16")
    whole = (llama["int8"].parent / data.name).read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PerceptionError, match=rf"expected at least \d+ bytes, for the weight .*, found {len(whole) // 2} bytes"):
        write_gpu_graph(path, "fp16", tmp_path / "graph.onnx")


def test_vision_beside_its_weights(tmp_path):
    rng = np.random.default_rng(2)
    large, small = rng.normal(size=(64, 64)).astype(np.float32), rng.normal(size=64).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "large"], ["z"], "product"), helper.make_node("Add", ["z", "small"], ["y"], "sum")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64]) for name in "xy"]
    weights = [numpy_helper.from_array(large, "large"), numpy_helper.from_array(small, "small")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    path = tmp_path / "image_encoder.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path, save_as_external_data=True,
              location="image_encoder.onnx.data", size_threshold=1024)  # fmt: skip
    out = write_gpu_graph(path, "fp16", tmp_path / "graph.onnx")
    assert (tmp_path / "graph.onnx.data").stat().st_size == 2 * 64 * 64
    x = rng.normal(size=(3, 64)).astype(np.float32)
    ours, theirs = (onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0] for p in (out, path))
    np.testing.assert_allclose(ours, theirs, atol=0.05)
