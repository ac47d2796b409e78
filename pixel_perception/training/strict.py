"""Dataclasses out of YAML, strictly: an unknown or mistyped field is one sentence that names the file and the field."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used: one sentence that names the file and the field."""


def load(path: Path) -> dict[str, Any]:
    """The fields of a YAML file. Raises ConfigError."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected fields with values, found {said(values)}")
    return values


def put(values: dict[str, Any], override: str) -> None:
    """Put "section.field=value" into plain values, the value written as in YAML. Raises ConfigError."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected key=value, such as optimiser.rate=1e-4")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {parent} is a value and has no field {last!r}")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: expected a value as YAML writes it, found {text!r}") from None


def build(kind: type[T], values: Any, where: str, name: str = "") -> T:
    """An instance of a dataclass out of plain values; `where` and the field's `name` begin every complaint. Raises ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: {name}: expected fields with values, found {said(values)}")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: {_join(name, key)}: no such field; expected one of {', '.join(known)}")
    for key, f in known.items():
        if key not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: {_join(name, key)}: is missing")
    return kind(**{key: _value(hints[key], value, where, _join(name, key)) for key, value in values.items()})


def _value(kind: Any, value: Any, where: str, name: str) -> Any:
    """`value` as `kind`: a section, a choice, a number, a text, true or false, or several of them."""

    def wrong(expected: str) -> ConfigError:
        return ConfigError(f"{where}: {name}: expected {expected}, found {said(value)}")

    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _value(next(k for k in inner if k is not type(None)), value, where, name)
    if origin is Literal:
        if value not in inner:
            raise wrong(f"one of {', '.join(map(str, inner))}")
        return value
    if origin is tuple:
        length = None if inner[-1] is Ellipsis else len(inner)
        if not isinstance(value, (list, tuple)) or length not in (None, len(value)):
            raise wrong("a list" if length is None else f"a list of {length}")
        return tuple(_value(inner[0], v, where, f"{name}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where, name)
    if origin is not None:
        if not isinstance(value, Mapping):
            raise wrong("names with values")
        return {str(k): _value(inner[1], v, where, _join(name, k)) for k, v in value.items()}
    if kind is float:
        if isinstance(value, str):  # YAML 1.1 reads 1e-4, which has no point, as a text
            try:
                return float(value)
            except ValueError:
                raise wrong("a number") from None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong("a number")
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise wrong({int: "a whole number", str: "a text", bool: "true or false"}[kind])
    return value


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def said(value: object) -> str:
    """A value as complaints show it."""
    return "nothing" if value is None else repr(value)


def plain(value: Any) -> Any:
    """Mappings and tuples as YAML and JSON have them."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, tuple) else value


def flat(values: dict, above: str = "") -> dict[str, object]:
    """Nested fields as "section.field"."""
    out: dict[str, object] = {}
    for key, value in values.items():
        out |= flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return out
