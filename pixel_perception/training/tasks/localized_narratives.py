"""Localized Narratives: descriptions spoken while the mouse moved over what was said (Pont-Tuset et al., 2020).

JSON lines {"dataset_id", "image_id", "caption", "timed_caption": [{"utterance", "start_time", "end_time"}],
"traces": [[{"x", "y", "t"}, ...], ...]} with x and y in 0..1 of the image and times in seconds; images of COCO 2017, Flickr30k,
ADE20K or Open Images. The place of an utterance is the box around the mouse while it was said: 16 equally spaced moments.

Two ways to place words. PixelLLM's paper splits a narrative into sentences and each word has the place of its own utterance
(`sentences`): words of caption and utterances are aligned as texts. Its code keeps the whole caption and spreads the utterances
over the tokens by relative position; `by_position` does so for any number of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from pixel_perception.training.tasks.fields import Field, Lines
from pixel_perception.training.tasks.images import image_size, locate, roots
from pixel_perception.training.tasks.sample import Caption, Sample, Task
from pixel_perception.types import Box, WordLocation

MOMENTS = 16
NOWHERE = 1e-5
"""A mouse whose mean x or y is not above this was at rest outside of the image."""
IMAGES = ("train2017", "val2017", "coco/train2017", "coco/val2017", "images/train2017", "images/val2017", "flickr30k-images", "images",
          "images/training", "images/validation", "train", "validation", "test")  # fmt: skip
SPLITS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}


def load(folder: Path, split: str, name: str, sentences: bool = False) -> Task:
    """One split ("train", "val", "test"), a sample for each narrative; with `sentences` a caption for each sentence of it."""
    paths = sorted(path for base in (folder, folder / "annotations") for path in base.glob("*localized_narratives*.jsonl")
                   if any(f"_{word}_" in path.name for word in SPLITS[split]))  # fmt: skip
    places = roots(folder, IMAGES)

    def read(record: Field) -> Sample:
        picture = locate(record["image_id"], places, _file_names(record))
        size = image_size(picture)
        caption = record["caption"].text()
        said = [(u, b) for u, b in _utterances(record, size) if b is not None]
        if sentences:
            return Sample(picture, size, record.source, captions=split_sentences(caption, align(caption, said)))
        boxes = tuple(box for _, box in said)
        spans = word_spans(caption)
        words = tuple(WordLocation(*span, boxes[k]) for span, k in zip(spans, by_position(len(spans), len(boxes)), strict=False))
        return Sample(picture, size, record.source, captions=(Caption(caption, words=words, utterances=boxes),))

    return Task(name, split, folder, Lines(paths), read)


def by_position(tokens: int, utterances: int) -> list[int]:
    """For each of a caption's tokens the index of its utterance, by relative position as in the released code; [] without any.

    Utterance k of K (from 1) lies at k / K. Token j of J lies as far between the first and the last utterance as it lies in the
    caption, and belongs to the nearest (the earlier of two).
    """
    if not tokens or not utterances:
        return []
    # In units of utterances token j lies at j (K - 1) / J; the nearest whole number, halves down, without rounding errors.
    return [max(0, -((tokens - 2 * j * (utterances - 1)) // (2 * tokens))) for j in range(1, tokens + 1)]


def align(caption: str, said: Sequence[tuple[str, Box]]) -> tuple[WordLocation, ...]:
    """Words of the caption with the place of the utterance in which they occur; a word that was not said so has no place."""
    spans, heard = word_spans(caption), [(plain, box) for text, box in said for plain in map(_plain, text.split()) if plain]
    encoded = caption.encode()
    written = [_plain(encoded[a:b].decode()) for a, b in spans]
    blocks = SequenceMatcher(None, written, [word for word, _ in heard], autojunk=False).get_matching_blocks()
    return tuple(WordLocation(*spans[block.a + i], heard[block.b + i][1]) for block in blocks for i in range(block.size))


def split_sentences(caption: str, words: Sequence[WordLocation]) -> tuple[Caption, ...]:
    """A caption for each sentence, with its words; their spans count from its beginning."""
    encoded, out = caption.encode(), []
    for match in re.finditer(rb"\S.*?(?:[.!?]+(?=\s|$)|$)", encoded, re.DOTALL):
        begin, end = match.span()
        inside = (WordLocation(w.begin - begin, w.end - begin, w.box) for w in words if begin <= w.begin and w.end <= end)
        out.append(Caption(encoded[begin:end].decode().rstrip(), words=tuple(inside)))
    return tuple(out)


def word_spans(text: str) -> list[tuple[int, int]]:
    """[begin, end) in UTF-8 bytes of the words between white space, less the punctuation at their ends."""
    out, at, before = [], 0, 0
    for match in re.finditer(r"\w(?:\S*\w)?", text):
        at += len(text[before : match.start()].encode())
        end = at + len(match.group().encode())
        out.append((at, end))
        at, before = end, match.end()
    return out


def _plain(word: str) -> str:
    return re.sub(r"\W+", "", word.lower())


def _file_names(record: Field) -> tuple[str, ...]:
    number = record["image_id"].key()
    padded = (f"{int(number):012d}.jpg",) if str(number).isdecimal() else ()
    return (*padded, f"{number}.jpg") if "coco" in str(record["dataset_id"].value) else (f"{number}.jpg", *padded)


def _utterances(record: Field, size: tuple[int, int]) -> list[tuple[str, Box | None]]:
    """What was said and where: boxes in whole pixels; None where nothing was said or the mouse was nowhere."""
    points = [(p["t"].number(), p["x"].number(), p["y"].number()) for trace in record["traces"].items() for p in trace.items()]
    timed = record["timed_caption"].items()
    if len(points) < 2:  # some narratives have lost their trace: there is a text to learn, and no place
        return [(u["utterance"].value, None) for u in timed]
    # Of several points at one moment the last counts: interpolation needs times that increase.
    times, last = np.unique(np.array([p[0] for p in points])[::-1], return_index=True)
    track = np.array([p[1:] for p in points])[::-1][last]
    return [(u["utterance"].value, _place(u, times, track, size)) for u in timed]


def _place(utterance: Field, times: np.ndarray, track: np.ndarray, size: tuple[int, int]) -> Box | None:
    said, start, end = utterance["utterance"], utterance["start_time"].number(), utterance["end_time"].number()
    if not isinstance(said.value, str):
        raise said.wrong("a text")
    if end < start:
        raise utterance["end_time"].wrong(f"a time at or after start_time, {start}")
    moments = np.linspace(start, end, MOMENTS)
    path = np.stack([_interpolate(moments, times, track[:, k]) for k in (0, 1)], 1)
    if not said.value.strip() or (_mean(path, moments) <= NOWHERE).any():
        return None
    low, high = (np.clip(v, 0, 1) * size for v in (path.min(0), path.max(0)))
    return tuple(float(v) for v in np.round([*low, *high]))


def _mean(path: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Mean place over time, by trapezia."""
    return path.mean(0) if moments[-1] - moments[0] < 1e-5 else (path[1:] + path[:-1]).mean(0) / 2


def _interpolate(at: np.ndarray, times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Straight lines between the points, and beyond the ends: a mouse is moved before one speaks."""
    if len(times) == 1:
        return np.full_like(at, values[0])
    left = np.clip(np.searchsorted(times, at) - 1, 0, len(times) - 2)
    slope = (values[left + 1] - values[left]) / (times[left + 1] - times[left])
    return values[left] + slope * (at - times[left])


