"""Vision graphs in fp16 for a GPU, for strongly typed compilers: the types are in the graph, not in a builder's flags.

Matrix products and convolutions are computed in fp16, and so is what moves or adds up their results. Everything whose sums,
squares, exponentials or small differences fp16 would spoil stays in fp32: normalisations (kept as one operator), softmax,
reductions, divisions, and all that is computed from coordinates. Inputs and outputs keep their types.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper

from pixel_perception.errors import PerceptionError
from pixel_perception.export.fused_language import read_tensor
from pixel_perception.export.language_graph import GraphWriter

PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
"""Always in fp16."""
FOLLOWERS = frozenset({
    "Add", "Sub", "Mul", "Clip", "Relu", "Gelu", "Max", "Min", "Identity", "Reshape", "Transpose", "Concat", "Slice", "Split",
    "Squeeze", "Unsqueeze", "Expand", "Tile", "Gather", "Pad", "Resize", "MaxPool", "AveragePool",
})  # fmt: skip
"""In fp16 where something that they read is."""
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
MOST = 65504.0
"""Largest fp16 number."""


def to_half(model: onnx.ModelProto, where: Path | str, beside: BinaryIO | None = None) -> onnx.ModelProto:
    """A copy of an fp32 graph with its products in fp16.

    `where`: the graph's file, beside which its external data lies, if it has such; `beside`: as in `GraphWriter`. Raises
    PerceptionError INVALID_BUNDLE when a weight (named) is too large for fp16.
    """
    return _Half(model, Path(where), beside).converted()


def _unguard(graph: onnx.GraphProto) -> None:
    """Take away where(isnan(s), 0, s), which torch's exporter puts behind the softmax s of masked scores and TensorRT for RTX 1.7 fails
    to compile. It is for rows of which everything is masked: they become NaN, and whoever has such rows must not ask for them."""
    made = {output: node for node in graph.node for output in node.output}
    guarded, dead = {}, []
    for node in graph.node:
        test, softmax = (made.get(node.input[i]) for i in (0, 2)) if node.op_type == "Where" else (None, None)
        if test is not None and softmax is not None and (test.op_type, softmax.op_type) == ("IsNaN", "Softmax"):
            guarded[node.output[0]] = node.input[2]
            dead += [test, node]
    for node in dead:
        graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [guarded.get(name, name) for name in node.input]


class _Half:
    def __init__(self, model: onnx.ModelProto, where: Path, beside: BinaryIO | None) -> None:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        self.model, self.where, self.writer = onnx.ModelProto(), where, GraphWriter(beside=beside)
        self.whole = beside is None
        self.model.CopyFrom(model)
        _unguard(self.model.graph)
        graph = inferred.graph
        self.types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
        self.constants = {t.name: t for t in self.model.graph.initializer}
        self.types |= {t.name: t.data_type for t in self.constants.values()}
        self.halved: dict[str, str] = {}
        """Names of constants in fp16, and of what they are made of."""
        self.nodes: list[onnx.NodeProto] = []

    def converted(self) -> onnx.ModelProto:
        graph = self.model.graph
        for value in graph.input:
            # TensorRT moves no uint8: an image is made fp32 before anything else.
            if self.types[value.name] == TensorProto.UINT8:
                self.nodes.append(helper.make_node("Cast", [value.name], [value.name + ".fp32"], value.name + ".fp32", to=FLOAT))
                self.types[value.name + ".fp32"] = FLOAT
                for node in graph.node:
                    node.input[:] = [value.name + ".fp32" if i == value.name else i for i in node.input]
        for node in graph.node:
            self._convert(node)
        for value in graph.output:
            if self.types[value.name] == HALF:
                self._rename(value.name, value.name + ".fp16")
                self.nodes.append(helper.make_node("Cast", [value.name + ".fp16"], [value.name], value.name + ".fp32", to=FLOAT))
        used = {i for node in self.nodes for i in node.input}
        for name, tensor in self.constants.items():
            if name in used:
                self.writer.constant(name, read_tensor(tensor, self.where))
        for name, source in self.halved.items():
            self.writer.constant(name, self._halved(source))
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.writer.initializers)
        if self.whole:
            onnx.checker.check_model(self.model, full_check=True)
        return self.model

    def _convert(self, node: onnx.NodeProto) -> None:
        data = range(1) if node.op_type == "Resize" else range(len(node.input))  # scales and roi of Resize are fp32 by definition
        floating = [i for i in data if node.input[i] and self.types[node.input[i]] in (FLOAT, HALF)]
        half = node.op_type in PRODUCTS or (
            node.op_type in FOLLOWERS and any(self.types[node.input[i]] == HALF for i in floating)
        )
        for i in floating:
            node.input[i] = self._as(node.input[i], HALF if half else FLOAT)
        self.nodes.append(node)
        for output in node.output:
            if half and self.types.get(output) == FLOAT:
                self.types[output] = HALF

    def _as(self, tensor: str, kind: int) -> str:
        """The name under which a tensor is to be had in fp32 or fp16."""
        if self.types[tensor] == kind:
            return tensor
        name = f"{tensor}.{'fp16' if kind == HALF else 'fp32'}"
        if name in self.types:
            return name
        self.types[name] = kind
        if tensor in self.constants:
            self.halved[name] = tensor
        else:
            self.nodes.append(helper.make_node("Cast", [tensor], [name], name, to=kind))
        return name

    def _halved(self, name: str) -> np.ndarray:
        values = read_tensor(self.constants[name], self.where)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if (np.isinf(half) & np.isfinite(values)).any():
            largest = np.abs(values[np.isfinite(values)]).max()
            raise PerceptionError("INVALID_BUNDLE", f"{self.where}, weight {name}: expected numbers of at most {MOST:g} for fp16, "
                                                    f"found {largest:g}.")
        return half

    def _rename(self, old: str, new: str) -> None:
        for node in self.nodes:
            node.input[:] = [new if i == old else i for i in node.input]
            node.output[:] = [new if o == old else o for o in node.output]
