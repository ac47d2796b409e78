"""What a graph of a bundle becomes for ONNX Runtime on CUDA: vision in fp16, language with fp16 activations.

The fused language graph is for the CPU: on CUDA, GroupQueryAttention has kernels for fp16 and bf16 alone, and takes an
`attention_bias` only in recent releases. So attention is in plain operators, as for TensorRT, around the products of the bundle:
their 4-bit and 8-bit weights stay as they are, in the very file that they are in, and only scales become fp16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from pixel_perception.export.fused_language import FusedLanguage, attribute
from pixel_perception.export.gpu_graph import gpu_graph, is_language, load_graph
from pixel_perception.export.language_graph import MICROSOFT
from pixel_perception.export.plain_graph import PlainGraph

JOINED = {"q": "qkv", "gate": "gate_up", "output": "logits"}
"""Products of the fused graph that are several of ours, or have another name, by the first of ours."""


def cuda_graph(path: Path) -> onnx.ModelProto:
    """The form of a bundle's graph; external data of a language graph stays where it is. Raises PerceptionError INVALID_BUNDLE
    naming the file."""
    model = load_graph(path)
    return language_on_cuda(FusedLanguage(model, path)) if is_language(model) else gpu_graph(path)


def language_on_cuda(language: FusedLanguage, compute: type = np.float16) -> onnx.ModelProto:
    """The interface of `plain_graph`, with the matrices of a fused graph by reference."""
    return _Packed(language.shape, language, compute).model()


class _Packed(PlainGraph):
    """Matrices as MatMulNBits (or MatMul), several that read the same as one."""

    weights: FusedLanguage

    def linears(self, x: str, prefix: str, parts: Sequence[str]) -> None:
        fused = self.weights.producers[prefix + JOINED.get(parts[0], parts[0])]
        joined = prefix + (parts[0] if len(parts) == 1 else JOINED[parts[0]])
        weight, *scales = fused.input[1:]
        self.initializers += [self.weights.tensors[name] for name in fused.input[1:]]
        if fused.op_type == "MatMulNBits":
            sizes = {name: attribute(fused, name) for name in ("K", "N", "bits", "block_size")}
            scales = [self._cast(name, name + ".cast", self.type) for name in scales]
            self.node("MatMulNBits", [x, weight, *scales], [joined], MICROSOFT, **sizes)
        else:
            self.node("MatMul", [x, self._cast(weight, weight + ".cast", self.type)], [joined])
        if len(parts) > 1:
            names = [prefix + part for part in parts]
            widths = [self.weights.outputs(name) for name in names]
            self.node("Split", [joined, self._ints("widths_of_" + JOINED[parts[0]], *widths)], names, axis=-1)
