"""A fused language graph read back: the shape and weights that `language_graph` wrote, one matrix in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from pixel_perception.errors import PerceptionError
from pixel_perception.export.base_weights import DecoderShape
from pixel_perception.export.language_graph import dequantize_int4, dequantize_int8, rotary_tables

_DEQUANTIZE = {4: dequantize_int4, 8: dequantize_int8}
"""By the bits of MatMulNBits."""
TOGETHER = 1024
"""Rows that are dequantised at once."""


class FusedLanguage(Mapping):
    """Weights of a graph of `language_graph` in fp32, under the names that it takes, each read when it is asked for; quantised ones
    come back exactly."""

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        """`path`: file of the graph, which may have been loaded without its external data: that is read from beside it.

        Raises PerceptionError INVALID_BUNDLE naming the file where the graph is another one.
        """
        self.model, self.path = model, path
        self.tensors = {t.name: t for t in model.graph.initializer}
        self.producers = {output: node for node in model.graph.node for output in node.output if output}
        try:
            self._places = self._found()
            self.shape = self._shape()
        except (KeyError, StopIteration, IndexError, ValueError) as error:
            raise PerceptionError("INVALID_BUNDLE", f"{path}: expected a language graph of this package in fp32, int8 or int4, found "
                                                    f"another one ({type(error).__name__}: {error}).") from error

    def __getitem__(self, name: str) -> np.ndarray:
        linear, rows = self._places[name]
        if not linear:
            return self._array(name)
        node = self.producers[linear]
        stored = self._array(node.input[1])
        if node.op_type == "MatMul":
            return np.ascontiguousarray(stored[:, rows].T)
        dequantize, scales = _DEQUANTIZE[attribute(node, "bits")], self._array(node.input[2])
        weight = np.empty((rows.stop - rows.start, attribute(node, "K")), np.float32)
        for begin in range(0, len(weight), TOGETHER):
            part = slice(rows.start + begin, min(rows.stop, rows.start + begin + TOGETHER))
            weight[begin : begin + TOGETHER] = dequantize(stored[part], scales[part])
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _found(self) -> dict[str, tuple[str, slice]]:
        """Weight -> the product that it is some rows of, and which; ("", ...) for a vector."""
        places = {name: ("", slice(0)) for name in self.tensors if name.endswith("norm")}
        places["output"] = "logits", slice(0, self._outputs("logits"))
        attention = next(n for n in self.model.graph.node if n.op_type == "GroupQueryAttention")
        heads, kv_heads = attribute(attention, "num_heads"), attribute(attention, "kv_num_heads")
        for i in range(self._layers()):
            name = f"layers.{i}."
            size = self._outputs(name + "qkv") // (heads + 2 * kv_heads)
            half = self._outputs(name + "gate_up") // 2
            parts = {"qkv": {"q": heads * size, "k": kv_heads * size, "v": kv_heads * size}, "gate_up": {"gate": half, "up": half},
                     "o": {"o": self._outputs(name + "o")}, "down": {"down": self._outputs(name + "down")}}  # fmt: skip
            for linear, widths in parts.items():
                begin = 0
                for part, width in widths.items():
                    places[name + part] = name + linear, slice(begin, begin + width)
                    begin += width
            places[name + "attention_norm"], places[name + "mlp_norm"]  # a KeyError names the one that is missing
        return places

    def _shape(self) -> DecoderShape:
        dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*self.model.graph.input, *self.model.graph.output)}
        attention = next(n for n in self.model.graph.node if n.op_type == "GroupQueryAttention")
        size, hidden = dims["past_key_values.0.key"][3], dims["inputs_embeds"][2]
        epsilon = next(attribute(n, "epsilon") for n in self.model.graph.node if n.op_type.endswith("SimplifiedLayerNormalization"))
        cos, sin = self._array("cos_cache"), self._array("sin_cache")
        # The second pair's angle at position 1 is base ** (-2 / size); four digits are more than a published base has.
        base = float(f"{np.arctan2(sin[1, 1], cos[1, 1]) ** (-size / 2):.4g}")
        shape = DecoderShape(self._layers(), hidden, self._outputs("layers.0.gate_up") // 2, attribute(attention, "num_heads"),
                             attribute(attention, "kv_num_heads"), size, self._outputs("logits"), epsilon, base, len(cos))  # fmt: skip
        if not np.allclose(rotary_tables(shape)[0], cos, atol=1e-3):
            raise ValueError(f"its rotary tables are not those of base {base:g}")
        return shape

    def outputs(self, name: str) -> int:
        """Rows of a matrix."""
        rows = self._places[name][1]
        return rows.stop - rows.start

    def _layers(self) -> int:
        return sum(bool(re.fullmatch(r"past_key_values\.\d+\.key", value.name)) for value in self.model.graph.input)

    def _outputs(self, linear: str) -> int:
        """Rows of a product's matrix."""
        node = self.producers[linear]
        for name in node.input[1:]:
            self.tensors[name]
        if node.op_type == "MatMul":
            return self.tensors[node.input[1]].dims[1]
        if node.op_type != "MatMulNBits" or len(node.input) != 3:
            raise ValueError(f"{linear} is a {node.op_type} of {len(node.input)} inputs")
        return self.tensors[node.input[1]].dims[0]

    def _array(self, name: str) -> np.ndarray:
        return read_tensor(self.tensors[name], self.path)


def read_tensor(tensor: TensorProto, path: Path) -> np.ndarray:
    """Values of an initializer of the graph in `path`; a map of its external data where it has such.

    Raises PerceptionError INVALID_BUNDLE naming the file where that is missing or too short.
    """
    if not uses_external_data(tensor):
        return numpy_helper.to_array(tensor)
    place = ExternalDataInfo(tensor)
    file, kind = path.parent / Path(place.location).name, helper.tensor_dtype_to_np_dtype(tensor.data_type)
    try:
        return np.memmap(file, kind, "r", place.offset or 0, tuple(tensor.dims))
    except (OSError, ValueError) as error:
        found = f"{file.stat().st_size} bytes" if file.is_file() else "no such file"
        end = (place.offset or 0) + int(np.prod(tensor.dims)) * np.dtype(kind).itemsize
        raise PerceptionError("INVALID_BUNDLE", f"{file}: expected at least {end} bytes, for the weight {tensor.name}, "
                                                f"found {found}.") from error


def attribute(node: onnx.NodeProto, name: str):
    """Value of a node's attribute. Raises StopIteration where it has none."""
    return next(helper.get_attribute_value(a) for a in node.attribute if a.name == name)
