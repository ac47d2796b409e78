"""Asks, times and scores one request: what the evaluations on scenes and on photographs share."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pixel_perception.evaluation import metrics

if TYPE_CHECKING:
    from pixel_perception.perception import Encoded, Perception
    from pixel_perception.types import Partial, Query, Result


def timed(perception: Perception, image: np.ndarray, query: Query) -> tuple[Encoded, Result, float | None, float | None]:
    """Encode and ask, with milliseconds from the image to the first and to the last mask (None without a mask)."""
    moments: list[float] = []
    started = time.perf_counter()
    encoded = perception.encode(image)

    def note(part: Partial) -> None:
        if part.kind == "instance":
            moments.append(time.perf_counter())

    result = perception.ask(encoded, query, on_partial=note)
    first, last = (1000 * (moments[0] - started), 1000 * (moments[-1] - started)) if moments else (None, None)
    return encoded, result, first, last


def save_picture(folder: Path, name: str, image: np.ndarray, result: Result, title: str) -> None:
    """Write the overlay of one answer as `folder/name.jpg`."""
    from PIL import Image

    from pixel_perception.drawing import overlay

    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(overlay(image, result, title)).save(folder / f"{name}.jpg", quality=85)


def sample(text: str, result: Result, masks: list[np.ndarray], boxes: list[metrics.Box]) -> dict:
    """Score one answer against the true masks (H, W) and boxes, in pixels of the source image; empty lists when it is absent.

    `iou` is the set IoU; `joint` the IoU of everything found with everything meant (a single reference is scored by it).
    """
    width, height = result.image_size
    found = [instance.mask.full(width, height) for instance in result.instances]
    score = metrics.score_set(found, masks, [i.box for i in result.instances], boxes)
    blank = np.zeros((height, width), bool)
    seen, meant = np.logical_or.reduce([blank, *found]), np.logical_or.reduce([blank, *masks])
    return {
        "text": text, "answer": result.text, "true": score.true, "found": score.predicted, "iou": score.iou,
        "joint": metrics.mask_iou(seen, meant), "intersection": score.intersection, "union": score.union,
        "joint_intersection": int(np.count_nonzero(seen & meant)), "joint_union": int(np.count_nonzero(seen | meant)),
        "boxes_found": score.boxes_found, "presence": max((t.score for t in result.targets), default=0.0),
    }  # fmt: skip


def joint_iou(result: Result, truth: np.ndarray) -> float:
    """IoU of everything that was found with one true mask (H, W) bool."""
    masks = [instance.mask.full(truth.shape[1], truth.shape[0]) for instance in result.instances]
    return metrics.mask_iou(np.logical_or.reduce([np.zeros_like(truth), *masks]), truth)


def normalised(box: metrics.Box, size: tuple[int, int]) -> metrics.Box:
    """A box in pixels of an image of `size` (width, height) as fractions of it."""
    return box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1]


def word_scores(result: Result, true: list[tuple[str, metrics.Box]]) -> dict:
    """How well the words of an answer are placed; boxes of `true` are normalised.

    distance  sum over the true words that were said of their mean absolute coordinate difference
    said, true  how many true words were said, and how many there are
    lbm  local bipartite matching distance of the two traces; 1 for an answer without places
    """
    from pixel_perception.evaluation.lbm import lbm

    text = result.text.encode()
    places = [(text[w.begin : w.end].decode(errors="replace").strip(" ,.").lower(), normalised(w.box, result.image_size))
              for w in result.words]  # fmt: skip
    distances = metrics.word_distances(places, true)
    trace = lbm(np.array([box for _, box in places]), np.array([box for _, box in true])) if places and true else 1.0
    return {"distance": sum(distances), "said": len(distances), "true": len(true), "lbm": trace}
