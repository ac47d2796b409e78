"""Boxes (x0, y0, x1, y1): overlap, suppression, and the box of a mask."""

from __future__ import annotations

import numpy as np

from pixel_perception.types import Box, Mask

TRIM_MASS = 0.01
"""Most of a mask's area that may be cut from each side of its box."""
TRIM_WIDTH = 0.1
"""A row or column thinner than this part of the thickest one is a fringe that may be cut."""


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, B) float64 intersection over union of boxes (A, 4) and (B, 4); 0 where both are empty."""
    a, b = np.asarray(a, np.float64).reshape(-1, 1, 4), np.asarray(b, np.float64).reshape(1, -1, 4)
    size = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.prod(np.maximum(size, 0.0), -1)
    union = area(a) + area(b) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas of boxes (..., 4); 0 where a side is not positive."""
    boxes = np.asarray(boxes, np.float64)
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0.0), -1)


def suppress(overlap: np.ndarray, scores: np.ndarray, limit: float) -> list[int]:
    """Greedy non-maximum suppression: indices kept, best score first; ties keep the earlier one.

    `overlap` (N, N) is any symmetric overlap of the candidates; one that overlaps a kept one by more than `limit` goes.
    """
    kept: list[int] = []
    for i in np.argsort(-np.asarray(scores), kind="stable"):
        if not kept or overlap[i, kept].max() <= limit:
            kept.append(int(i))
    return kept


def box_of_mask(mask: Mask, mass: float = TRIM_MASS, width: float = TRIM_WIDTH) -> Box:
    """Box of a mask in source pixels, without its fringes.

    From each side rows and columns are cut while they are thinner than `width` of the thickest and less than `mass` of the
    area is lost: a hair of wrong pixels does not move the box, a solid edge is never cut.
    """
    x, y, _, _ = mask.roi
    x0, x1 = _core(np.count_nonzero(mask.bits, 0), mass, width)
    y0, y1 = _core(np.count_nonzero(mask.bits, 1), mass, width)
    return float(x + x0), float(y + y0), float(x + x1), float(y + y1)


def _core(profile: np.ndarray, mass: float, width: float) -> tuple[int, int]:
    total = profile.sum()
    solid = (profile >= width * profile.max()) & (profile > 0)
    first = np.flatnonzero(solid | (np.cumsum(profile) > mass * total))[0]
    last = len(profile) - np.flatnonzero((solid | (np.cumsum(profile[::-1])[::-1] > mass * total))[::-1])[0]
    return int(first), int(last)
