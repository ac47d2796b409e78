"""What a graph of a bundle becomes on a GPU: vision in fp16, language in plain operators.

A bundle is made for ONNX Runtime and holds everything that is needed: the weights of its fused language graph are read back
here, so that a robot needs neither the base weights nor torch to build engines.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pixel_perception.errors import PerceptionError
from pixel_perception.export.base_weights import DecoderShape
from pixel_perception.export.half import to_half
from pixel_perception.export.language_graph import dequantize_int4, dequantize_int8, rotary_tables
from pixel_perception.export.plain_graph import plain_graph

_DEQUANTIZE = {4: dequantize_int4, 8: dequantize_int8}
"""By the bits of MatMulNBits."""


def gpu_graph(path: Path, precision: str = "auto") -> onnx.ModelProto:
    """The GPU form of a bundle's graph. Vision is fp16; `precision` is how language weights are stored: a key of
    `plain_graph.WEIGHTS`, or "auto": int4 where the bundle has passed its gate with that, else fp16.

    Raises PerceptionError INVALID_BUNDLE naming the file.
    """
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf and onnx have no common error
        raise PerceptionError("INVALID_BUNDLE", f"{path}: expected an ONNX graph, found: {error}.") from error
    if any(node.op_type == "GroupQueryAttention" for node in model.graph.node):
        if precision == "auto":
            four = any(node.op_type == "MatMulNBits" and _attribute(node, "bits") == 4 for node in model.graph.node)
            precision = "int4" if four else "fp16"
        return plain_graph(*read_language(model, str(path)), precision)
    return to_half(model, path.stem)


def read_language(model: onnx.ModelProto, where: str) -> tuple[DecoderShape, dict[str, np.ndarray]]:
    """Shape and fp32 weights of a graph that `language_graph` wrote, under the names that it takes. Quantised weights come
    back exactly. Raises PerceptionError INVALID_BUNDLE when the graph is another one; `where` names its file."""
    try:
        return _read_language(model)
    except (KeyError, StopIteration, IndexError, ValueError) as error:
        raise PerceptionError("INVALID_BUNDLE", f"{where}: expected a language graph of this package in fp32, int8 or int4, found "
                                                f"another one ({type(error).__name__}: {error}).") from error


def _read_language(model: onnx.ModelProto) -> tuple[DecoderShape, dict[str, np.ndarray]]:
    graph = model.graph
    tensors = {t.name: t for t in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output if output}
    dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)}

    def array(name: str) -> np.ndarray:
        return numpy_helper.to_array(tensors[name])

    def linear(name: str) -> np.ndarray:
        node = producers[name]
        if node.op_type == "MatMul":
            return np.ascontiguousarray(array(node.input[1]).T)
        if len(node.input) != 3:
            raise ValueError(f"{name} has zero points")
        return _DEQUANTIZE[_attribute(node, "bits")](array(node.input[1]), array(node.input[2]))

    attention = next(n for n in graph.node if n.op_type == "GroupQueryAttention")
    heads, kv_heads = _attribute(attention, "num_heads"), _attribute(attention, "kv_num_heads")
    layers = sum(bool(re.fullmatch(r"past_key_values\.\d+\.key", name)) for name in dims)
    size, hidden = dims["past_key_values.0.key"][3], dims["inputs_embeds"][2]
    weights = {"final_norm": array("final_norm"), "output": linear("logits")}
    for i in range(layers):
        name = f"layers.{i}."
        query, key, value = np.split(linear(name + "qkv"), [heads * size, (heads + kv_heads) * size])
        gate, up = np.split(linear(name + "gate_up"), 2)
        weights |= {name + "q": query, name + "k": key, name + "v": value, name + "o": linear(name + "o"), name + "gate": gate,
                    name + "up": up, name + "down": linear(name + "down")}  # fmt: skip
        weights |= {name + norm: array(name + norm) for norm in ("attention_norm", "mlp_norm")}
    epsilon = next(_attribute(n, "epsilon") for n in graph.node if n.op_type.endswith("SimplifiedLayerNormalization"))
    cos, sin = array("cos_cache"), array("sin_cache")
    # The second pair's angle at position 1 is base ** (-2 / size); four digits are more than a published base has.
    base = float(f"{np.arctan2(sin[1, 1], cos[1, 1]) ** (-size / 2):.4g}")
    shape = DecoderShape(layers, hidden, len(weights["layers.0.gate"]), heads, kv_heads, size, len(weights["output"]), epsilon, base,
                         len(cos))  # fmt: skip
    if not np.allclose(rotary_tables(shape)[0], cos, atol=1e-3):
        raise ValueError(f"its rotary tables are not those of base {base:g}")
    return shape, weights


def _attribute(node: onnx.NodeProto, name: str):
    return next(helper.get_attribute_value(a) for a in node.attribute if a.name == name)
