"""Which TensorRT is installed, without needing any."""

from __future__ import annotations

import importlib
from types import ModuleType

from pixel_perception.errors import PerceptionError

LIBRARIES = ("tensorrt", "tensorrt_rtx")
"""Tried in this order: 10.x (JetPack) or 11.x, then TensorRT for RTX, whose Python interface is the same."""


def find_tensorrt() -> tuple[ModuleType, str]:
    """The library and its name with version, such as "tensorrt_rtx 1.7.1.116". Raises PerceptionError INVALID_QUERY."""
    reasons = []
    for name in LIBRARIES:
        try:
            module = importlib.import_module(name)
            return module, f"{name} {module.__version__}"
        except (ImportError, OSError, AttributeError) as error:  # a library without its driver, a stub without a version
            reasons.append(f"{name}: {error}")
    raise PerceptionError("INVALID_QUERY", "backend: expected TensorRT to be installed (pip install pixel_perception[tensorrt], or "
                                           f"JetPack's python3-libnvinfer), found none ({'; '.join(reasons)}).")
