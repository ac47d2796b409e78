"""A Llama-family decoder as one ONNX graph of plain operators, for compilers that know no contrib operator (TensorRT).

Interface (S new positions, P places for what came before, K of the new positions asked for what follows):
    inputs_embeds (1, S, hidden) fp32, position_ids (1, S) int64, attention_bias (1, 1, S, P + S) fp32, asked (K,) int64,
    past_key_values.{i}.key/value (1, kv_heads, P, head_dim)
    -> logits (1, K, vocabulary) fp32 of the positions `asked`, hidden_states (1, S, hidden) fp32 after the final norm,
       new_key_values.{i}.key/value (1, kv_heads, S, head_dim) of the new positions alone, to be put behind what is there

Rows are packed into one sequence as in `language_graph`. `attention_bias`, 0 where a position may look and a large negative
number elsewhere, alone decides: it must hide later positions, and places that are not filled. So the shapes of a step do not
depend on how much has been read: buffers of P places are bound once, and single steps can be captured as a CUDA graph. Places
must hold finite numbers even where they are hidden, and P must be at least 1.

Precision. Arithmetic and keys/values are fp16 ("compute"), but norms, softmax and the rotary angles are fp32: the squares of
a hidden state overflow in fp16. Weights are symmetric and dequantised by DequantizeLinear in blocks along the input axis,
which TensorRT compiles into weight-only matrix products. Attention is the grouped-query attention of Ainslie et al. (GQA,
section 2) with the rotary embedding of Su et al. (RoFormer, section 3.2.2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper

from pixel_perception.errors import PerceptionError
from pixel_perception.export.base_weights import DecoderShape
from pixel_perception.export.language_graph import GraphWriter, rotary_tables

OPSET = 21
"""The first with blocks and 4 bits in DequantizeLinear."""
IR_VERSION = 10
WEIGHTS = {"int4": (TensorProto.INT4, 7), "int8": (TensorProto.INT8, 127), "fp16": None}
"""Weight format: (ONNX type, largest magnitude)."""
TOGETHER = 1024
"""Outputs of a matrix that are quantised at once, so that memory holds it about once."""


def quantize(matrix: np.ndarray, block: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric quantisation of (inputs, outputs) in blocks along the inputs: int8 values in -most..most of the same shape,
    and fp16 scales (inputs / block, outputs). Scale = largest magnitude of the block / most; largest
    error: half a scale, and at the block's largest what fp16 rounds off the scale."""
    inputs, outputs = matrix.shape
    if inputs % block:
        raise PerceptionError("INVALID_BUNDLE", f"a weight has {inputs} inputs; expected a multiple of {block}.")
    blocks = matrix.reshape(inputs // block, block, outputs)
    # Rounded first, so that values are chosen for the scale that they will be multiplied with.
    scales = (np.abs(blocks).max(1) / most).astype(np.float16)
    steps = scales.astype(np.float32)
    inverse = np.divide(1, steps, out=np.zeros_like(steps), where=steps > 0)
    return np.clip(np.rint(blocks * inverse[:, None]), -most, most).astype(np.int8).reshape(matrix.shape), scales


def plain_graph(shape: DecoderShape, weights: Mapping[str, np.ndarray], precision: str = "fp16", block: int = 32,
                compute: type = np.float16, beside: BinaryIO | None = None) -> onnx.ModelProto:
    """Build the graph from weights as in `base_weights.BaseLanguage` (LoRA merged; "output" is the output layer where it is
    not tied to "embeddings"), each of which is asked for once.

    precision: how weights are stored, a key of `WEIGHTS`; block: 32, 64 or 128; compute: np.float32 is the reference of
    tests; beside: as in `GraphWriter`. Raises PerceptionError INVALID_BUNDLE for an unknown precision or a width that blocks do
    not divide.
    """
    if precision not in WEIGHTS:
        raise PerceptionError("INVALID_BUNDLE", f"language precision: expected one of {', '.join(WEIGHTS)}, found {precision!r}.")
    return _Stored(shape, weights, precision, block, compute, beside).model()


class PlainGraph(GraphWriter, ABC):
    """The graph but for how its matrices are stored. Tensors between nodes are of type `compute` unless their name ends in .fp32."""

    def __init__(self, shape: DecoderShape, weights: Mapping[str, np.ndarray], compute: type, beside: BinaryIO | None = None) -> None:
        super().__init__(beside=beside)
        self.shape, self.weights = shape, weights
        self.compute, self.type = compute, helper.np_dtype_to_tensor_dtype(np.dtype(compute))

    @abstractmethod
    def linears(self, x: str, prefix: str, parts: Sequence[str]) -> None:
        """x (..., inputs) times the matrices `prefix` + part, (outputs, inputs), transposed; results have the matrices' names."""

    def model(self) -> onnx.ModelProto:
        """The whole graph."""
        shape = self.shape
        self._positions()
        x = self._cast("inputs_embeds", "embeds", self.type)
        for i in range(shape.layers):
            name = f"layers.{i}."
            normed = self._norm(x, name + "attention_norm")
            x = self.node("Add", [x, self._attention(normed, i)], [name + "attended"])
            normed = self._norm(x, name + "mlp_norm")
            x = self.node("Add", [x, self._mlp(normed, name)], [name + "out"])
        states = self._norm(x, "final_norm")
        self._cast(states, "hidden_states", TensorProto.FLOAT)
        asked = self.node("Gather", [states, "asked"], ["asked_states"], axis=1)
        self.linears(asked, "", ["output"])
        self._cast("output", "logits", TensorProto.FLOAT)
        return self._model()

    def _positions(self) -> None:
        """Cosines and sines (1, S, head_dim / 2) of the new positions, and the lengths P and S."""
        for name, table in zip(("cos", "sin"), rotary_tables(self.shape), strict=True):
            found = self.node("Gather", [self.constant(name + "_table", table), "position_ids"], [name + ".fp32"])
            self._cast(found, name, self.type)
        self.node("Shape", ["past_key_values.0.key"], ["places"], start=2, end=3)
        self.node("Shape", ["inputs_embeds"], ["step"], start=1, end=2)
        self.node("Concat", ["places", "step"], ["lengths"], axis=0)

    def _attention(self, x: str, i: int) -> str:
        shape, name = self.shape, f"layers.{i}."
        group, dim = shape.heads // shape.kv_heads, shape.head_dim
        # All heads of a group stand side by side before their one key: (1, kv_heads, group, S, dim).
        heads = {"q": [0, 0, shape.kv_heads, group, dim], "k": [0, 0, shape.kv_heads, dim], "v": [0, 0, shape.kv_heads, dim]}
        self.linears(x, name, list(heads))
        for part, dims in heads.items():
            self.node("Reshape", [name + part, self._ints(part + "_dims", *dims)], [name + part + ".heads"])
        query = self.node("Transpose", [name + "q.heads"], [name + "q.t"], perm=[0, 2, 3, 1, 4])
        key = self.node("Transpose", [name + "k.heads"], [name + "k.t"], perm=[0, 2, 1, 3])
        value = self.node("Transpose", [name + "v.heads"], [f"new_key_values.{i}.value"], perm=[0, 2, 1, 3])
        query = self._rotary(query, name + "q.rotated")
        key = self._rotary(key, f"new_key_values.{i}.key")
        scale = self.constant("scale", np.array(dim**-0.5, self.compute)) if i == 0 else "scale"
        query = self.node("Mul", [query, scale], [name + "q.scaled"])  # before the product, which could overflow
        # Scores of old and new are joined, not their keys: a joined cache would be written anew in every step.
        two = self._ints("two")
        scores = []
        for kind, keys in (("old", f"past_key_values.{i}.key"), ("new", key)):
            self.node("Transpose", [keys], [f"{name}{kind}.t"], perm=[0, 1, 3, 2])
            self.node("Unsqueeze", [f"{name}{kind}.t", two], [f"{name}{kind}.keys"])
            scores.append(self.node("MatMul", [query, f"{name}{kind}.keys"], [f"{name}{kind}.scores"]))
        self.node("Concat", scores, [name + "scores"], axis=-1)
        self.node("Add", [self._cast(name + "scores", name + "scores.fp32", TensorProto.FLOAT), "attention_bias"], [name + "biased.fp32"])
        self.node("Softmax", [name + "biased.fp32"], [name + "softmax.fp32"], axis=-1)
        weights = self._cast(name + "softmax.fp32", name + "softmax", self.type)
        parts = [name + "old.weights", name + "new.weights"]
        self.node("Split", [weights, "lengths"], parts, axis=-1)
        for kind, values, part in (("old", f"past_key_values.{i}.value", parts[0]), ("new", value, parts[1])):
            self.node("Unsqueeze", [values, two], [f"{name}{kind}.values"])
            self.node("MatMul", [part, f"{name}{kind}.values"], [f"{name}{kind}.sum"])
        self.node("Add", [name + "old.sum", name + "new.sum"], [name + "sum"])
        self.node("Transpose", [name + "sum"], [name + "sum.t"], perm=[0, 3, 1, 2, 4])
        self.node("Reshape", [name + "sum.t", self._ints("joined_dims", 0, 0, shape.heads * dim)], [name + "joined"])
        self.linears(name + "joined", name, ["o"])
        return name + "o"

    def _rotary(self, x: str, output: str) -> str:
        """Turn the pairs (a, b) of a head's two halves: (a cos - b sin, b cos + a sin)."""
        self.node("Split", [x], [x + ".a", x + ".b"], axis=-1, num_outputs=2)
        for half, other, sign in (("a", "b", "Sub"), ("b", "a", "Add")):
            self.node("Mul", [f"{x}.{half}", "cos"], [f"{x}.{half}.cos"])
            self.node("Mul", [f"{x}.{other}", "sin"], [f"{x}.{other}.sin"])
            self.node(sign, [f"{x}.{half}.cos", f"{x}.{other}.sin"], [f"{x}.{half}.turned"])
        return self.node("Concat", [x + ".a.turned", x + ".b.turned"], [output], axis=-1)

    def _mlp(self, x: str, name: str) -> str:
        self.linears(x, name, ["gate", "up"])
        self.node("Sigmoid", [name + "gate"], [name + "sigmoid"])
        self.node("Mul", [name + "gate", name + "sigmoid"], [name + "silu"])
        self.node("Mul", [name + "silu", name + "up"], [name + "activated"])
        self.linears(name + "activated", name, ["down"])
        return name + "down"

    def _norm(self, x: str, name: str) -> str:
        """RMSNorm (Zhang and Sennrich, eq. 4) in fp32. The operator of that name exists from opset 23 on, which TensorRT of
        JetPack does not read."""
        epsilon = "epsilon" if name != "layers.0.attention_norm" else self.constant("epsilon", np.array(self.shape.rms_epsilon, np.float32))
        wide = self._cast(x, name + ".x.fp32", TensorProto.FLOAT)
        self.node("Mul", [wide, wide], [name + ".square.fp32"])
        self.node("ReduceMean", [name + ".square.fp32", self._ints("minus_one")], [name + ".mean.fp32"], keepdims=1)
        self.node("Add", [name + ".mean.fp32", epsilon], [name + ".sum.fp32"])
        self.node("Sqrt", [name + ".sum.fp32"], [name + ".root.fp32"])
        self.node("Div", [wide, name + ".root.fp32"], [name + ".normed.fp32"])
        scale = self.constant(name, self.weights[name].astype(np.float32))
        return self._cast(self.node("Mul", [name + ".normed.fp32", scale], [name + ".scaled.fp32"]), name + ".out", self.type)

    def _ints(self, name: str, *values: int) -> str:
        """A one-dimensional int64 constant, made when it is first named."""
        known = {"two": (2,), "minus_one": (-1,)}
        if not any(t.name == name for t in self.initializers):
            self.constant(name, np.array(values or known[name], np.int64))
        return name

    def _cast(self, x: str, output: str, kind: int) -> str:
        return self.node("Cast", [x], [output], to=kind)

    def _model(self) -> onnx.ModelProto:
        shape, value = self.shape, helper.make_tensor_value_info
        caches = [(i, kind) for i in range(shape.layers) for kind in ("key", "value")]

        def cache(prefix: str, length: str) -> list[onnx.ValueInfoProto]:
            dims = [1, shape.kv_heads, length, shape.head_dim]
            return [value(f"{prefix}.{i}.{kind}", self.type, dims) for i, kind in caches]

        inputs = [value("inputs_embeds", TensorProto.FLOAT, [1, "step", shape.hidden]),
                  value("position_ids", TensorProto.INT64, [1, "step"]),
                  value("attention_bias", TensorProto.FLOAT, [1, 1, "step", "total"]), value("asked", TensorProto.INT64, ["asked"]),
                  *cache("past_key_values", "places")]  # fmt: skip
        outputs = [value("logits", TensorProto.FLOAT, [1, "asked", shape.vocabulary]),
                   value("hidden_states", TensorProto.FLOAT, [1, "step", shape.hidden]),
                   *cache("new_key_values", "step")]  # fmt: skip
        graph = helper.make_graph(self.nodes, "language_model", inputs, outputs, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                                 producer_name="pixel_perception")  # fmt: skip


class _Stored(PlainGraph):
    """Every matrix of its own: in the type of `compute`, or as blocks of integers with a DequantizeLinear."""

    def __init__(self, shape: DecoderShape, weights: Mapping[str, np.ndarray], precision: str, block: int, compute: type,
                 beside: BinaryIO | None) -> None:  # fmt: skip
        super().__init__(shape, weights, compute, beside)
        self.format, self.block = WEIGHTS[precision], block

    def linears(self, x: str, prefix: str, parts: Sequence[str]) -> None:
        for name in (prefix + part for part in parts):
            weight = self.weights["embeddings" if name == "output" and name not in self.weights else name]
            stored = name + ".weight"
            if self.format is None:
                self.constant(stored, np.array(weight.T, self.compute, order="C"))
            else:
                values, scales = self._quantized(weight)
                self._integers(name + ".values", values, self.format[0])
                self.constant(name + ".scales", scales)
                self.node("DequantizeLinear", [name + ".values", name + ".scales"], [stored], axis=0, block_size=self.block)
            self.node("MatMul", [x, stored], [name])

    def _quantized(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`quantize` of a matrix (outputs, inputs), some outputs at a time."""
        outputs, inputs = weight.shape
        values, scales = np.empty((inputs, outputs), np.int8), np.empty((inputs // self.block, outputs), self.compute)
        for begin in range(0, outputs, TOGETHER):
            part = slice(begin, begin + TOGETHER)
            values[:, part], scales[:, part] = quantize(np.ascontiguousarray(weight[part].T), self.block, self.format[1])
        return values, scales

    def _integers(self, name: str, values: np.ndarray, kind: int) -> None:
        raw = values.reshape(-1)
        if kind == TensorProto.INT4:  # two in a byte, the first in the lower half
            raw = (raw[::2] & 15) | ((raw[1::2] & 15) << 4)
        self.stored(name, kind, values.shape, raw)
