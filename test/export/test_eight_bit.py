"""Vision with 8-bit products: the shipped graphs show the same masks, a bundle with them is read like any other, and a GPU gets fp16."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from PIL import Image
from safetensors.numpy import load_file

from pixel_perception import cli
from pixel_perception.bundle import Bundle, Thresholds, write_manifest
from pixel_perception.export import command, skeleton
from pixel_perception.export.bundle import EIGHT_BIT, TRAINED, VISION, graph_spec
from pixel_perception.export.eight_bit import LARGEST, LEAST, PRODUCT, precision, quantize, to_eight_bit, to_fp32
from pixel_perception.export.gpu_graph import gpu_graph
from pixel_perception.export.tiny import write_tiny_bundle
from pixel_perception.geometry import Letterbox
from pixel_perception.perception import Perception
from pixel_perception.runtime.agreement import cosine
from pixel_perception.types import Query

ROOT = Path(__file__).parents[2]
PARTS = ROOT / "weights" / "compact"


@pytest.fixture(scope="module")
def graphs():
    """The shipped vision graphs with their weights, in fp32."""
    manifest, tensors = Bundle.listed(PARTS).manifest, load_file(PARTS / TRAINED)
    return {name: skeleton.fill(onnx.load(PARTS / manifest.graphs[name].file), tensors, name) for name in VISION}


def run(model, **feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    results = session.run(None, {name: value for name, value in feeds.items() if name in wanted})
    return dict(zip([o.name for o in session.get_outputs()], results, strict=True))


@pytest.fixture(scope="module")
def seen(graphs):
    """Feature maps of a picture of the demo, the boxes proposed in it, and what fp32 makes of them."""
    with Image.open(sorted((ROOT / "demo" / "recording").glob("900*-0.jpg"))[0]) as picture:
        frame = np.asarray(picture.convert("RGB"))
    maps = run(graphs["image_encoder"], image=Letterbox(frame.shape[1], frame.shape[0]).image(frame)[None])
    proposed = run(graphs["proposals"], **maps)
    maps["boxes"] = proposed["boxes"][:, proposed["scores"][0] >= Thresholds().proposal]
    maps |= run(graphs["prompt_feature_extractor"], **maps)
    return maps, run(graphs["pixel_decoder"], **maps, queries=maps["object_queries"])


def overlaps(wanted, found):
    pairs = [(a > 0, b > 0) for a, b in zip(wanted["mask_logits"][0], found["mask_logits"][0], strict=True)]
    return [(a & b).sum() / (a | b).sum() for a, b in pairs if a.any() or b.any()]


def decoded(graphs, maps):
    queries = run(graphs["prompt_feature_extractor"], **maps)["object_queries"]
    return run(graphs["pixel_decoder"], **maps, queries=queries)


def test_masks_of_the_shipped_model(graphs, seen):
    maps, wanted = seen
    found = decoded(graphs | {name: to_eight_bit(graphs[name]) for name in EIGHT_BIT}, maps)
    assert len(overlaps(wanted, found)) > 3 and np.mean(overlaps(wanted, found)) > 0.99
    assert np.abs(wanted["presence"] - found["presence"]).max() < 0.1


def test_queries_of_the_shipped_model(graphs):
    states = np.random.default_rng(0).normal(size=(3, 4, 576)).astype(np.float32)
    (wanted,), (found,) = (run(m, hidden_states=states).values() for m in (graphs["token_fusion"], to_eight_bit(graphs["token_fusion"])))
    assert cosine(wanted.reshape(3, -1), found.reshape(3, -1)).min() > 0.999


def test_a_gpu_gets_fp16_of_them(graphs, seen, tmp_path):
    maps, wanted = seen
    halves = dict(graphs)
    for name in EIGHT_BIT:
        onnx.save(to_eight_bit(graphs[name]), tmp_path / f"{name}.onnx")
        halves[name] = gpu_graph(tmp_path / f"{name}.onnx")
        assert {node.domain for node in halves[name].graph.node} == {""} and [o.domain for o in halves[name].opset_import] == [""]
        assert TensorProto.FLOAT16 in {t.data_type for t in halves[name].graph.initializer}
    assert np.mean(overlaps(wanted, decoded(halves, maps))) > 0.99


@pytest.mark.parametrize("name", [*EIGHT_BIT, "pixel_decoder"])
def test_there_and_back(graphs, name):
    model = graphs[name]
    there = to_eight_bit(model)
    assert (precision(model), precision(there)) == ("fp32", "int8") and there.ByteSize() < 0.9 * model.ByteSize()
    back = to_fp32(there)
    assert Counter(n.op_type for n in back.graph.node) == Counter(n.op_type for n in model.graph.node)
    assert list(back.graph.input) == list(model.graph.input) and list(back.graph.output) == list(model.graph.output)
    before, after = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, back))
    assert before.keys() == after.keys()
    changed = {n.input[1].removesuffix(".int8") for n in there.graph.node if n.op_type == PRODUCT}
    for key, value in before.items():
        if key in changed:
            scales = quantize(value)[1]
            assert value.size >= LEAST and (np.abs(value - after[key]) <= 0.501 * scales).all()
        else:
            np.testing.assert_array_equal(value, after[key])
    assert to_fp32(model) is model


def test_weights_by_hand():
    values, scales = quantize(np.array([[1.2, 0.0, -0.5], [-2.0, 0.0, 0.2]], np.float32))
    np.testing.assert_array_equal(values, [[38, 0, -LARGEST], [-LARGEST, 0, 25]])
    np.testing.assert_allclose(scales, [2 / LARGEST, 0, 0.5 / LARGEST], rtol=1e-6)


def test_a_bundle_with_them(tmp_path, capsys):
    plain = write_tiny_bundle(tmp_path / "plain")
    write_tiny_bundle(tmp_path / "eight")
    path = tmp_path / "eight" / "token_fusion.onnx"
    model = to_eight_bit(onnx.load(path))
    onnx.save(model, path)
    graphs = plain.manifest.graphs | {"token_fusion": graph_spec(path, model, precision(model))}
    write_manifest(tmp_path / "eight", dataclasses.replace(plain.manifest, graphs=graphs))

    assert cli.main(["bundle", "verify", str(tmp_path / "eight")]) == 0
    assert cli.main(["inspect", str(tmp_path / "eight")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "token_fusion" in line and "opset" in line]
    assert line.endswith("int8, opset 20")

    frame = np.full((480, 640, 3), 90, np.uint8)
    frame[100:200, 70:170] = 200, 30, 30
    masks = [Perception.open(tmp_path / name, threads=1).ask(frame, Query("the red mug")).instances[0].mask.full(640, 480)
             for name in ("plain", "eight")]  # fmt: skip
    assert masks[0].sum() > 8000 and (masks[0] & masks[1]).sum() > 0.98 * (masks[0] | masks[1]).sum()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--vision", "int3"], "argument --vision: invalid choice: 'int3'"),
        (["--vision", "int8", "--config", "pixellm-7b"], "--vision int8 is for the compact model; vision of pixellm-7b is fp32"),
    ],
)
def test_a_precision_that_is_not_offered(arguments, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([str(tmp_path), "--out", str(tmp_path / "out"), *arguments])
    assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()
