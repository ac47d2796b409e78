"""Answering on one backend while another is loaded and compared. ONNX Runtime stands on both sides, with real graphs."""

import threading

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pixel_perception.errors import PerceptionError
from pixel_perception.perception import Perception
from pixel_perception.runtime.meanwhile import RUNS, STEPS, Meanwhile
from pixel_perception.runtime.onnxruntime import OnnxRuntime
from pixel_perception.types import Query


class Slow(OnnxRuntime):
    """ONNX Runtime that loads a graph only once it is allowed to, as a backend does that builds."""

    def __init__(self, cached=(), broken=(), replaced=None):
        super().__init__(threads=1)
        self.name, self.cached, self.broken, self.replaced = "slow", cached, broken, replaced or {}
        self.allowed, self.loaded, self.figures = threading.Event(), [], {}

    def ready(self, path):
        return path.stem in self.cached

    def agreed(self, path, figures):
        self.figures[path.stem] = figures

    def _open(self, path):
        if path.stem not in self.cached:
            assert self.allowed.wait(60)
        if path.stem in self.broken:
            raise PerceptionError("INVALID_BUNDLE", f"{path}: expected something else.")
        self.loaded.append(path.stem)
        return super()._open(self.replaced.get(path.stem, path))


def same(result, wanted):
    return result.text == wanted.text and [i.box for i in result.instances] == [i.box for i in wanted.instances]


def test_a_frame_is_answered_while_engines_are_built_and_compared(tiny, perception, image):
    slow = Slow()
    backend = Meanwhile(OnnxRuntime(threads=1), slow)
    opened = Perception(tiny, backend)
    assert backend.name == "slow (onnxruntime-cpu for 7 graphs)" == opened.info.backend and not slow.loaded
    query = Query("the mug and the banana")
    wanted = perception.ask(image, query)
    frame = opened.encode(image)
    assert same(opened.ask(frame, query), wanted)
    early = opened.prefix(frame)
    slow.allowed.set()
    assert backend.wait(60) and len(slow.loaded) == 7 and not slow.figures  # loaded, but not yet trusted
    assert same(opened.ask(frame, query), wanted) and "language_model" not in slow.figures  # begun before: stays where it was
    while "language_model" not in slow.figures:
        assert same(opened.ask(image, query), wanted)
    opened.ask(image, Query("describe the scene"))
    assert backend.name == "slow" and len(slow.figures) == 7
    assert all(f == {"against": "onnxruntime-cpu", "least_cosine": 1.0} for f in slow.figures.values())
    assert same(opened.ask(image, query), wanted) and same(opened.ask(frame, query), wanted)
    assert early.decoder is not opened.prefix(opened.encode(image)).decoder
    for on in (frame, image):
        captions = opened.ask(on, Query("", boxes=((100, 70, 200, 170), (420, 250, 560, 370))))
        assert len(captions.regions) == 2 and all(r.caption for r in captions.regions)


def test_what_is_ready_is_loaded_at_once(tiny):
    slow = Slow(cached=("proposals", "language_model"))
    backend = Meanwhile(OnnxRuntime(threads=1), slow)
    session, decoder = backend.session(tiny.graph("proposals")), backend.decoder(tiny.graph("language_model"))
    assert slow.loaded == ["proposals", "language_model"] and backend.name == "slow" and backend.wait(0)
    assert set(session.outputs) == {"boxes", "scores"} and decoder.hidden == 64


def test_a_graph_that_cannot_be_built_stays(tiny, caplog):
    slow = Slow(broken=("location_head",))
    slow.allowed.set()
    backend = Meanwhile(OnnxRuntime(threads=1), slow)
    session = backend.session(tiny.graph("location_head"))
    assert backend.wait(60)
    assert backend.name == "slow (onnxruntime-cpu for 1 graphs)" and backend.progress == ""
    assert "location_head.onnx stays on onnxruntime-cpu" in caplog.text and "expected something else" in caplog.text
    assert session.run({"hidden_states": np.zeros((2, 64), np.float32)})["points"].shape == (2, 4)


def spoilt(path, folder):
    """The same graph with another weight matrix."""
    model = onnx.load(path)
    tensor = max((t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2),
                 key=lambda t: np.prod(t.dims))  # fmt: skip
    values = np.random.default_rng(0).normal(size=tuple(tensor.dims)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, folder / path.name)
    return folder / path.name


@pytest.mark.parametrize("graph", ["location_head", "language_model"])
def test_a_graph_that_computes_something_else_stays(tiny, tmp_path, caplog, graph):
    slow = Slow(replaced={graph: spoilt(tiny.graph(graph), tmp_path)})
    slow.allowed.set()
    backend = Meanwhile(OnnxRuntime(threads=1), slow)
    rng, exact = np.random.default_rng(0), OnnxRuntime(threads=1)
    if graph == "location_head":
        session, reference = backend.session(tiny.graph(graph)), exact.session(tiny.graph(graph))
        assert backend.wait(60)
        for _ in range(RUNS + 1):
            feeds = {"hidden_states": rng.normal(size=(3, 64)).astype(np.float32)}
            assert np.array_equal(session.run(feeds)["points"], reference.run(feeds)["points"])
    else:
        decoder, reference = backend.decoder(tiny.graph(graph)), exact.decoder(tiny.graph(graph))
        assert backend.wait(60)
        past = wanted = None
        for _ in range(STEPS + 2):
            x = rng.normal(size=(1, 1, 64)).astype(np.float32)
            step, other = decoder.read(x, past), reference.read(x, wanted)
            assert np.array_equal(step.states[0], other.states[0])
            past, wanted = step.past, other.past
    assert f"{graph}.onnx stays on onnxruntime-cpu: expected what slow computes to have a cosine of at least 0.99, found" in caplog.text
    assert not slow.figures and backend.name == "slow (onnxruntime-cpu for 1 graphs)"


def test_progress_in_words():
    backend = Meanwhile(OnnxRuntime(threads=1), Slow())
    backend.report("pixel_decoder", 0.4)
    assert backend.progress == "building the engine of pixel_decoder: 40 %"
    backend.report("pixel_decoder", 1.0)
    assert backend.progress == ""
