"""Graphs without weights, and small vision graphs against torch."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from pixel_perception.errors import PerceptionError
from pixel_perception.export import skeleton
from pixel_perception.export.torch_graph import torch_graph
from pixel_perception.export.vision import wrappers
from pixel_perception.models.compact import Compact
from pixel_perception.models.config import CompactConfig

NAMES = ("token_fusion", "location_head", "proposals")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Compact(CompactConfig()).eval()


@pytest.fixture(scope="module", params=NAMES)
def exported(request, model):
    parts = wrappers(model)[request.param]
    return request.param, parts, torch_graph(*parts)


def run(graph, inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {name: t.numpy() for name, t in inputs.items()})


def test_equals_torch_with_other_sizes(exported):
    _, (module, inputs, axes, names), graph = exported
    torch.manual_seed(1)
    for count in (1, 5):
        changed = {}
        for key, value in inputs.items():
            size = [count if axis in axes[key] else d for axis, d in enumerate(value.shape)]
            changed[key] = torch.randn(size)
        with torch.no_grad():
            wanted = module(**changed)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        found = run(graph, changed)
        assert [o.name for o in graph.graph.output] == list(names)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-3, atol=1e-4)


def test_axes_have_names(exported):
    _, (_, _, axes, _), graph = exported
    wanted = {name for which in axes.values() for name in which.values()}
    for value in [*graph.graph.input, *graph.graph.output]:
        assert {d.dim_param for d in value.type.tensor_type.shape.dim if d.dim_param} == wanted


def test_strip_and_fill_return_the_graph(exported, model):
    name, (_, inputs, _, _), graph = exported
    weights = {key: t.numpy() for key, t in model.state_dict().items()}
    bones, constants = skeleton.strip(graph, weights, name)
    assert bones.ByteSize() < graph.ByteSize() / 5
    used = {t.doc_string.partition(":")[2] for t in bones.graph.initializer}
    matrices = {
        key for key, w in weights.items() if key.startswith(name) and w.ndim >= 2 and w.size >= skeleton.SMALL
    }
    assert matrices and matrices <= used
    whole = skeleton.fill(bones, weights | constants, name)
    onnx.checker.check_model(whole, full_check=True)
    for a, b in zip(graph.graph.initializer, whole.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))
    for a, b in zip(run(graph, inputs), run(whole, inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_fill_names_a_missing_or_misshapen_tensor(exported, model):
    name, _, graph = exported
    weights = {key: t.numpy() for key, t in model.state_dict().items()}
    bones, constants = skeleton.strip(graph, weights, name)
    used = sorted({t.doc_string.partition(":")[2] for t in bones.graph.initializer if t.doc_string})
    tensors = weights | constants
    with pytest.raises(
        PerceptionError, match=rf"{name}: expected the tensor {used[0]} .*found no such tensor"
    ):
        skeleton.fill(bones, {key: t for key, t in tensors.items() if key != used[0]}, name)
    with pytest.raises(PerceptionError, match=r"found shape \(3,\)"):
        skeleton.fill(bones, tensors | {used[0]: np.zeros(3)}, name)
