"""Backends by name."""

import pytest

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime import BACKENDS
from pixel_perception.runtime.backends import Either, open_backend
from pixel_perception.runtime.onnxruntime import OnnxRuntime


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


class Refusing(OnnxRuntime):
    """ONNX Runtime that finds at its first graph that something is missing, as the CUDA provider does without cuDNN."""

    def __init__(self, code):
        super().__init__(threads=1)
        self.name, self.code = "refusing", code

    def _open(self, path):
        raise PerceptionError(self.code, f"{path}: expected cuDNN.")


def test_a_gpu_that_does_not_start_leaves_the_cpu(tiny, caplog):
    backend = Either(Refusing("INVALID_QUERY"), OnnxRuntime(threads=1))
    assert backend.name == "refusing"
    assert backend.session(tiny.graph("proposals")).outputs and backend.decoder(tiny.graph("language_model")).hidden == 64
    assert backend.name == "onnxruntime-cpu" and caplog.text.count("expected cuDNN. onnxruntime-cpu is used instead.") == 1
    with pytest.raises(PerceptionError, match="expected cuDNN"):  # a broken bundle is broken on the CPU as well
        Either(Refusing("INVALID_BUNDLE"), OnnxRuntime(threads=1)).session(tiny.graph("proposals"))
