"""Samples of data sets as batches of PixelLLM, stage by stage (papers_spec B.1, B.4, B.7 and B.8).

An image is resized so that its longer side is a random share of the frame, cropped at random to the frame, perhaps mirrored, and
padded at the right and below; boxes, masks and the places of words go with it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.objective import Batch
from pixel_perception.models.pixelllm.text import PixelLLMText
from pixel_perception.training.collate_pixellm import mask_of, read_image
from pixel_perception.training.config import PixelLLM
from pixel_perception.training.tasks.localized_narratives import by_position
from pixel_perception.training.tasks.mixture import Drawn
from pixel_perception.training.tasks.sample import Caption, Sample
from pixel_perception.types import Box

NARRATE = (
    "describe the image in detail", "tell me everything about the image", "give a long description of the image",
    "what is in the image, and where", "describe all that can be seen",
)  # fmt: skip
"""Text prompts for narratives; the release has eleven of the kind."""
CAPTION = (
    "describe the image briefly", "a short caption of the image", "what does the image show", "summarise the image",
    "caption the image in one sentence",
)  # fmt: skip
"""Text prompts for captions; the release has thirteen of the kind."""
REGION = "an object of"
REFER = "where is {}"
SMALLEST = 1.0
"""Least side in pixels of what a crop leaves of a box."""


@dataclass(frozen=True)
class View:
    """How an image lies in the frame: scaled to `size` (width, height), the part from `corner` on shown, perhaps mirrored."""

    scale: tuple[float, float]
    size: tuple[int, int]
    corner: tuple[int, int]
    valid: tuple[int, int]
    mirrored: bool

    @staticmethod
    def draw(width: int, height: int, side: int, share: tuple[float, float], flip: bool, rng: random.Random) -> View:
        """A view of an image of this size in a frame of `side` pixels."""
        longer = side * rng.uniform(*share) / max(width, height)
        size = max(1, round(width * longer)), max(1, round(height * longer))
        valid = min(size[0], side), min(size[1], side)
        corner = rng.randint(0, size[0] - valid[0]), rng.randint(0, size[1] - valid[1])
        return View((size[0] / width, size[1] / height), size, corner, valid, flip and rng.random() < 0.5)

    def image(self, pixels: np.ndarray, smooth: bool = True) -> np.ndarray:
        """(H, W[, 3]) -> the visible part (valid height, valid width[, 3])."""
        kind = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        x, y = self.corner
        shown = np.asarray(Image.fromarray(pixels).resize(self.size, kind))[y : y + self.valid[1], x : x + self.valid[0]]
        return np.ascontiguousarray(shown[:, ::-1] if self.mirrored else shown)

    def box(self, box: Box) -> Box | None:
        """A box of the source image in the frame, clipped; None where nothing of it is seen. A place without extent may stay one."""
        x0, y0, x1, y1 = (v * self.scale[k % 2] - self.corner[k % 2] for k, v in enumerate(box))
        if self.mirrored:
            x0, x1 = self.valid[0] - x1, self.valid[0] - x0
        if x1 < 0 or y1 < 0 or x0 > self.valid[0] or y0 > self.valid[1]:
            return None
        return max(x0, 0.0), max(y0, 0.0), min(x1, float(self.valid[0])), min(y1, float(self.valid[1]))


@dataclass
class Text:
    """One text about an image: ids with begin and end, prompt ids, places of the ids, and the object it means."""

    tokens: list[int]
    context: list[int]
    places: list[Box | None] = field(default_factory=list)
    box: Box | None = None
    mask: np.ndarray | None = None
    """(valid height, valid width) bool."""


@dataclass(frozen=True)
class PixelLLMBatch:
    """A batch for the network, and the images in their frames for pictures, (S, S, 3) uint8."""

    tensors: Batch
    images: list[np.ndarray]


class Collate:
    """Drawn samples -> a batch of the lesson's stage."""

    def __init__(self, lesson: PixelLLM, config: PixelLLMConfig, text: PixelLLMText):
        self.lesson, self.config, self.text = lesson, config, text
        self._texts = {"trace": self._narrative, "referring": self._expressions, "segmentation": self._expressions,
                       "dense_captioning": self._objects}[lesson.stage]  # fmt: skip

    def __call__(self, drawn: Sequence[Drawn]) -> PixelLLMBatch:
        """Raises TaskError for an image that cannot be read, and for a missing mask in segmentation."""
        side = self.config.image_size
        images, valid, texts = [], [], []
        for item in drawn:
            pixels = read_image(item.sample)
            view = View.draw(pixels.shape[1], pixels.shape[0], side, self.lesson.scale, self.lesson.flip, item.rng)
            frame = np.zeros((side, side, 3), np.uint8)
            frame[: view.valid[1], : view.valid[0]] = view.image(pixels)
            images.append(frame)
            valid.append(view.valid)
            texts.append(self._texts(item.sample, view, item.rng))
        return PixelLLMBatch(self._batch(images, valid, texts), images)

    def _narrative(self, sample: Sample, view: View, rng: random.Random) -> list[Text]:
        caption = rng.choice([c for c in sample.captions if c.text] or sample.captions)
        placed = bool(caption.words or caption.utterances)
        tokens = self.text.tokens(caption.text, self.config.words)
        places = [None if box is None else view.box(box) for box in self._places(caption, len(tokens) - 2)]
        context = self.text.context(rng.choice(NARRATE if placed else CAPTION), self.lesson.context)
        return [Text(tokens, context, places)]

    def _places(self, caption: Caption, count: int) -> Sequence[Box | None]:
        """Boxes of the first `count` tokens of a caption's text, in pixels of the source image."""
        if self.lesson.places == "position":
            return [caption.utterances[k] for k in by_position(count, len(caption.utterances))]
        # A token belongs to the word whose bytes it overlaps; punctuation and words that were not heard have no place.
        pieces = self.text.pieces(caption.text)[:count]
        return [next((w.box for w in caption.words if w.begin < end and begin < w.end), None) for _, begin, end in pieces]

    def _expressions(self, sample: Sample, view: View, rng: random.Random) -> list[Text]:
        texts = []
        for target in sample.targets:
            box = None if target.box is None else seen(view.box(target.box))
            if box is None:
                continue
            mask = view.image(mask_of(target, sample), smooth=False) if self.lesson.stage == "segmentation" else None
            for name in target.names:
                context = self.text.context(REFER.format(name), self.lesson.context)
                texts.append(Text(self.text.tokens(name, self.config.words), context, box=box, mask=mask))
        return rng.sample(texts, min(len(texts), self.lesson.texts))

    def _objects(self, sample: Sample, view: View, rng: random.Random) -> list[Text]:
        found = [(caption, seen(view.box(caption.box))) for caption in sample.captions if caption.box is not None]
        context = self.text.context(REGION, self.lesson.context)
        texts = [Text(self.text.tokens(caption.text, self.config.words), context, box=box) for caption, box in found if box is not None]
        return rng.sample(texts, min(len(texts), self.lesson.texts))

    def _batch(self, images: list[np.ndarray], valid: list[tuple[int, int]], texts: list[list[Text]]) -> Batch:
        stage, side = self.lesson.stage, self.config.image_size
        size, rows = torch.tensor(valid, dtype=torch.float32), max(1, max(map(len, texts)))
        flat = [text for mine in texts for text in mine]
        length, width = max([2, *(len(t.tokens) for t in flat)]), max([1, *(len(t.context) for t in flat)])
        batch = Batch(
            images=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float(), valid=size,
            prompts=torch.cat([torch.zeros_like(size), size], 1)[:, None].repeat(1, rows, 1),
            tokens=torch.zeros(len(images), rows, length, dtype=torch.long), real=torch.zeros(len(images), rows, dtype=torch.bool),
            context=torch.zeros(len(images), rows, width, dtype=torch.long), text=stage in ("trace", "dense_captioning"),
            objects=stage == "dense_captioning",
            traces=torch.zeros(len(images), rows, length, 2, 2) if stage == "trace" else None,
            boxes=torch.zeros(len(images), rows, 4) if stage != "trace" else None,
            masks=torch.zeros(len(images), rows, side, side, dtype=torch.bool) if stage == "segmentation" else None,
        )  # fmt: skip
        for b, mine in enumerate(texts):
            for p in range(rows):
                if p < len(mine):
                    fill(batch, b, p, mine[p])
                else:  # an empty row: begin and end, so that every row has something to read
                    batch.tokens[b, p, :2] = torch.tensor([self.config.begin, self.config.end])
                    batch.context[b, p, 0] = self.config.end
        return batch


def fill(batch: Batch, b: int, p: int, text: Text) -> None:
    """Write one text into its row of a batch."""

    def put(where: Tensor | None, values: list[int]) -> None:
        if where is not None:
            where[b, p, : len(values)] = torch.tensor(values)

    batch.real[b, p] = True
    put(batch.tokens, text.tokens)
    put(batch.context, text.context)
    if batch.traces is not None:
        for i, place in enumerate(text.places[: len(text.tokens) - 2], start=1):  # after the token that begins the text
            if place is not None:
                batch.traces[b, p, i] = torch.tensor(place).view(2, 2)
    if batch.boxes is not None and text.box is not None:
        batch.boxes[b, p] = torch.tensor(text.box)
    if batch.masks is not None and text.mask is not None:
        height, width = text.mask.shape
        batch.masks[b, p, :height, :width] = torch.from_numpy(text.mask.copy())


def seen(box: Box | None) -> Box | None:
    """A clipped box, if enough is left of it to be an object."""
    return box if box is not None and box[2] - box[0] >= SMALLEST and box[3] - box[1] >= SMALLEST else None
