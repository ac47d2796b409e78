"""A Llama-family decoder as one ONNX graph with fused operators, written directly: no torch, no tracing.

Interface (S new positions, P positions before them, total = P + S, K of the new ones asked for what follows):
    inputs_embeds (1, S, hidden) fp32, position_ids (1, S) int64, attention_bias (1, 1, S, total) fp32, asked (K,) int64,
    past_key_values.{i}.key/value (1, kv_heads, P, head_dim)
    -> logits (1, K, vocabulary) of the positions `asked`, hidden_states (1, S, hidden) after the final norm,
       present.{i}.key/value (1, kv_heads, total, head_dim)

The operators are those of ONNX Runtime's CPU and CUDA providers: GroupQueryAttention (rotary embedding, causal mask, bias and
key/value append in one), SkipSimplifiedLayerNormalization, and MatMulNBits with 8-bit or 4-bit weights in blocks of 32 (the
output layer: 64): those that onnxruntime-genai's model builder writes. The graph is written here instead because that takes no
torch and no further package on the machine that assembles, gives the same bytes on every machine, and takes packed rows.

Several rows. GroupQueryAttention reads several positions after a past in one sequence only, so rows that share a prefix are
packed into one, one row's positions behind the other's: `attention_bias` is 0 where a position may look and the lowest
number elsewhere (the causal mask comes on top), and `position_ids` say where in its own row a position stands. Rows may so
read any number of positions each in one step, and what they share is kept once. Where nothing was read before (P = 0) there
is one row, and its positions count from the first of `position_ids`.

Key/value memory. `present.*` may be bound to the very buffer of `past_key_values.*` when that buffer is already as long
as the longest sequence (its third axis then counts capacity, and the last axis of attention_bias alone says how much is in use).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper

from pixel_perception.errors import PerceptionError
from pixel_perception.export.base_weights import DecoderShape

MICROSOFT = "com.microsoft"
OPSET = 20
IR_VERSION = 10
"""Readable by every ONNX Runtime since 1.18."""
BLOCK = 32
"""Inputs that share a scale. With 64 a token takes a tenth to a sixth less time, but the masks leave the gate of parity: on the
demo's pictures a mean IoU of 0.971 in place of 0.982."""
BLOCK_OUTPUT = 64
"""The same of the output layer, which no hidden state depends on; 32 where that does not divide its inputs."""
PRECISIONS = ("int8", "int4", "fp32")
LARGE = 1 << 12
"""Bytes from which an initializer is written beside a graph that has a file for that."""


