"""What a graph of a bundle becomes for TensorRT: vision in fp16, language in plain operators.

A bundle is made for ONNX Runtime and holds everything that is needed: the weights of its fused language graph are read back
here, so that a robot needs neither the base weights nor torch to build engines.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import onnx

from pixel_perception.errors import PerceptionError
from pixel_perception.export.eight_bit import to_fp32
from pixel_perception.export.fused_language import FusedLanguage, attribute
from pixel_perception.export.half import to_half
from pixel_perception.export.plain_graph import plain_graph


def gpu_graph(path: Path, precision: str = "auto", beside: BinaryIO | None = None) -> onnx.ModelProto:
    """The GPU form of a bundle's graph. Vision is fp16, also where its products are in 8 bits for the CPU; `precision` is how language
    weights are stored: a key of `plain_graph.WEIGHTS`, or "auto": int4 where the bundle has passed its gate with that, else fp16.

    `beside`: an open file that takes the large weights one by one; memory then holds the largest of them and no more. Raises
    PerceptionError INVALID_BUNDLE naming the file.
    """
    model = load_graph(path)
    if is_language(model):
        return plain_graph((language := FusedLanguage(model, path)).shape, language, language_precision(model, precision), beside=beside)
    return to_half(to_fp32(model), path, beside)


def write_gpu_graph(path: Path, precision: str, out: Path) -> Path:
    """Write the GPU form of a bundle's graph to a file, with its large weights beside it in `out`.data, and return `out`. Raises
    PerceptionError INVALID_BUNDLE as `gpu_graph`, and OSError."""
    with open(f"{out}.data", "wb") as beside:
        onnx.save(gpu_graph(path, precision, beside), out)
    return out


def load_graph(path: Path) -> onnx.ModelProto:
    """A graph as it is in its file, without external data. Raises PerceptionError INVALID_BUNDLE."""
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf and onnx have no common error
        raise PerceptionError("INVALID_BUNDLE", f"{path}: expected an ONNX graph, found: {error}.") from error


def is_language(model: onnx.ModelProto) -> bool:
    """Whether it is a fused language graph."""
    return any(node.op_type == "GroupQueryAttention" for node in model.graph.node)


def stored_bits(model: onnx.ModelProto) -> int:
    """Bits of a fused language graph's weights: 4, 8 or 32."""
    return min((attribute(node, "bits") for node in model.graph.node if node.op_type == "MatMulNBits"), default=32)


def language_precision(model: onnx.ModelProto, precision: str) -> str:
    """What "auto" means for a fused language graph."""
    return precision if precision != "auto" else "int4" if stored_bits(model) == 4 else "fp16"
