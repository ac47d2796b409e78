"""The matrices of an exported graph in 8 or 4 bits, by ONNX Runtime's own quantiser: a quarter or an eighth of the weights to read."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx

BITS = {"int8": 8, "int4": 4}
BLOCK = 32
"""Weights that share a scale."""


def rounded(path: Path, precision: str) -> onnx.ModelProto:
    """Round the constant matrices of a graph's products to a key of `BITS`, symmetrically and in place; the weights go to the file beside
    it (.data). Returns the graph without them."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    root.setLevel(level)  # the module has just made every library of the process talkative
    root.handlers[:] = handlers
    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)  # it tells of every node
    # As in the compact model's graph, products are computed in 8 bits on a CPU (accuracy_level).
    config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, accuracy_level=4, bits=BITS[precision])
    quantiser = MatMulNBitsQuantizer(onnx.load(path), algo_config=config)
    quantiser.process()
    data = path.with_name(f"{path.name}.data")
    for file in (path, data):  # all of it is in memory, and the new data would be written behind the old
        file.unlink(missing_ok=True)
    onnx.save(quantiser.model.model, path, save_as_external_data=True, location=data.name)
    return onnx.load(path, load_external_data=False)
