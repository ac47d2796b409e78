"""What memory and arithmetic allow: measured on the same machine in the same run, against the work that graphs hold."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

SPREAD = 512 << 20
"""Bytes read to measure bandwidth: far more than any cache holds."""
SIDE = 1024
"""Of the square matrices that peak arithmetic is measured with."""


@dataclass(frozen=True)
class Machine:
    """What this machine can do at most, as far as was seen."""

    bandwidth: float
    """Bytes read from memory per second."""
    language: float
    """Operations (a multiplication and an addition are two) per second of a matrix product as language needs it: 8 bits on a CPU,
    fp16 on a GPU."""
    vision: float
    """The same as vision needs it: fp32 on a CPU, fp16 on a GPU."""


@dataclass(frozen=True)
class Work:
    """What reading one token takes at least."""

    operations: float
    weights: float
    """Bytes of weights, each of which is read once."""


def measure(threads: int) -> Machine:
    """Of the CPU: best of several runs each, a few seconds in all."""
    with ThreadPoolExecutor(threads) as pool:
        block = np.ones(SPREAD // 8, np.float64)
        pieces = np.array_split(block, threads)
        bandwidth = SPREAD / best(lambda: list(pool.map(np.sum, pieces)), 5)
    return Machine(bandwidth, _product(threads, np.uint8), _product(threads, np.float32))


def best(work: Callable[[], object], runs: int) -> float:
    """Least seconds of some runs, after one that warms up."""
    seconds = []
    for _ in range(runs + 1):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _product(threads: int, kind: type) -> float:
    """Operations per second of ONNX Runtime's own matrix product with constant weights, fp32 or 8 bits."""
    weights = np.random.default_rng(0).integers(-100, 100, (SIDE, SIDE))
    exact = kind is np.float32
    weight = numpy_helper.from_array(weights.astype(np.float32 if exact else np.int8), "w")
    element = TensorProto.FLOAT if exact else TensorProto.UINT8
    node = helper.make_node("MatMul" if exact else "MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", [helper.make_tensor_value_info("x", element, [SIDE, SIDE])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT if exact else TensorProto.INT32, [SIDE, SIDE])],
                              [weight])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.ones((SIDE, SIDE), kind)
    return 2 * SIDE**3 / best(lambda: session.run(None, {"x": x}), 12)


def token_of(path: Path) -> Work:
    """Count the matrix products with weights of a language graph, as its nodes state them; attention is not among them."""
    graph = onnx.load(path, load_external_data=False).graph
    held = {t.name: prod(t.dims) * helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for t in graph.initializer}
    sizes = {t.name: prod(t.dims) for t in graph.initializer}
    operations = weights = 0.0
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            attributes = {a.name: a.i for a in node.attribute}
            operations += 2.0 * attributes["K"] * attributes["N"]
            weights += held[node.input[1]] + held[node.input[2]]
        elif node.op_type == "MatMul" and node.input[1] in held:
            operations += 2.0 * sizes[node.input[1]]
            weights += held[node.input[1]]
    return Work(operations, weights)


def operations_of(path: Path, feeds: Mapping[str, np.ndarray]) -> float:
    """Count matrix products and convolutions of one run of a graph, from the shapes that a profile of it shows."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights have no shape to be counted by
    operations = 0.0
    for event in _profiled(path, feeds, options, 1):
        inputs, outputs = ([next(iter(s.values())) for s in event["args"][f"{side}_type_shape"]] for side in ("input", "output"))
        operations += _operations(event["args"]["op_name"], inputs, outputs)
    return operations


def operators(path: Path, feeds: Mapping[str, np.ndarray], threads: int, runs: int = 20) -> dict[str, float]:
    """Milliseconds of one run by kind of operator, the longest first: mean of `runs` that are profiled, after as many that warm
    up. Profiling itself costs some microseconds for each operator, which are not in the figures."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    spent: dict[str, float] = {}
    events = _profiled(path, feeds, options, 2 * runs)
    for event in events[len(events) // 2 :]:
        kind = event["args"]["op_name"]
        spent[kind] = spent.get(kind, 0.0) + event["dur"] / 1000 / runs
    return {kind: round(spent[kind], 3) for kind in sorted(spent, key=spent.get, reverse=True)}


def _profiled(path: Path, feeds: Mapping[str, np.ndarray], options: ort.SessionOptions, runs: int) -> list[dict]:
    """What ONNX Runtime's profile says of every operator that ran."""
    options.enable_profiling, options.log_severity_level = True, 4
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]


def _operations(kind: str, inputs: list[list[int]], outputs: list[list[int]]) -> float:
    if kind in ("Conv", "FusedConv", "ConvInteger"):
        return 2.0 * prod(outputs[0]) * prod(inputs[1][1:])
    if kind in ("MatMul", "FusedMatMul", "MatMulInteger"):
        return 2.0 * prod(outputs[0]) * inputs[0][-1]
    if kind == "Gemm":
        return 2.0 * prod(outputs[0]) * prod(inputs[1]) / outputs[0][-1]
    return 0.0
