"""Matrix products of a vision graph in 8 bits for a CPU: weights once, activations as they come (dynamic quantisation); and back.

Each product with a constant matrix becomes one DynamicQuantizeMatMul of ONNX Runtime, together with the bias that is added to
it. Written here and not with onnxruntime.quantization, so that a bundle is assembled with the runtime's packages alone and has
the same bytes on every machine.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pixel_perception.export.language_graph import MICROSOFT

PRECISIONS = ("fp32", "int8")
"""Of vision."""
LARGEST = 63
"""Largest weight. Kernels without VNNI add two products with 8-bit activations in 16 bits: 2 * 255 * 63 fits there, 2 * 255 * 127 does
not, so that with 7 bits every CPU computes the same."""
LEAST = 1 << 12
"""Weights from which a matrix is worth the quantisation of its inputs."""
PRODUCT = "DynamicQuantizeMatMul"
SCALES = ".scales"


def to_eight_bit(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an fp32 graph with its products in 8 bits: weights symmetric with a scale for each output, inputs in unsigned 8 bits
    between their own least and largest value."""
    constants = {t.name: t for t in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input) + Counter(value.name for value in model.graph.output)
    readers = {name: node for node in model.graph.node for name in node.input}
    nodes, packed, fused = [], {}, set()
    for node in model.graph.node:
        if node.output[0] in fused:
            continue
        weight = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or len(weight.dims) != 2 or np.prod(weight.dims) < LEAST:
            nodes.append(node)
            continue
        values, scales = weight.name + ".int8", weight.name + SCALES
        packed |= dict(zip((values, scales), quantize(numpy_helper.to_array(weight)), strict=True))
        inputs, output = [node.input[0], values, scales], node.output[0]
        following = readers.get(output) if uses[output] == 1 else None
        if following is not None and following.op_type == "Add":
            bias = next(name for name in following.input if name != output)
            if bias in constants and list(constants[bias].dims) == [weight.dims[1]]:
                inputs, output = [*inputs, "", bias], following.output[0]
                fused.add(output)
        nodes.append(helper.make_node(PRODUCT, inputs, [output], node.name, domain=MICROSOFT))
    return _with(model, nodes, packed)


def to_fp32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph whose 8-bit products are plain ones again, with the weights as they were rounded: what other compilers read. One
    without such products is returned as it is."""
    if precision(model) == "fp32":
        return model
    constants, nodes, unpacked = {t.name: t for t in model.graph.initializer}, [], {}
    for node in model.graph.node:
        if node.op_type != PRODUCT:
            nodes.append(node)
            continue
        x, values, scales, _, bias = [*node.input, "", ""][:5]
        weight = values.removesuffix(".int8")
        unpacked[weight] = numpy_helper.to_array(constants[values]) * numpy_helper.to_array(constants[scales])
        product = node.output[0] + ".product" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", [x, weight], [product], node.name))
        if bias:
            nodes.append(helper.make_node("Add", [product, bias], [node.output[0]], node.name + ".bias"))
    return _with(model, nodes, unpacked)


def precision(model: onnx.ModelProto) -> str:
    """Of a graph: "int8" where a product is in 8 bits, else "fp32"."""
    return "int8" if any(node.op_type == PRODUCT for node in model.graph.node) else "fp32"


def quantize(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """matrix (inputs, outputs) fp32 -> weights int8 of at most `LARGEST`, scales (outputs,) fp32. Largest error: half a scale."""
    scales = np.abs(matrix).max(0) / np.float32(LARGEST)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    return np.rint(matrix * inverse).astype(np.int8), scales


def _with(model: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of a model with these nodes and further constants; what they do not read is left out."""
    graph = helper.make_graph(nodes, model.graph.name, model.graph.input, model.graph.output)
    read = {name for node in nodes for name in node.input}
    graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    opsets = [o for o in model.opset_import if o.domain != MICROSOFT]
    if any(node.domain == MICROSOFT for node in nodes):
        opsets.append(helper.make_opsetid(MICROSOFT, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version, producer_name=model.producer_name)
