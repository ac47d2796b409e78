"""Metrics of masks, boxes, decisions and captions, on plain numpy arrays.

Definitions (kept to one line each, because papers differ):

* gIoU: mean over samples of the mask IoU. (Not torchmetrics' "generalised IoU", which is a box measure.)
* cIoU: sum of intersections over sum of unions.
* set gIoU: Hungarian assignment of predicted to true masks, sum of their IoU over the LARGER of the two counts, so
  that a mask too many costs as much as a mask too few.
* P@t: share of true boxes whose matched box has IoU > t (strictly).
* N-acc / T-acc: share of absent / present requests that were answered so.
* ECE: expected calibration error of a probability over equally wide bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two boolean masks of one shape (H, W); two empty masks agree (1.0)."""
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 1.0


def box_iou(a: Box, b: Box) -> float:
    """IoU of two boxes (x0, y0, x1, y1); 0 where one of them has no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inside = width * height
    return float(inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside))


def assign(gain: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column) that maximise the sum of `gain` (n, m), each row and column used at most once.

    Exact: the Hungarian method with potentials, shortest augmenting paths, O(n^2 m). All min(n, m) pairs are returned,
    sorted by row.
    """
    gain = np.asarray(gain, np.float64)
    if gain.size == 0:
        return []
    if gain.shape[0] > gain.shape[1]:
        return sorted((row, column) for column, row in assign(gain.T))
    n, m = gain.shape
    cost = -gain
    u, v = np.zeros(n + 1), np.zeros(m + 1)
    owner = np.zeros(m + 1, int)  # 1-based row that holds a column; 0 = free; column 0 is the root of each search
    for row in range(1, n + 1):
        owner[0], column = row, 0
        reach, before, done = np.full(m + 1, np.inf), np.zeros(m + 1, int), np.zeros(m + 1, bool)
        while True:
            done[column] = True
            open_ = np.flatnonzero(~done[1:]) + 1
            slack = cost[owner[column] - 1, open_ - 1] - u[owner[column]] - v[open_]
            closer = slack < reach[open_]
            reach[open_[closer]], before[open_[closer]] = slack[closer], column
            nearest = open_[np.argmin(reach[open_])]
            step = reach[nearest]
            u[owner[done]] += step
            v[done] -= step
            reach[open_] -= step
            column = int(nearest)
            if owner[column] == 0:
                break
        while column:  # flip the path that ends in the free column
            owner[column] = owner[before[column]]
            column = int(before[column])
    return sorted((int(owner[j]) - 1, j - 1) for j in range(1, m + 1) if owner[j])


@dataclass(frozen=True)
class SetScore:
    """How well a set of predicted masks fits a set of true ones."""

    iou: float
    """Sum of matched IoU over the larger count; 1 when both sets are empty."""
    intersection: int
    """Pixels of the matched pairs' intersections."""
    union: int
    """Pixels of the matched pairs' unions, plus every unmatched mask whole."""
    boxes_found: int
    """True boxes whose matched box has IoU > 0.5."""
    true: int
    predicted: int


def score_set(predicted: list[np.ndarray], true: list[np.ndarray], predicted_boxes: list[Box], true_boxes: list[Box]) -> SetScore:
    """Match boolean masks (H, W) and score them. Boxes belong to the masks of the same index, in the same pixels."""
    table = np.array([[mask_iou(p, t) for t in true] for p in predicted]).reshape(len(predicted), len(true))
    pairs = assign(table)
    total = sum(table[i, j] for i, j in pairs)
    intersection = sum(int(np.count_nonzero(predicted[i] & true[j])) for i, j in pairs)
    union = sum(int(np.count_nonzero(predicted[i] | true[j])) for i, j in pairs)
    for masks, used in ((predicted, {i for i, _ in pairs}), (true, {j for _, j in pairs})):
        union += sum(int(np.count_nonzero(mask)) for k, mask in enumerate(masks) if k not in used)
    found = sum(box_iou(predicted_boxes[i], true_boxes[j]) > 0.5 for i, j in pairs)
    larger = max(len(predicted), len(true))
    return SetScore(total / larger if larger else 1.0, intersection, union, found, len(true), len(predicted))


def word_distances(predicted: list[tuple[str, Box]], true: list[tuple[str, Box]]) -> list[float]:
    """For every true word that the answer says: mean absolute difference of the four coordinates (normalised to 0..1).

    A word said several times counts with its nearest place. Words that the answer does not say have no distance (an
    answer of many words would have one of them near anything), so the share that is said belongs beside the mean.
    """
    distances = []
    for word, place in true:
        places = [p for w, p in predicted if w == word]
        if places:
            distances.append(min(float(np.abs(np.subtract(p, place)).mean()) for p in places))
    return distances


def caption_right(caption: str, color: str, nouns: set[str], colors: set[str]) -> tuple[bool, bool]:
    """Whether a caption ("red mug") has the right noun and the right colour.

    The noun is what is left after one leading colour word, and must be one of `nouns` whole: "mug" is not right for a
    "mug rack". An object whose colour is its name ("orange") may be captioned by that one word.
    """
    words = caption.lower().replace(",", " ").replace(".", " ").split()
    rest = words[1:] if len(words) > 1 and words[0] in colors else words
    return " ".join(rest) in nouns, color in words


def calibration_error(probability: np.ndarray, outcome: np.ndarray, bins: int = 10) -> float | None:
    """ECE: mean over `bins` equal bins of |mean probability - share of true outcomes|, weighted by their counts.

    `probability` (n,) in 0..1, `outcome` (n,) of 0/1. None for no samples.
    """
    probability, outcome = np.asarray(probability, np.float64), np.asarray(outcome, np.float64)
    if probability.size == 0:
        return None
    where = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [abs(probability[where == b].sum() - outcome[where == b].sum()) for b in range(bins)]
    return float(sum(gaps) / probability.size)


def ranking_auc(probability: np.ndarray, outcome: np.ndarray) -> float | None:
    """Chance that a present request gets a higher score than an absent one (ties count half); None without both."""
    probability, outcome = np.asarray(probability, np.float64), np.asarray(outcome, bool)
    positive, negative = probability[outcome], probability[~outcome]
    if positive.size == 0 or negative.size == 0:
        return None
    above = (positive[:, None] > negative[None]).mean() + 0.5 * (positive[:, None] == negative[None]).mean()
    return float(above)


def mean(values) -> float | None:
    """Mean of the values that are not None, or None when there are none."""
    values = [v for v in values if v is not None]
    return float(np.mean(values)) if values else None
