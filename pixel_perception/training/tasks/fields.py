"""Values out of annotation files that know where they stand, so that every complaint names file, record and field."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pixel_perception.training.tasks.sample import Source, TaskError
from pixel_perception.types import Box

EDGE = 2.0
"""Pixels by which an annotated box may leave its image: human annotators and rounding do, a box of another image does by more."""


class Field:
    """A JSON value with its file, record and name. Accessors raise TaskError where the value is not what they return."""

    __slots__ = ("value", "file", "record", "name")

    def __init__(self, value: Any, file: str | Path, record: str = "", name: str = "") -> None:
        self.value, self.file, self.record, self.name = value, file, record, name

    def wrong(self, expected: str, found: object = None) -> TaskError:
        """The complaint about this value; `found` instead of the value where that says more."""
        seen = found if found is not None else "nothing" if self.value is None else repr(self.value)
        seen = str(seen)
        return TaskError(self.file, f"expected {expected}, found {seen if len(seen) <= 60 else seen[:57] + '...'}", self.record, self.name)

    def __getitem__(self, key: str) -> Field:
        """A member that must be there."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object", type(self.value).__name__)
        if key not in self.value:
            raise self._child(None, key).wrong("a value", "no such field")
        return self._child(self.value[key], key)

    def get(self, key: str) -> Field | None:
        """A member that may be missing (or null)."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object", type(self.value).__name__)
        return None if self.value.get(key) is None else self[key]

    def _child(self, value: Any, key: str) -> Field:
        return Field(value, self.file, self.record, f"{self.name}.{key}" if self.name else key)

    def items(self) -> list[Field]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list", type(self.value).__name__)
        return [Field(v, self.file, self.record, f"{self.name}[{i}]") for i, v in enumerate(self.value)]

    def records(self) -> Iterator[Field]:
        """The elements of a list as records of their own, named by place and id."""
        for item in self.items():
            number = item.value.get("id") if isinstance(item.value, dict) else None
            yield Field(item.value, self.file, item.name + (f" (id {number})" if isinstance(number, (int, str)) else ""))

    def text(self) -> str:
        """A string that holds more than white space, stripped."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.wrong("a text")
        return self.value.strip()

    def key(self) -> int | str:
        """An id."""
        if isinstance(self.value, bool) or not isinstance(self.value, (int, str)):
            raise self.wrong("an id")
        return self.value

    def size(self) -> int:
        """A number of pixels."""
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)) or self.value < 1 or self.value != int(self.value):
            raise self.wrong("a whole number of pixels, 1 or more")
        return int(self.value)

    def number(self) -> float:
        """A finite number."""
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)) or not math.isfinite(self.value):
            raise self.wrong("a number")
        return float(self.value)

    def box(self, width: int, height: int) -> Box:
        """COCO's [x, y, width, height] as (x0, y0, x1, y1), clipped to the image."""
        values = self.value
        if not isinstance(values, list) or len(values) != 4:
            raise self.wrong("four numbers x, y, width, height")
        x, y, w, h = (item.number() for item in self.items())
        if w <= 0 or h <= 0:
            raise self.wrong("x, y, width, height with a positive width and height")
        if x < -EDGE or y < -EDGE or x + w > width + EDGE or y + h > height + EDGE:
            raise self.wrong(f"a box inside the {width}x{height} image")
        clipped = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
        if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            raise self.wrong(f"a box inside the {width}x{height} image")
        return clipped

    @property
    def source(self) -> Source:
        """Where the value comes from."""
        return Source(str(self.file), self.record)


def read_json(path: Path, encodings: Sequence[str] = ("utf-8",)) -> Field:
    """A whole JSON file; the first of `encodings` that fits is used. Raises TaskError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(path, f"cannot be read ({error.strerror})") from None
    for encoding in encodings:
        try:
            return Field(json.loads(data.decode(encoding)), path)
        except UnicodeDecodeError as error:
            reason = f"expected {encoding} text ({error.reason} at byte {error.start})"
        except json.JSONDecodeError as error:
            reason = f"expected JSON ({error.msg} in line {error.lineno}, column {error.colno})"
        except RecursionError:
            reason = "expected JSON that is not nested a thousand levels deep"
    raise TaskError(path, reason)


class Lines(Sequence[Field]):
    """The records of files of JSON lines, parsed when they are asked for: narratives with traces are too large to keep."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths, self._places = paths, []
        for number, path in enumerate(paths):
            offset = 0
            with path.open("rb") as file:
                for row, line in enumerate(file, start=1):
                    if line.strip():
                        self._places.append((number, row, offset))
                    offset += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Field:
        number, row, offset = self._places[index]
        path = self.paths[number]
        with path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
        try:
            return Field(json.loads(line), path, f"line {row}")
        except ValueError as error:
            raise TaskError(path, f"expected a JSON object ({error})", f"line {row}") from None
