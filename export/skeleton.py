"""Graphs without their weights: the structure travels as ONNX, the numbers once, as fp16, beside it.

Training tensors stay readable by name (to fine-tune them, or to compare a bundle with torch), and no number is stored
twice. A weight in a graph is found by its values, because exporters rename and transpose.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pixel_perception.errors import PerceptionError

SMALL = 64
"""Initializers of fewer values stay in the graph: shapes, scales, single numbers."""
WEIGHT, TRANSPOSED = "weight:", "transposed:"
"""What the description of an emptied initializer begins with; a tensor's name follows."""


def strip(
    model: onnx.ModelProto, weights: dict[str, np.ndarray], graph: str
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Empty every fp32 initializer of at least `SMALL` values.

    weights: fp32 tensors by name. Returns a copy whose initializers name their tensors, and the values that are not among
    `weights` (tables that the network computes once), under "constants.{graph}.{initializer}".
    """
    known: dict[tuple, str] = {}
    for name, value in weights.items():
        if value.ndim == 2:
            known[value.T.shape, value.T.tobytes()] = TRANSPOSED + name
    for name, value in weights.items():
        known[value.shape, value.tobytes()] = WEIGHT + name
    out, constants = onnx.ModelProto(), {}
    out.CopyFrom(model)
    for tensor in out.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < SMALL:
            continue
        value = numpy_helper.to_array(tensor)
        place = known.get((value.shape, value.tobytes()))
        if place is None:
            name = f"constants.{graph}.{tensor.name}"
            constants[name] = value
            place = WEIGHT + name
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.doc_string = place
    return out, constants


def fill(model: onnx.ModelProto, tensors: dict[str, np.ndarray], where: str) -> onnx.ModelProto:
    """Put the numbers back, as fp32: inverse of `strip`.

    tensors: weights and constants by name, any float type; `where` names the graph in errors. Raises PerceptionError
    INVALID_BUNDLE when a tensor is missing or has another shape.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for tensor in out.graph.initializer:
        kind, _, name = tensor.doc_string.partition(":")
        if kind + ":" not in (WEIGHT, TRANSPOSED):
            continue
        value = tensors.get(name)
        if value is not None and kind + ":" == TRANSPOSED:
            value = value.T
        if value is None or value.shape != tuple(tensor.dims):
            found = "no such tensor" if value is None else f"shape {value.shape}"
            raise PerceptionError(
                "INVALID_BUNDLE",
                f"{where}: expected the tensor {name} as {tuple(tensor.dims)}, found {found}.",
            )
        tensor.raw_data = np.ascontiguousarray(value, np.float32).tobytes()
        tensor.ClearField("doc_string")
    return out
