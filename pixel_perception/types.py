"""What is asked and what is answered: frozen dataclasses on numpy arrays, in pixels of the source image.

Coordinates are edges on pixel borders: x to the right, y down, (0, 0) the outer corner of the first pixel, (W, H) the outer
corner of the last. Boxes are (x0, y0, x1, y1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np

from pixel_perception.errors import PerceptionError

Box = tuple[float, float, float, float]
Point = tuple[float, float]

MAX_TEXT = 1000
"""Longest instruction in characters: far beyond any sentence said to a robot, well inside the language model's context."""
MAX_REGIONS = 64
"""Most boxes and points in one query."""


class Task(str, Enum):
    """What a query wants. AUTO is a region caption where a box or point is given, else the text decides."""

    AUTO = "AUTO"
    SEGMENT = "SEGMENT"
    REFER = "REFER"
    CAPTION_REGION = "CAPTION_REGION"
    CAPTION_DENSE = "CAPTION_DENSE"
    NARRATE = "NARRATE"
    ANSWER = "ANSWER"


@dataclass(frozen=True)
class Query:
    """One request about one frame."""

    text: str = ""
    task: Task = Task.AUTO
    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    """Each stands for the smallest proposal that it lies in, or where there is none for a small square around it."""
    id: str = ""
    score_threshold: float | None = None
    """Least presence score of a target that is there; None takes the bundle's threshold."""
    max_instances: int = 0
    """Most instances in the result, 0 for no limit: earlier targets first, of one target those with the best masks."""
    max_new_tokens: int = 96

    def checked(self, width: int, height: int, words: Task = Task.ANSWER) -> Query:
        """The same query with its task decided and its boxes clipped to a (width, height) image.

        `words` is what AUTO means where there are only words. Raises PerceptionError INVALID_QUERY naming the field that is wrong.
        """
        try:
            task = Task(self.task)
        except ValueError:
            raise _invalid("task", f"one of {', '.join(t.value for t in Task)}", self.task) from None
        if not isinstance(self.text, str):
            raise _invalid("text", "a string", type(self.text).__name__)
        if len(self.text) > MAX_TEXT:
            raise _invalid("text", f"at most {MAX_TEXT} characters", f"{len(self.text)}")
        if len(self.boxes) + len(self.points) > MAX_REGIONS:
            raise _invalid("boxes", f"at most {MAX_REGIONS} boxes and points", f"{len(self.boxes) + len(self.points)}")
        threshold = self.score_threshold
        if threshold is not None and not 0.0 <= threshold <= 1.0:
            raise _invalid("score_threshold", "a number in 0..1", threshold)
        if self.max_instances < 0:
            raise _invalid("max_instances", "0 (no limit) or more", self.max_instances)
        if self.max_new_tokens < 1:
            raise _invalid("max_new_tokens", "1 or more", self.max_new_tokens)
        boxes = tuple(_inside(f"boxes[{i}]", box, width, height) for i, box in enumerate(self.boxes))
        for i, point in enumerate(self.points):
            _check_point(f"points[{i}]", point, width, height)
        places = boxes or self.points
        if task is Task.AUTO:
            task = Task.CAPTION_REGION if places else words
        if task is Task.CAPTION_REGION and not places:
            raise _invalid("boxes", "a box or a point for task CAPTION_REGION", "none")
        if task in (Task.SEGMENT, Task.REFER, Task.ANSWER):
            if not self.text.strip(" \t\r\n.!?"):
                raise _invalid("text", "an instruction in words", repr(self.text))
            if places:
                raise _invalid("boxes", f"none with task {task.value} (a box is asked about with CAPTION_REGION)",
                               f"{len(self.boxes)} boxes, {len(self.points)} points")
        return replace(self, task=task, boxes=boxes)


def _invalid(name: str, expected: str, found: object) -> PerceptionError:
    return PerceptionError("INVALID_QUERY", f"{name}: expected {expected}, found {found}.")


def _inside(name: str, box: Box, width: int, height: int) -> Box:
    if len(box) != 4 or not all(math.isfinite(v) for v in box):
        raise _invalid(name, "four finite numbers x0, y0, x1, y1", tuple(box))
    x0, y0, x1, y1 = (float(v) for v in box)
    if not (x0 < x1 and y0 < y1):
        raise _invalid(name, "x0 < x1 and y0 < y1", tuple(box))
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise _invalid(name, f"a box that overlaps the {width}x{height} image", tuple(box))
    return clipped


