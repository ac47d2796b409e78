"""Records as lines of JSON in a file that outlives the run: what is there is not asked again."""

from __future__ import annotations

import json
from pathlib import Path

from pixel_perception.writing import write_text


def stored(file: Path) -> list[dict]:
    """The records of a file, none where it is not there."""
    return [json.loads(line) for line in lines(file)]


def lines(file: Path) -> list[str]:
    """The lines of a file, none where it is not there. What a stopped run left of a last line is removed from the file, so that
    the next record begins a line of its own."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(file, whole)
    return whole.split("\n")[:-1]


def append(file: Path, record: dict) -> None:
    """Add a record; the folder is made where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")
