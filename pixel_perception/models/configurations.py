"""The configurations by name, and any configuration as plain JSON."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pixel_perception.models.config import CompactConfig
from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.t5 import T5Config
from pixel_perception.models.pixelllm.text_decoder import TextDecoderConfig
from pixel_perception.models.pixellm.config import PixelLMConfig

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


def from_dict(values: dict[str, Any], kind: type | None = None, where: str = "configuration") -> Any:
    """Inverse of `to_dict`; fields that are not given keep their defaults.

    Raises ConfigurationError for an unknown kind or field, a value of another type, or values that contradict each other.
    """
    if not isinstance(values, dict):
        raise ConfigurationError(f"{where}: expected an object with fields, found {values!r}")
    values = dict(values)
    if kind is None or "kind" in values:
        name = values.pop("kind", None)
        if name not in KINDS:
            raise ConfigurationError(f"{where}.kind: expected one of {', '.join(KINDS)}, found {name!r}")
        kind = KINDS[name]
    hints = get_type_hints(kind)
    if unknown := sorted(values.keys() - hints.keys()):
        raise ConfigurationError(f"{where}.{unknown[0]}: no such field; expected one of {', '.join(hints)}")
    try:
        return kind(**{name: _typed(value, hints[name], f"{where}.{name}") for name, value in values.items()})
    except ConfigurationError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _typed(value: Any, hint: Any, where: str) -> Any:
    choices = get_args(hint) if get_origin(hint) is types.UnionType else (hint,)
    if value is None and type(None) in choices:
        return None
    parts = [choice for choice in choices if is_dataclass(choice)]
    if parts:
        found = from_dict(value, parts[0] if len(parts) == 1 else None, where)
        if not isinstance(found, tuple(parts)):
            raise ConfigurationError(f"{where}: expected {' or '.join(part.__name__ for part in parts)}, found {type(found).__name__}")
        return found
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigurationError(f"{where}: expected a list, found {value!r}")
        return tuple(_typed(item, get_args(hint)[0], where) for item in value)
    allowed = (int, float) if hint is float else hint
    if not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool):
        raise ConfigurationError(f"{where}: expected {hint.__name__}, found {value!r}")
    return hint(value)


def read(path: str | Path) -> Config:
    """A configuration from a JSON file. Raises ConfigurationError."""
    try:
        return from_dict(json.loads(Path(path).read_text()), where=str(path))
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{path}: expected JSON, found {error}") from None


def write(config: Config, path: str | Path) -> None:
    """The configuration as a JSON file."""
    Path(path).write_text(json.dumps(to_dict(config), indent=2) + "\n")
