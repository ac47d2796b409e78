"""The configurations by name, and any configuration as plain JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from pixel_perception.models.config import CompactConfig
from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.t5 import T5Config
from pixel_perception.models.pixelllm.text_decoder import TextDecoderConfig
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.strict import build

Config = CompactConfig | PixelLMConfig | PixelLLMConfig

CONFIGURATIONS: dict[str, Callable[[], Config]] = {
    "compact": CompactConfig,
    "pixellm-7b": PixelLMConfig.pixellm_7b,
    "pixellm-13b": PixelLMConfig.pixellm_13b,
    "pixellm-tiny": lambda: PixelLMConfig.tiny(vocabulary=1024),
    "pixelllm-t5xl": PixelLLMConfig.pixelllm_t5xl,
    "pixelllm-t5xl-paper": lambda: PixelLLMConfig.pixelllm_t5xl().as_in_paper(),
    "pixelllm-small": PixelLLMConfig.pixelllm_small,
    "pixelllm-tiny": lambda: PixelLLMConfig.tiny("t5", detector=True, vocabulary=512),
    "pixelllm-small-tiny": lambda: replace(PixelLLMConfig.tiny("text_decoder", detector=True, vocabulary=512), begin=2, end=3),
}
"""Name: constructor. The tiny ones have every part of the large ones and train in seconds on a processor."""

KINDS: dict[str, type] = {"compact": CompactConfig, "pixellm": PixelLMConfig, "pixelllm": PixelLLMConfig, "t5": T5Config,
                          "text_decoder": TextDecoderConfig}  # fmt: skip
"""Dataclasses that could stand in the same place; in JSON their field "kind" tells which it is."""

VARYING = ("losses", "smoothing", "location_weight", "longest", "vocabulary", "first", "eps", "context")
"""Fields in which a model folder may differ from the configuration that it is named after: those that only matter in training,

and those that only published files know (how many tokens there are, which of them the codebook's first is).
"""


class ConfigurationError(ValueError):
    """A configuration that does not exist or cannot be read; the message names the field."""


def configuration(name: str) -> Config:
    """The configuration of a name. Raises ConfigurationError for another than those of `CONFIGURATIONS`."""
    if name not in CONFIGURATIONS:
        raise ConfigurationError(f"configuration: expected one of {', '.join(CONFIGURATIONS)}, found {name!r}")
    return CONFIGURATIONS[name]()


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as dicts, lists, strings and numbers."""
    kind = next((name for name, known in KINDS.items() if type(config) is known), None)
    return ({"kind": kind} if kind else {}) | {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_dict(values: Any, where: str = "") -> Config:
    """Inverse of `to_dict`; fields that are not given keep their defaults. `where` names the file in complaints.

    Raises ConfigurationError for an unknown kind or field, a value of another type, or values that contradict each other.
    """
    return build(Config, values, where, ConfigurationError, "configuration", KINDS)


def read(path: str | Path) -> Config:
    """A configuration from a JSON file. Raises ConfigurationError."""
    try:
        return from_dict(json.loads(Path(path).read_text()), str(path))
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{path}: expected JSON, found {error}") from None


def write(config: Config, path: str | Path) -> None:
    """The configuration as a JSON file."""
    Path(path).write_text(json.dumps(to_dict(config), indent=2) + "\n")