def _rounded(matrix: np.ndarray, block: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(outputs, inputs) in blocks of whole numbers -most..most (outputs, inputs / block, block), with scales fp32."""
    outputs, inputs = matrix.shape
    if inputs % block:
        raise PerceptionError("INVALID_BUNDLE", f"a weight has {inputs} inputs; expected a multiple of {block}")
    blocks = matrix.reshape(outputs, inputs // block, block)
    scales = np.abs(blocks).max(-1) / most
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    return np.rint(blocks * inverse[..., None]), scales.astype(np.float32)


def quantize_int8(matrix: np.ndarray, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric 8-bit quantisation in blocks along the input axis, as MatMulNBits reads it.

    matrix (outputs, inputs) fp32 -> weights uint8 (outputs, inputs / block, block) around 128, scales fp32
    (outputs, inputs / block). Largest error: half a scale, scale = largest magnitude of the block / 127.
    """
    values, scales = _rounded(matrix, block, 127)
    return (values + 128).astype(np.uint8), scales


def dequantize_int8(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Inverse of `quantize_int8`: (outputs, inputs) fp32."""
    return ((values.astype(np.float32) - 128) * scales[..., None]).reshape(len(values), -1)


def quantize_int4(matrix: np.ndarray, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric 4-bit quantisation in blocks along the input axis, as MatMulNBits reads it.

    matrix (outputs, inputs) fp32 -> weights uint8 (outputs, inputs / block, block / 2), two to a byte, the earlier in its low
    half, -7..7 around 8; scales fp32 (outputs, inputs / block). Largest error: half a scale, scale = largest magnitude of
    the block / 7.
    """
    values, scales = _rounded(matrix, block, 7)
    values = (values + 8).astype(np.uint8)
    return values[..., ::2] | values[..., 1::2] << 4, scales


def dequantize_int4(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Inverse of `quantize_int4`: (outputs, inputs) fp32."""
    halves = np.stack([values & 15, values >> 4], -1).reshape(*values.shape[:2], -1)
    return ((halves.astype(np.float32) - 8) * scales[..., None]).reshape(len(values), -1)


def merge_lora(
    weights: dict[str, np.ndarray], adapters: dict[str, np.ndarray], scale: float
) -> dict[str, np.ndarray]:
    """Weights with W + scale * B @ A for every pair "lora.{layer}.{part}.A" (rank, inputs) / ".B" (outputs, rank).

    Returns a new dictionary; keys of `adapters` that do not start with "lora." are ignored. Raises PerceptionError
    INVALID_BUNDLE when a pair is incomplete or does not fit its weight. Source: Hu et al., LoRA, section 4.1.
    """
    merged = dict(weights)
    for key in sorted(adapters):
        if not key.startswith("lora.") or not key.endswith((".A", ".B")):
            continue
        stem = key[:-2]
        name = "layers." + stem.removeprefix("lora.")
        down, up = adapters.get(stem + ".A"), adapters.get(stem + ".B")
        if (
            name not in weights
            or down is None
            or up is None
            or (up.shape[0], down.shape[1]) != weights[name].shape
            or up.shape[1] != down.shape[0]
        ):
            shapes = [None if x is None else tuple(x.shape) for x in (down, up)]
            raise PerceptionError(
                "INVALID_BUNDLE",
                f"{stem}: A and B have shapes {shapes}; expected (rank, inputs) and (outputs, rank) "
                f"that fit {name} {weights[name].shape if name in weights else 'of this model'}",
            )
        # In double precision, so that every machine rounds to the same weights.
        merged[name] = (weights[name] + scale * (up.astype(np.float64) @ down.astype(np.float64))).astype(
            np.float32
        )
    return merged


class GraphWriter:
    """Nodes and initializers of a graph under construction."""

    def __init__(self, precision: str = "fp32", accuracy_level: int = 4, beside: BinaryIO | None = None):
        """`beside`: an open file that takes the large initializers, so that no more than one is in memory (ONNX external data,
        which graphs beyond 2 GB must have)."""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.precision, self.accuracy_level, self._beside = precision, accuracy_level, beside

    def constant(self, name: str, value: np.ndarray) -> str:
        value = np.require(value, requirements="C")
        return self.stored(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape, value)

    def stored(self, name: str, kind: int, dims: tuple[int, ...], raw: np.ndarray) -> str:
        """Add an initializer of an ONNX type, whose bytes are those of a contiguous array."""
        tensor = TensorProto(name=name, dims=dims, data_type=kind)
        if self._beside is None or raw.nbytes < LARGE:
            tensor.raw_data = raw.tobytes()
        else:
            self._beside.write(b"\0" * (-self._beside.tell() % 4096))  # pages, so that a runtime can map it
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": Path(self._beside.name).name, "offset": self._beside.tell(), "length": raw.nbytes}
            for key, entry in place.items():
                tensor.external_data.add(key=key, value=str(entry))
            self._beside.write(raw.data)
        self.initializers.append(tensor)
        return name

    def unique(self, value: np.ndarray) -> str:
        """Add an initializer under a name of its own."""
        return self.constant(f"constant_{len(self.initializers)}", value)

    def node(self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes) -> str:
        self.nodes.append(
            helper.make_node(kind, inputs, outputs, name=outputs[0] + "/" + kind, domain=domain, **attributes)
        )
        return outputs[0]

    def linear(self, x: str, weight: np.ndarray, name: str, block: int = BLOCK) -> str:
        """x (..., inputs) times weight (outputs, inputs) transposed -> (..., outputs)."""
        outputs, inputs = weight.shape
        if self.precision == "fp32":
            return self.node("MatMul", [x, self.constant(name + ".weight", weight.T)], [name])
        values, scales = (quantize_int4 if self.precision == "int4" else quantize_int8)(weight, block)
        packed = [self.constant(name + ".weight", values), self.constant(name + ".scales", scales)]
        return self.node(
            "MatMulNBits",
            [x, *packed],
            [name],
            MICROSOFT,
            K=inputs,
            N=outputs,
            bits=4 if self.precision == "int4" else 8,
            block_size=block,
            accuracy_level=self.accuracy_level,
        )


def rotary_tables(shape: DecoderShape) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (positions, head_dim / 2) fp32 of the rotary embedding (Su et al., RoFormer, section 3.2.2)."""
    frequencies = shape.rope_base ** (-np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim)
    angles = np.arange(shape.positions, dtype=np.float64)[:, None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def language_graph(
    shape: DecoderShape, weights: Mapping[str, np.ndarray], precision: str = "int8", accuracy_level: int = 4,
    beside: BinaryIO | None = None,
) -> onnx.ModelProto:
    """Build the decoder graph.

    weights as in `base_weights.BaseLanguage` (LoRA merged); each is asked for once, layer by layer. The output layer is
    "output" (vocabulary, hidden) where there is one, else the embedding table, which as input table stays outside the
    graph. precision "int8" or "int4" (MatMulNBits) or "fp32" (MatMul, the reference of tests). accuracy_level 4 computes
    in int8; other levels are many times slower. `beside` as in `GraphWriter`.
    """
    if precision not in PRECISIONS:
        expected = ", ".join(PRECISIONS)
        raise PerceptionError(
            "INVALID_BUNDLE", f"language precision is {precision!r}; expected one of {expected}"
        )
    g = GraphWriter(precision, accuracy_level, beside)
    cos, sin = rotary_tables(shape)
    g.constant("cos_cache", cos)
    g.constant("sin_cache", sin)
    _lengths(g)
    norm = {"epsilon": shape.rms_epsilon}
    skip = "inputs_embeds"
    x = g.node(
        "SimplifiedLayerNormalization",
        [skip, g.constant("layers.0.attention_norm", weights["layers.0.attention_norm"])],
        ["layers.0.normed"],
        axis=-1,
        stash_type=1,
        **norm,
    )
    for i in range(shape.layers):
        name = f"layers.{i}."
        qkv = g.linear(x, np.concatenate([weights[name + part] for part in "qkv"]), name + "qkv")
        attended = g.node(
            "GroupQueryAttention",
            [qkv, "", "", f"past_key_values.{i}.key", f"past_key_values.{i}.value", "last_index", "total_length", "cos_cache", "sin_cache",
             "position_ids", "attention_bias"],
            [name + "attention", f"present.{i}.key", f"present.{i}.value"], MICROSOFT, num_heads=shape.heads,
            kv_num_heads=shape.kv_heads, do_rotary=1, rotary_interleaved=0, scale=shape.head_dim**-0.5)  # fmt: skip
        out = g.linear(attended, weights[name + "o"], name + "o")
        x, skip = _add_and_norm(g, skip, out, name + "mlp_norm", weights[name + "mlp_norm"], norm)
        both = g.linear(x, np.concatenate([weights[name + "gate"], weights[name + "up"]]), name + "gate_up")
        g.node("Split", [both], [name + "gate", name + "up"], axis=-1, num_outputs=2)
        g.node("Sigmoid", [name + "gate"], [name + "sigmoid"])
        g.node("Mul", [name + "gate", name + "sigmoid"], [name + "silu"])
        g.node("Mul", [name + "silu", name + "up"], [name + "activated"])
        down = g.linear(name + "activated", weights[name + "down"], name + "down")
        last = i == shape.layers - 1
        following = "final_norm" if last else f"layers.{i + 1}.attention_norm"
        x, skip = _add_and_norm(
            g, skip, down, following, weights[following], norm, "hidden_states" if last else None
        )
    g.node("Gather", ["hidden_states", "asked"], ["asked_states"], axis=1)
    block = BLOCK if shape.hidden % BLOCK_OUTPUT else BLOCK_OUTPUT
    g.linear("asked_states", weights["output" if "output" in weights else "embeddings"], "logits", block)
    return _model(g, shape)


def _add_and_norm(
    g: GraphWriter, skip: str, x: str, name: str, weight: np.ndarray, norm: dict, output: str | None = None
) -> tuple[str, str]:
    outputs = [output or name + ".out"] if output else [name + ".out", "", "", name + ".sum"]
    g.node(
        "SkipSimplifiedLayerNormalization", [skip, x, g.constant(name, weight)], outputs, MICROSOFT, **norm
    )
    return outputs[0], name + ".sum"


def _lengths(g: GraphWriter) -> None:
    """What attention needs of the bias: `total_length` () int32, and `last_index` (1,) int32 = total - 1."""
    g.node("Shape", ["attention_bias"], ["total"], start=3, end=4)
    g.node("Cast", ["total"], ["total_32"], to=TensorProto.INT32)
    g.node("Squeeze", ["total_32"], ["total_length"])
    g.node("Sub", ["total_32", g.constant("one", np.array([1], np.int32))], ["last_index"])


def _model(g: GraphWriter, shape: DecoderShape) -> onnx.ModelProto:
    def value(name: str, dims: list, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, dims)

    caches = [(i, kind) for i in range(shape.layers) for kind in ("key", "value")]
    inputs = [
        value("inputs_embeds", [1, "step", shape.hidden]),
        value("position_ids", [1, "step"], TensorProto.INT64),
        value("attention_bias", [1, 1, "step", "total"]),
        value("asked", ["asked"], TensorProto.INT64),
    ]
    inputs += [
        value(f"past_key_values.{i}.{kind}", [1, shape.kv_heads, "past", shape.head_dim])
        for i, kind in caches
    ]
    outputs = [
        value("logits", [1, "asked", shape.vocabulary]),
        value("hidden_states", [1, "step", shape.hidden]),
    ]
    outputs += [
        value(f"present.{i}.{kind}", [1, shape.kv_heads, "present", shape.head_dim])
        for i, kind in caches
    ]
    graph = helper.make_graph(g.nodes, "language_model", inputs, outputs, g.initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pixel_perception"
    )
