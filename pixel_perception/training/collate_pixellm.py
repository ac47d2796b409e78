"""Samples of data sets as batches of PixelLM: rows of text, and masks at the size of the source images (papers_spec A.1, A.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pixel_perception.models.losses import IGNORE
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.models.pixellm.images import prepare
from pixel_perception.models.pixellm.model import Batch
from pixel_perception.models.pixellm.text import PixelLMText
from pixel_perception.training.config import PixelLM
from pixel_perception.training.tasks.mixture import Drawn
from pixel_perception.training.tasks.phrasing import converse
from pixel_perception.training.tasks.rle import to_bits
from pixel_perception.training.tasks.sample import Round, Sample, Target, TaskError


@dataclass(frozen=True)
class Lines:
    """One row of text: the image that it is about, its rounds, and how many of their targets are left in it."""

    image: int
    rounds: tuple[Round, ...]
    targets: int


@dataclass(frozen=True)
class PixelLMBatch:
    """A batch for the network, and what a picture of it needs: source images (H, W, 3) uint8 and rows."""

    tensors: Batch
    images: list[np.ndarray]
    rows: list[Lines]


class Collate:
    """Drawn samples -> a batch: up to `questions` questions with up to `targets` targets each about every image."""

    def __init__(self, lesson: PixelLM, config: PixelLMConfig, text: PixelLMText):
        self.lesson, self.config, self.text = lesson, config, text

    def __call__(self, drawn: Sequence[Drawn]) -> PixelLMBatch:
        """Raises TaskError for a sample that PixelLM cannot learn from, and for an image that cannot be read."""
        images, frames, fitted, masks, rows = [], [], [], [], []
        written: list[tuple[list[int], list[int]]] = []
        for number, item in enumerate(drawn):
            images.append(read_image(item.sample))
            frame, size = prepare(images[-1], self.config.vision.side)
            frames.append(frame)
            fitted.append(size)
            rounds = converse(item.sample, item.rng, self.lesson.questions, self.lesson.targets)
            if not rounds:
                source = item.sample.source
                raise TaskError(source.file, "expected questions, or targets to ask for, found neither", source.record)
            mine = []
            for turns in [rounds] if item.sample.chained else [(one,) for one in rounds]:
                ids, labels = self.text.row([(one.question, one.answer) for one in turns])
                left = len(self.config.codebook.find(torch.tensor(ids)))  # a row that is too long has lost its last targets
                written.append((ids, labels))
                rows.append(Lines(number, turns, left))
                mine += [mask_of(target, item.sample) for one in turns for target in one.targets][:left]
            masks.append(torch.from_numpy(np.stack(mine)) if mine else torch.zeros(0, *images[-1].shape[:2], dtype=torch.bool))
        length = max(len(ids) for ids, _ in written)
        ids = torch.tensor([row + [self.text.pad] * (length - len(row)) for row, _ in written])
        labels = torch.tensor([row + [IGNORE] * (length - len(row)) for _, row in written])
        valid = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row, _ in written])
        sources = [image.shape[:2] for image in images]
        batch = Batch(torch.stack(frames), fitted, sources, ids, valid, [row.image for row in rows], labels, masks)
        return PixelLMBatch(batch, images, rows)


def read_image(sample: Sample) -> np.ndarray:
    """(H, W, 3) uint8, as stored. Raises TaskError."""
    try:
        with Image.open(sample.image) as stored:
            return np.array(stored.convert("RGB"))
    except OSError as error:
        raise TaskError(sample.image, f"expected an image ({error})") from None


def mask_of(target: Target, sample: Sample) -> np.ndarray:
    """(H, W) bool; ignored pixels are not part of it, as in the release. Raises TaskError for a target without a mask."""
    if target.mask is None:
        raise TaskError(sample.source.file, "expected a mask for every target, found one without", sample.source.record)
    return to_bits(target.mask)
