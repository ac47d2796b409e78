"""Backends by name."""

import pytest

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime import BACKENDS
from pixel_perception.runtime.backends import open_backend


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
