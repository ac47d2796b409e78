"""Mean average precision of dense captions: boxes and words at once (DenseCap; PixelLLM table 2).

A region counts when its box overlaps a true one by IoU >= t and its caption reaches METEOR > s. The average precision over
regions ranked by score is taken for five t and six s, and the thirty are averaged. Three rules differ from the usual detection
AP and are kept, because every published figure has them:

* True boxes of one image that overlap by 0.7 are merged first: their mean box, with all their captions as references.
* A region is held against the true box it overlaps most, even when a better ranked region has taken it; it is then wrong.
* A region takes its true box at any overlap, so one that overlaps a little can use a box up.

Box sides are plain differences (the first code added a pixel to each, PixelLLM's evaluator does not), and recall is read at 100
points 0.00 ... 0.99 as there (the first code has a 101st).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pixel_perception.boxes import iou_matrix
from pixel_perception.evaluation import captions as caption_scores

IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
METEOR_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
MERGE_IOU = 0.7
RECALL_POINTS = 100

Meteor = Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]
"""METEOR of each caption against its references."""


@dataclass(frozen=True)
class Regions:
    """Captioned boxes of one image: (N, 4) as (x0, y0, x1, y1) in its pixels, N captions, and for predictions N scores."""

    boxes: np.ndarray
    captions: Sequence[str]
    scores: np.ndarray | None = None

    def checked(self, what: str, scored: bool) -> Regions:
        """The same as float arrays; ValueError, beginning with `what`, where the parts do not go together."""
        boxes = np.asarray(self.boxes, np.float64).reshape(-1, 4)
        if len(boxes) != len(self.captions):
            raise ValueError(f"{what}: {len(boxes)} boxes and {len(self.captions)} captions")
        if not scored:
            if empty := [i for i, caption in enumerate(self.captions) if not caption.strip()]:
                raise ValueError(f"{what}: the caption of box {empty[0]} is empty")
            return Regions(boxes, self.captions)
        scores = np.asarray([] if self.scores is None else self.scores, np.float64)
        if scores.shape != (len(boxes),) or not np.isfinite(scores).all():
            raise ValueError(f"{what}: expected a finite score for each of {len(boxes)} boxes, found shape {scores.shape}")
        return Regions(boxes, self.captions, scores)


@dataclass(frozen=True)
class DenseCaptionScores:
    """Fractions of one; papers print 100 times that."""

    map: float | None
    """Mean of `grid`; None without METEOR."""
    grid: np.ndarray | None
    """(5, 6) average precision, IoU thresholds down, METEOR thresholds across."""
    detection_map: float
    """Mean over IoU thresholds with every caption accepted."""
    detection: np.ndarray
    """(5,)"""
    true: int
    """True boxes after merging."""
    predicted: int
    note: str
    """What is missing and why; empty when nothing is."""


def merge(boxes: np.ndarray, captions: Sequence[str], iou: float = MERGE_IOU) -> tuple[np.ndarray, list[list[str]]]:
    """Merge boxes (N, 4) of one image that overlap by `iou` or more: mean boxes (M, 4), and the captions of each.

    The box with the most such neighbours goes first and takes them all; what is left is counted again. Ties: the earlier box.
    A box without area overlaps nothing, not even itself, and disappears: nobody could find it.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    near = iou_matrix(boxes, boxes) >= iou
    merged, references = [], []
    while near.any():
        members = np.flatnonzero(near[near.sum(1).argmax()])
        merged.append(boxes[members].mean(0))
        references.append([captions[i] for i in members])
        near[members] = near[:, members] = False
    return np.array(merged).reshape(-1, 4), references


def average_precision(right: np.ndarray, true: int) -> float:
    """Mean over recalls 0.00 ... 0.99 of the best precision at that recall or more.

    `right` (n,) bool, best ranked first; `true` is how many there are to find, over 0.
    """
    hits = np.cumsum(np.asarray(right, bool))
    if not len(hits):
        return 0.0
    # From the end: the best precision still to come. Recall is compared in integers, so that 29 of 100 reaches 0.29.
    best = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    first = np.searchsorted(hits * RECALL_POINTS, np.arange(RECALL_POINTS) * true)
    return float(np.append(best, 0.0)[first].mean())


def score(predicted: Sequence[Regions], true: Sequence[Regions], meteor: Meteor | None = None) -> DenseCaptionScores:
    """Score the regions of images against the true ones of the same images, in the same order.

    Args:
        predicted: with scores; an image may have none.
        true: before merging; an image may have none, but not all of them.
        meteor: scores captions; without it pycocoevalcap's, where Java is present.

    Raises:
        ValueError: for lists of different length, parts that do not go together, or no true box at all.
    """
    if len(predicted) != len(true):
        raise ValueError(f"expected predictions and truth of the same images, found {len(predicted)} and {len(true)}")
    ranks, overlaps, said, meant = [], [], [], []  # one for each region; overlap 0 where its true box is taken
    count = 0
    for index, (regions, truth) in enumerate(zip(predicted, true, strict=True)):
        regions, truth = regions.checked(f"prediction {index}", True), truth.checked(f"truth {index}", False)
        boxes, references = merge(truth.boxes, truth.captions)
        count += len(boxes)
        table, taken = iou_matrix(regions.boxes, boxes), set()
        for i in np.argsort(-regions.scores, kind="stable"):
            best = int(table[i].argmax()) if len(boxes) else -1
            overlap = float(table[i, best]) if len(boxes) and best not in taken else 0.0
            if overlap > 0:
                taken.add(best)
            ranks.append(regions.scores[i])
            overlaps.append(overlap)
            said.append(regions.captions[i])
            meant.append(references[best] if overlap > 0 else [])
    if not count:
        raise ValueError("there is no true box to find")
    order = np.argsort(-np.array(ranks), kind="stable")
    overlap = np.array(overlaps)[order]
    detection = np.array([average_precision(overlap >= t, count) for t in IOU_THRESHOLDS])
    grid, note = None, ""
    if meteor is None and not caption_scores.has_java():
        note = "No Java: METEOR cannot run, so there is no mAP; detection_map looks at boxes alone."
    else:
        # Regions that no threshold of IoU accepts need no METEOR.
        asked = [i for i in range(len(said)) if overlaps[i] >= min(IOU_THRESHOLDS)]
        values = np.full(len(said), -1.0)
        if asked:
            values[asked] = (meteor or caption_scores.meteor_each)([said[i] for i in asked], [meant[i] for i in asked])
        quality = values[order]
        grid = np.array([[average_precision((overlap >= t) & (quality > s), count) for s in METEOR_THRESHOLDS] for t in IOU_THRESHOLDS])
    return DenseCaptionScores(None if grid is None else float(grid.mean()), grid, float(detection.mean()), detection, count,
                              len(said), note)  # fmt: skip
