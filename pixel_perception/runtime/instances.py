"""From the decoder's logits to instances in source pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pixel_perception import masks
from pixel_perception.boxes import box_of_mask
from pixel_perception.runtime.vision import Encoded, Vision
from pixel_perception.types import Box, Instance, Mask, Target


def find(vision: Vision, encoded: Encoded, target: Target, index: int, logits: np.ndarray, score: float, least: float,
         threshold: float, room: int | None, box: Box | None = None) -> tuple[Target, list[Instance]]:
    """What is there of one target, given its mask logits (rows, columns) and score.

    A target is absent below score `least`, or where no logit is above `threshold`. Its instances (`Vision.split`) come from left
    to right; of a model that shows one thing in a mask, only its main part is kept. `room` limits the instances (None: no
    limit): the best masks stay. `box` is the one thing's own, in source pixels, where the model tells it: it is there also where
    the mask is empty. Track ids are left 0.
    """
    parts = vision.split(encoded, target.quantity, logits, threshold) if score >= least else []
    found = []
    for part in parts:
        mask = masks.from_logits(part, encoded.letterbox, threshold)
        if mask is None and box is None:
            continue
        confidence = 0.0 if mask is None else masks.confidence(part, threshold)
        mask = _nothing(box) if mask is None else masks.main_part(mask) if vision.one_piece else mask
        found.append(Instance(target.label, score, box or box_of_mask(mask), mask, confidence, target.span, index, 0))
    target = replace(target, score=score, present=bool(found))
    if room is not None:
        found = sorted(found, key=lambda i: -i.mask_score)[:room]
    return target, sorted(found, key=_centre)


def _nothing(box: Box) -> Mask:
    """The mask that covers no pixel, at a box."""
    return Mask((int(box[0]), int(box[1]), 0, 0), np.zeros((0, 0), bool))


def _centre(instance: Instance) -> float:
    return instance.box[0] + instance.box[2]


def region_at(boxes: np.ndarray, point: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The smallest of boxes (P, 4) that holds a point, or where none does a square around it, an eighth of the image's shorter
    side, clipped to the image; all in source pixels."""
    x, y = point
    holding = boxes[(boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])]
    if len(holding):
        best = holding[np.argmin((holding[:, 2] - holding[:, 0]) * (holding[:, 3] - holding[:, 1]))]
        return tuple(float(v) for v in best)
    half = max(min(size) / 16, 0.5)
    x, y = min(max(x, half), size[0] - half), min(max(y, half), size[1] - half)
    return x - half, y - half, x + half, y + half
