"""A torch module as an ONNX graph with the names of an interface: traced, simplified, renamed, checked, without traces."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from onnx_ir import external_data
from torch import Tensor, nn

from pixel_perception.export.language_graph import IR_VERSION, LARGE, OPSET

Axes = Mapping[int, str]
"""Axis -> name of its size, which may then change from run to run."""


def torch_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor | Sequence[Tensor]],
    axes: Mapping[str, Axes],
    outputs: Sequence[str],
    names: Mapping[str, Sequence[str]] | None = None,
    beside: Path | None = None,
) -> onnx.ModelProto:
    """Graph of `module(**inputs)`, which returns as many tensors as there are `outputs`.

    inputs: examples by argument; sizes named in `axes` must be at least 2 in them, because the exporter takes 0 and 1 for
    constants. An argument that is a list of tensors has the same axes for all, and its tensors are called as `names` says.
    beside: file that takes the weights, in the folder that the graph will be saved to, so that the graph may need more than the
    2 GB that one file can hold; such a graph is to be checked there (`onnx.checker.check_model(path)`).
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    flat = [name for key in inputs for name in ((names or {}).get(key) or [key])]

    def shape(key: str) -> dict | list | None:
        one = dict.fromkeys(axes.get(key, {}), torch.export.Dim.DYNAMIC) or None
        return one if isinstance(inputs[key], Tensor) else [one] * len(inputs[key])

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, about torch
        program = torch.onnx.export(
            module.eval(), (), kwargs=dict(inputs), dynamo=True, dynamic_shapes={key: shape(key) for key in inputs}, input_names=flat,
            output_names=list(outputs), opset_version=OPSET, optimize=True, verbose=False, external_data=False,
        )  # fmt: skip
    if beside is not None:
        program.model = external_data.unload_from_model(program.model, beside.parent, beside.name, size_threshold_bytes=LARGE)
    proto = program.model_proto
    proto.ir_version = IR_VERSION
    _name_axes(proto, {name: axes.get(key, {}) for key in inputs for name in ((names or {}).get(key) or [key])})
    del proto.graph.metadata_props[:], proto.metadata_props[:]
    for node in proto.graph.node:  # traces of the exporter: source paths of this machine
        node.ClearField("doc_string")
        del node.metadata_props[:]
    del proto.graph.value_info[:]
    if beside is None:
        onnx.checker.check_model(proto, full_check=True)
    return proto


def _name_axes(proto: onnx.ModelProto, axes: Mapping[str, Axes]) -> None:
    """Give the exporter's symbols (s40, ...) the names of the interface, in inputs and outputs; sums of them stay as they are."""
    names = {}
    for value in proto.graph.input:
        for axis, name in axes[value.name].items():
            names[value.type.tensor_type.shape.dim[axis].dim_param] = name
    for value in [*proto.graph.input, *proto.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                words = dim.dim_param.split()
                dim.dim_param = " ".join(names.get(word, word) for word in words)
