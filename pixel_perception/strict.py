"""Dataclasses out of plain values (JSON, YAML), strictly: what does not fit is one sentence that names the file and the field."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "names with values"}


def build(kind: Any, value: Any, where: str, error: Callable[[str], Exception], name: str = "",
          kinds: Mapping[str, type] | None = None) -> Any:
    """`value` as `kind`: a dataclass, a tuple, dict, Literal or union of what may stand here, int, float, str, bool or dict.

    Every complaint begins with `where` (a file) and the field, whose path begins with `name`; `error` makes what is raised of it.
    Where several dataclasses may stand in one place, the value's own field "kind" names one of `kinds`. Whole numbers count as
    float. What a dataclass itself objects to (a ValueError of its own) is reported for its field.
    """
    return _Reader(where, error, kinds or {}).read(kind, value, name)


def said(value: object) -> str:
    """A value as complaints show it."""
    return "nothing" if value is None else f"{value!r:.80}"


@dataclass(frozen=True)
class _Reader:
    where: str
    error: Callable[[str], Exception]
    kinds: Mapping[str, type]

    def read(self, kind: Any, value: Any, name: str) -> Any:
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if origin in (types.UnionType, typing.Union):
            return self._one_of(inner, value, name)
        if dataclasses.is_dataclass(kind):
            return self._fields(kind, value, name)
        if origin is Literal:
            self._expect(value in inner, name, f"one of {', '.join(map(str, inner))}", value)
            return value
        if origin is tuple:
            length = None if inner[-1] is Ellipsis else len(inner)
            fits = isinstance(value, (list, tuple)) and length in (None, len(value))
            self._expect(fits, name, "a list" if length is None else f"a list of {length}", value)
            return tuple(self.read(inner[0 if length is None else i], item, f"{name}[{i}]") for i, item in enumerate(value))
        if origin is not None:  # dict[str, X], Mapping[str, X]
            self._expect(isinstance(value, Mapping), name, _WORDS[dict], value)
            return {str(key): self.read(inner[1], item, _join(name, key)) for key, item in value.items()}
        if kind is float and type(value) is int:
            return float(value)
        self._expect(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), name, _WORDS[kind], value)
        return value

    def _fields(self, kind: Any, values: Any, name: str) -> Any:
        self._expect(isinstance(values, Mapping), name, "fields with values", values)
        hints, known = typing.get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}
        for key in values:
            if key not in known:
                raise self._wrong(_join(name, key), f"no such field; expected one of {', '.join(known)}, found {said(key)}")
        for key, f in known.items():
            if key not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise self._wrong(_join(name, key), "is missing; expected a value, found none")
        read = {key: self.read(hints[key], value, _join(name, key)) for key, value in values.items()}
        try:
            return kind(**read)
        except ValueError as error:
            raise self._wrong(name, str(error)) from None

    def _one_of(self, choices: tuple[Any, ...], value: Any, name: str) -> Any:
        if value is None and type(None) in choices:
            return None
        choices = tuple(choice for choice in choices if choice is not type(None))
        if len(choices) == 1:
            return self.read(choices[0], value, name)
        if dataclasses.is_dataclass(choices[0]):
            self._expect(isinstance(value, Mapping), name, "fields with values", value)
            kinds = {kind: known for kind, known in self.kinds.items() if known in choices}
            kind = value.get("kind")
            self._expect(kind in [*kinds], _join(name, "kind"), f"one of {', '.join(kinds)}", kind)
            return self._fields(kinds[kind], {key: item for key, item in value.items() if key != "kind"}, name)
        self._expect(type(value) in choices, name, " or ".join(_WORDS[choice] for choice in choices), value)
        return value

    def _expect(self, condition: bool, name: str, expected: str, found: object) -> None:
        if not condition:
            raise self._wrong(name, f"expected {expected}, found {said(found)}")

    def _wrong(self, name: str, complaint: str) -> Exception:
        return self.error(": ".join(part for part in (self.where, name, complaint) if part))


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
