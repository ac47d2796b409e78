"""What every loader yields: one image and what the data set says about it.

Loaders state facts and are deterministic; `phrasing` turns facts into the questions and answers of a training step. Boxes are
(x0, y0, x1, y1) in pixels of the source image, masks COCO run lengths {"size": [height, width], "counts": text} of the whole
image. Images are read as stored: an EXIF orientation is not applied, because annotations count stored pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixel_perception.types import Box, WordLocation

Rle = dict[str, Any]
SLOT = "{seg}"
"""Stands in an answer for the codebook tokens of one target; MUSE writes it the same way."""


class TaskError(ValueError):
    """Data that cannot be trained on: one sentence that names the file and, where there is one, the record and its field."""

    def __init__(self, file: str | Path, message: str, record: str = "", field: str = "") -> None:
        super().__init__(": ".join(part for part in (str(file), record, field, message) if part))
        self.file, self.record, self.field, self.message = str(file), record, field, message


class EmptySplit(TaskError):
    """A split without records."""


@dataclass(frozen=True)
class Source:
    """Where a sample comes from."""

    file: str
    record: str
    """Place in the file (and id) for JSON, line for JSON lines, empty where the file is the record."""

    def __str__(self) -> str:
        return f"{self.file}: {self.record}" if self.record else self.file


@dataclass(frozen=True)
class Target:
    """One thing in the image; a data set has its mask, its box, or both."""

    names: tuple[str, ...]
    """Every way it is named or referred to, the best first."""
    mask: Rle | None = None
    box: Box | None = None
    ignore: Rle | None = None
    """Pixels that neither count for it nor against it."""


@dataclass(frozen=True)
class Round:
    """A question and its answer, which holds one `SLOT` for each target, in their order.

    What the data set leaves open is empty and composed in training (`phrasing.converse`): a question without text asks for the
    names of its targets, an answer without text tells where they are.
    """

    question: str = ""
    answer: str = ""
    targets: tuple[Target, ...] = ()
    explanation: str = ""
    """Why the targets answer the question; may follow the answer."""


@dataclass(frozen=True)
class Caption:
    """A text about the image, or about the part of it in `box`."""

    text: str
    box: Box | None = None
    words: tuple[WordLocation, ...] = ()
    """Where words of the text lie, as UTF-8 byte spans in order; a word whose place is unknown is left out."""
    utterances: tuple[Box, ...] = ()
    """Places of what was said, in order: `localized_narratives.by_position` spreads them over any number of tokens."""


@dataclass(frozen=True)
class Sample:
    """One image with its size (width, height) and what is known about it."""

    image: Path
    size: tuple[int, int]
    source: Source
    targets: tuple[Target, ...] = ()
    rounds: tuple[Round, ...] = ()
    captions: tuple[Caption, ...] = ()
    chained: bool = False
    """The rounds are one conversation; otherwise each is asked on its own."""


class Task(Sequence[Sample]):
    """A split of a data set: its records, and how one becomes a `Sample` when it is asked for.

    Raises EmptySplit when there is no record; `task[i]` raises TaskError when record i or its image is damaged.
    """

    def __init__(self, name: str, split: str, folder: Path, records: Sequence[Any], read: Callable[[Any], Sample]) -> None:
        if not len(records):
            raise EmptySplit(folder, f"the {split} split of {name} is empty: expected at least one record")
        self.name, self.split, self.folder = name, split, folder
        self._records, self._read = records, read

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        return self._read(self._records[index])

    def map(self, name: str, change: Callable[[Sample], Sample]) -> Task:
        """The same records under another name, every sample changed."""
        return Task(name, self.split, self.folder, self._records, lambda record: change(self._read(record)))

    def problems(self, progress: Callable[[int], object] = lambda n: None) -> Iterator[tuple[int, TaskError]]:
        """Read every sample and its image's header; yields (index, error) of each that is damaged."""
        for index in range(len(self)):
            try:
                self[index]
            except TaskError as error:
                yield index, error
            progress(1)

    def sound(self, report: Callable[[TaskError], object] | None = None) -> Task:
        """The task with only its sound samples. Without `report` the first damaged one raises; with it each is reported."""
        bad = set()
        for index, error in self.problems():
            if report is None:
                raise error
            report(error)
            bad.add(index)
        kept = [record for i, record in enumerate(self._records) if i not in bad] if bad else self._records
        return Task(self.name, self.split, self.folder, kept, self._read)