def _check_point(name: str, point: Point, width: int, height: int) -> None:
    if len(point) != 2 or not all(math.isfinite(v) for v in point):
        raise _invalid(name, "two finite numbers x, y", tuple(point))
    if not (0 <= point[0] <= width and 0 <= point[1] <= height):
        raise _invalid(name, f"a point inside the {width}x{height} image", tuple(point))


def check_frame(frame: object) -> np.ndarray:
    """The frame itself, when it is (H, W, 3) uint8 RGB with at least one pixel; else PerceptionError INVALID_IMAGE."""
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise PerceptionError("INVALID_IMAGE", f"frame: expected a uint8 array of shape (H, W, 3), RGB, found {found}.")
    if frame.size == 0:
        raise PerceptionError("INVALID_IMAGE", f"frame: expected at least one pixel, found shape {frame.shape}.")
    return frame


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask cropped to what it covers: `roi` (x, y, width, height) in whole source pixels, `bits` (height, width) bool."""

    roi: tuple[int, int, int, int]
    bits: np.ndarray

    @property
    def area(self) -> int:
        """Pixels covered."""
        return int(np.count_nonzero(self.bits))

    def full(self, width: int, height: int) -> np.ndarray:
        """(height, width) bool: the mask in its whole image."""
        out = np.zeros((height, width), bool)
        x, y, w, h = self.roi
        out[y : y + h, x : x + w] = self.bits
        return out


@dataclass(frozen=True)
class Target:
    """One thing that the answer names, there or not."""

    label: str
    quantity: str
    """ "one", or "all" of a kind."""
    score: float
    """Presence in 0..1."""
    present: bool
    span: tuple[int, int] = (0, 0)
    """[begin, end) of the label in the result's text, UTF-8 bytes."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One object in the image."""

    label: str
    score: float
    """Presence of its target, 0..1."""
    box: Box
    mask: Mask
    mask_score: float
    """Mean probability of the mask inside itself, 0..1."""
    span: tuple[int, int]
    target: int
    """Index into `Result.targets`."""
    track_id: int
    """Stays with the object while a standing instruction is followed."""


@dataclass(frozen=True)
class WordLocation:
    """Where a word of the text lies in the image: [begin, end) UTF-8 bytes and the two points that bound its place."""

    begin: int
    end: int
    box: Box


@dataclass(frozen=True)
class Region:
    """A captioned box. `score` is the mean probability of the caption's tokens (times the proposal's, where one made it)."""

    box: Box
    caption: str
    score: float


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds. `first_mask` counts from the start of the call to the first decoded mask (0: none)."""

    encode: float = 0.0
    prefix: float = 0.0
    language: float = 0.0
    pixels: float = 0.0
    first_mask: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, eq=False)
class Track:
    """An object followed between frames."""

    id: int
    target: int
    box: Box
    mask: Mask
    missed: int = 0
    """Frames since it was last seen."""


@dataclass(frozen=True, eq=False)
class Standing:
    """An instruction whose language is done: what `follow` needs to find its targets in the next frame."""

    query_id: str
    text: str
    targets: tuple[Target, ...]
    queries: np.ndarray | None
    """(T, ...) float32, what the pixel decoder takes for each target; None where the model must read the text again for each frame."""
    threshold: float
    max_instances: int
    tracks: tuple[Track, ...] = ()
    next_id: int = 1
    digest: str = ""
    """Of the bundle that made the queries; no other can read them."""


@dataclass(frozen=True)
class Partial:
    """What is known before the answer is whole. The concatenated `text` of kind "text" is the result's text."""

    kind: str
    """ "text", "instance" or "region"."""
    text: str = ""
    instance: Instance | None = None
    region: Region | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """The answer to one query about one frame."""

    query_id: str
    image_size: tuple[int, int]
    """(width, height) of the source image."""
    text: str = ""
    targets: tuple[Target, ...] = ()
    instances: tuple[Instance, ...] = ()
    words: tuple[WordLocation, ...] = ()
    regions: tuple[Region, ...] = ()
    standing: Standing | None = None
    """To be handed to `follow` with the next frame; None where the answer named no target."""
    finish_reason: str = "stop"
    """ "stop", "length" (max_new_tokens), "context" (the model's), "cancelled", or "followed"."""
    timings: Timings = field(default_factory=Timings)
    model: str = ""
    digest: str = ""
