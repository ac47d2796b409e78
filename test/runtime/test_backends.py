"""Backends by name, and answering on one while another is loaded. ONNX Runtime stands on both sides, with real graphs."""

import threading

import numpy as np
import pytest

from pixel_perception.errors import PerceptionError
from pixel_perception.perception import Perception
from pixel_perception.runtime import BACKENDS
from pixel_perception.runtime.backends import Meanwhile, open_backend
from pixel_perception.runtime.onnxruntime import OnnxRuntime
from pixel_perception.types import Query


class Slow(OnnxRuntime):
    """ONNX Runtime that loads a graph only once it is allowed to, as a backend does that builds."""

    def __init__(self, cached=(), broken=()):
        super().__init__(threads=1)
        self.name, self.cached, self.broken, self.allowed, self.loaded = "slow", cached, broken, threading.Event(), []

    def ready(self, path):
        return path.stem in self.cached

    def _open(self, path):
        if path.stem not in self.cached:
            assert self.allowed.wait(60)
        if path.stem in self.broken:
            raise PerceptionError("INVALID_BUNDLE", f"{path}: expected something else.")
        self.loaded.append(path.stem)
        return super()._open(path)


@pytest.mark.parametrize("name", ["auto", "onnxruntime", "onnxruntime-cpu"])
def test_names(name):
    backend = open_backend(name, 2)
    assert name in BACKENDS and backend.threads == 2
    if name != "auto":
        assert backend.name == "onnxruntime-cpu"


def test_what_is_not_there_is_said_in_one_sentence():
    with pytest.raises(PerceptionError, match="expected one of auto, onnxruntime, .*tensorrt, found 'abacus'"):
        open_backend("abacus")
    for name in ("onnxruntime-cuda", "tensorrt"):
        try:
            open_backend(name)
        except PerceptionError as error:
            assert error.code == "INVALID_QUERY" and "\n" not in error.message
            assert "expected" in error.message and "found" in error.message and ("install" in error.message or "use" in error.message)


def test_a_frame_is_answered_while_engines_are_built(tiny, perception, image):
    slow = Slow()
    backend = Meanwhile(OnnxRuntime(threads=1), slow)
    opened = Perception(tiny, backend)
    assert backend.name == "slow (onnxruntime-cpu for 7 graphs)" == opened.info.backend and not slow.loaded
    query = Query("the mug and the banana")
    wanted = perception.ask(image, query)
    before = opened.ask(image, query)
    frame = opened.encode(image)
    prefix = opened.prefix(frame)
    slow.allowed.set()
    assert backend.wait(60) and len(slow.loaded) == 7 and backend.name == "slow"
    for result in (before, opened.ask(frame, query), opened.ask(image, query)):
        assert result.text == wanted.text and [i.box for i in result.instances] == [i.box for i in wanted.instances]
    # A frame that was read before the exchange is asked further questions where it was read; a new one is read anew.
    assert prefix.decoder is not opened.prefix(opened.encode(image)).decoder
    captions = opened.ask(frame, Query("", boxes=((100, 70, 200, 170), (420, 250, 560, 370))))
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


def test_progress_in_words():
    backend = Meanwhile(OnnxRuntime(threads=1), Slow())
    backend.report("pixel_decoder", 0.4)
    assert backend.progress == "building the engine of pixel_decoder: 40 %"
    backend.report("pixel_decoder", 1.0)
    assert backend.progress == ""
