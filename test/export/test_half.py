"""Vision in fp16: the shipped graphs answer as in fp32, and what fp16 would spoil is not computed in it."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import load_file

from pixel_perception.bundle import Manifest
from pixel_perception.errors import PerceptionError
from pixel_perception.export import skeleton
from pixel_perception.export.bundle import TRAINED, VISION
from pixel_perception.export.half import to_half
from pixel_perception.geometry import Letterbox

ROOT = Path(__file__).parents[2]
PARTS = ROOT / "weights" / "compact"


@pytest.fixture(scope="module")
def graphs():
    """The shipped vision graphs with their weights, in fp32."""
    manifest = Manifest.from_json((PARTS / "manifest.json").read_text())
    tensors = load_file(PARTS / TRAINED)
    return {name: skeleton.fill(onnx.load(PARTS / manifest.graphs[name].file), tensors, name) for name in VISION}


@pytest.fixture(scope="module")
def halves(graphs):
    return {name: to_half(model, name) for name, model in graphs.items()}


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(models, name, **feeds):
    loaded = session(models[name])
    wanted = {i.name for i in loaded.get_inputs()}
    return dict(zip([o.name for o in loaded.get_outputs()], loaded.run(None, {k: v for k, v in feeds.items() if k in wanted}), strict=True))


def see(models, picture):
    """Mask logits of the objects that are proposed, through every graph that a frame passes."""
    letterbox = Letterbox(picture.shape[1], picture.shape[0])
    maps = run(models, "image_encoder", image=letterbox.image(picture)[None])
    boxes = np.array([[0.1, 0.1, 0.5, 0.6], [0.4, 0.3, 0.8, 0.9], [0, 0, 1, 1]], np.float32)
    proposed = run(models, "proposals", **maps)
    boxes = np.concatenate([boxes, EXACT.setdefault("b", proposed["boxes"][0])])
    prompted = run(models, "prompt_feature_extractor", **maps, boxes=boxes[None])
    decoded = run(models, "pixel_decoder", **maps, queries=prompted["object_queries"])
    return proposed, prompted["visual_tokens"], decoded


EXACT = {}
"""Boxes that fp32 proposes: both are asked about the same ones."""


def test_masks_of_the_shipped_model(graphs, halves):
    files = sorted((ROOT / "demo" / "recording").glob("900*-0.jpg"))
    overlaps, cosines = [], []
    for file in files[:2]:
        EXACT.clear()
        picture = np.asarray(Image.open(file).convert("RGB"))
        proposed, tokens, decoded = see(graphs, picture)
        half_proposed, half_tokens, half_decoded = see(halves, picture)
        assert np.abs(proposed["scores"] - half_proposed["scores"]).max() < 0.01
        a, b = tokens.reshape(-1, tokens.shape[-1]), half_tokens.reshape(-1, tokens.shape[-1])
        cosines += list((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
        assert np.abs(decoded["presence"] - half_decoded["presence"]).max() < 0.05
        for wanted, found in zip(decoded["mask_logits"][0] > 0, half_decoded["mask_logits"][0] > 0, strict=True):
            if wanted.any() or found.any():
                overlaps.append((wanted & found).sum() / (wanted | found).sum())
    assert len(overlaps) > 10 and np.mean(overlaps) >= 0.98 and min(cosines) > 0.999


@pytest.mark.parametrize(("name", "shape"), [("token_fusion", (3, 4, 576)), ("location_head", (5, 576))])
def test_heads_of_the_shipped_model(graphs, halves, name, shape):
    states = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (wanted,), (found,) = (run(models, name, hidden_states=states).values() for models in (graphs, halves))
    np.testing.assert_allclose(found, wanted, atol=5e-3)


def test_types(graphs, halves):
    for name, model in halves.items():
        for before, after in zip([*graphs[name].graph.input, *graphs[name].graph.output], [*model.graph.input, *model.graph.output],
                                 strict=True):  # fmt: skip
            assert before == after
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
        for node in model.graph.node:
            if node.op_type in ("Conv", "MatMul", "Gemm"):
                assert types[node.output[0]] == TensorProto.FLOAT16, node.name
            if node.op_type in ("LayerNormalization", "InstanceNormalization", "Softmax", "Exp", "Div", "GridSample", "ReduceSum"):
                assert types[node.output[0]] == TensorProto.FLOAT, node.name
        assert model.ByteSize() < 0.7 * graphs[name].ByteSize()


def test_softmax_is_not_guarded_against_rows_that_see_nothing():
    """As torch's exporter writes attention with a mask; TensorRT compiles it without."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "mask", "y")]
    nodes = [helper.make_node("Add", ["x", "mask"], ["scores"]), helper.make_node("Softmax", ["scores"], ["s"]),
             helper.make_node("IsNaN", ["s"], ["nan"]), helper.make_node("Where", ["nan", "zero", "s"], ["safe"]),
             helper.make_node("MatMul", ["safe", "v"], ["y"])]  # fmt: skip
    constants = [numpy_helper.from_array(np.float32(0), "zero"), numpy_helper.from_array(np.eye(3, dtype=np.float32), "v")]
    graph = helper.make_graph(nodes, "g", values[:2], values[2:], constants)
    models = {"wanted": (whole := helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)),
              "found": to_half(whole, "attention")}  # fmt: skip
    assert [n.op_type for n in models["found"].graph.node] == ["Add", "Softmax", "Cast", "MatMul", "Cast"]
    feeds = {"x": np.array([[1, 2, 3], [4, 5, 6]], np.float32), "mask": np.array([[0, -np.inf, 0], [-np.inf, -np.inf, 0]], np.float32)}
    wanted, found = (run(models, name, **feeds)["y"] for name in models)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_a_weight_that_fp16_cannot_hold():
    weight = numpy_helper.from_array(np.full((2, 2), 1e6, np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], "g", values[:1], values[1:], [weight])
    with pytest.raises(PerceptionError, match="small, weight w: expected numbers of at most 65504 for fp16, found 1e"):
        to_half(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), "small")
