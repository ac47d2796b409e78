"""Which classes run the graphs of each family of models (`bundle.FAMILIES`)."""

from __future__ import annotations

from pixel_perception.bundle import Bundle
from pixel_perception.runtime.compact import CompactLanguage, CompactVision
from pixel_perception.runtime.language import Speaker
from pixel_perception.runtime.pixelllm import PixelLLMVision
from pixel_perception.runtime.pixellm import PixelLMLanguage, PixelLMVision
from pixel_perception.runtime.sequence import SequenceLanguage
from pixel_perception.runtime.session import Backend
from pixel_perception.runtime.vision import Vision

SIDES: dict[str, tuple[type[Vision], type[Speaker]]] = {
    "compact": (CompactVision, CompactLanguage),
    "pixellm": (PixelLMVision, PixelLMLanguage),
    "pixelllm": (PixelLLMVision, SequenceLanguage),
}


def load(bundle: Bundle, backend: Backend) -> tuple[Vision, Speaker]:
    """Both sides of a verified bundle, every graph loaded. Raises PerceptionError INVALID_BUNDLE."""
    vision, language = SIDES[bundle.manifest.family]
    return vision(bundle, backend), language(bundle, backend)
