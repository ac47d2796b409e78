import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.onnxruntime import OnnxRuntime


@pytest.fixture(scope="module")
def backend():
    return OnnxRuntime(threads=1)


def test_a_file_that_is_no_graph(tmp_path, backend):
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(PerceptionError, match="graph.onnx: expected a graph") as caught:
        backend.session(path)
    assert caught.value.code == "INVALID_BUNDLE" and "\n" not in caught.value.message


def test_a_graph_of_a_newer_opset(tiny, tmp_path, backend):
    graph = onnx.load(tiny.graph("location_head"))
    graph.opset_import[0].version = 99
    onnx.save(graph, tmp_path / "graph.onnx")
    with pytest.raises(PerceptionError, match=rf"graph.onnx: expected .* ONNX Runtime {ort.__version__} .*, found: opset 99, newer than"):
        backend.session(tmp_path / "graph.onnx")


def test_a_graph_that_is_no_language_model(tiny, tmp_path, backend):
    path = shutil.copy(tiny.graph("proposals"), tmp_path / "language_model.onnx")
    with pytest.raises(PerceptionError, match=r"expected a language model .* found no .*inputs_embeds"):
        backend.decoder(path)


def test_a_wrong_shape_is_an_internal_error_of_one_line(tiny, backend):
    session = backend.session(tiny.graph("location_head"))
    assert session.inputs == ("hidden_states",) and session.outputs == ("points",)
    with pytest.raises(PerceptionError) as caught:
        session.run({"hidden_states": np.zeros((1, 3), np.float32)})
    assert caught.value.code == "INTERNAL" and "\n" not in caught.value.message


def test_inputs_need_not_be_contiguous(tiny, backend):
    session = backend.session(tiny.graph("location_head"))
    states = np.random.default_rng(0).normal(size=(4, 128)).astype(np.float32)[:, ::2]
    assert np.array_equal(session.run({"hidden_states": states})["points"], session.run({"hidden_states": states.copy()})["points"])


def test_threads_default_to_the_cores_of_this_process():
    assert 1 <= OnnxRuntime().threads <= 8 and OnnxRuntime(3).threads == 3
