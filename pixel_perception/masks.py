"""Masks: from logits to source pixels, run lengths, connected parts, and a union split into its instances."""

from __future__ import annotations

import numpy as np

from pixel_perception.boxes import suppress
from pixel_perception.geometry import Letterbox
from pixel_perception.types import Mask

KEEP_PART = 0.25
"""A separate part of one object's mask is kept from this share of its largest part."""
INSIDE = 0.5
"""Least share of a proposal's mask inside a union to be one of its instances."""
SAME = 0.5
"""Mask IoU above which two proposals show the same instance."""
LEAST_PART = 0.003
"""Least share of the image that makes a part of a union, which no proposal explains, an instance of its own."""


def crop(bits: np.ndarray, x: int = 0, y: int = 0) -> Mask | None:
    """The mask of a bool array (H, W) whose first pixel is (x, y) of the image, cropped tightly; None where nothing is set."""
    rows, columns = np.flatnonzero(bits.any(1)), np.flatnonzero(bits.any(0))
    if not len(rows):
        return None
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    part = np.ascontiguousarray(bits[top:bottom, left:right])
    return Mask((x + left, y + top, right - left, bottom - top), part)


def from_logits(logits: np.ndarray, letterbox: Letterbox, threshold: float = 0.0) -> Mask | None:
    """The mask in source pixels of logits (rows, columns) float32 of the whole frame; None where no pixel is above the threshold.

    Only the region that can be above it is resized, which is most of the time saved on a camera image.
    """
    roi = letterbox.covered(logits > threshold)
    if roi is None:
        return None
    return crop(letterbox.resize_logits(logits, roi) > threshold, roi[0], roi[1])


def confidence(logits: np.ndarray, threshold: float = 0.0) -> float:
    """Mean probability of the cells above the threshold; 0 where there is none."""
    inside = logits[logits > threshold]
    return float((1.0 / (1.0 + np.exp(-inside.astype(np.float64)))).mean()) if inside.size else 0.0


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks of one image."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a.roi, b.roi
    x0, y0, x1, y1 = max(ax, bx), max(ay, by), min(ax + aw, bx + bw), min(ay + ah, by + bh)
    if x0 >= x1 or y0 >= y1:
        return 0.0
    first, second = a.bits[y0 - ay : y1 - ay, x0 - ax : x1 - ax], b.bits[y0 - by : y1 - by, x0 - bx : x1 - bx]
    shared = int(np.count_nonzero(first & second))
    return shared / (a.area + b.area - shared)


def run_lengths(bits: np.ndarray) -> np.ndarray:
    """Row-major run lengths (uint32) of a bool array, zeros first: the first is 0 where the first pixel is set.

    The lengths alternate and add up to the number of pixels.
    """
    flat = np.asarray(bits, bool).ravel()
    if not flat.size:
        return np.zeros(0, np.uint32)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0] if flat[0] else [], [0], changes, [flat.size])).astype(np.int64)
    return np.diff(edges).astype(np.uint32)


def from_run_lengths(counts: np.ndarray, width: int, height: int) -> np.ndarray:
    """(height, width) bool of row-major run lengths, zeros first. Raises ValueError where they do not add up."""
    counts = np.asarray(counts, np.int64)
    if counts.sum() != width * height:
        raise ValueError(f"counts: expected run lengths that add up to {width * height}, found {counts.sum()}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)


def to_coco(mask: Mask, width: int, height: int) -> dict:
    """COCO's compressed run-length encoding of a mask in its whole image: {"size": [height, width], "counts": text}.

    Column-major run lengths; from the third on each is the difference to the one two before; every number in groups of five
    bits, low first, a sixth bit says that more follow, 48 added to make text (cocoapi, common/maskApi.c, rleToString).
    """
    counts = run_lengths(mask.full(width, height).T).astype(int).tolist()
    text = bytearray()
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            text.append(48 + (group | 32 if more else group))
            if not more:
                break
    return {"size": [height, width], "counts": text.decode()}


def from_coco(code: dict) -> np.ndarray:
    """(height, width) bool of a compressed COCO encoding. Raises ValueError where it is damaged."""
    height, width = code["size"]
    counts: list[int] = []
    value = shift = 0
    for byte in code["counts"].encode():
        group = byte - 48
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            value -= (group & 16) << (shift - 4)
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return from_run_lengths(np.array(counts), height, width).T


def components(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected parts (8 neighbours) of a bool array (H, W): labels (H, W) int32, 0 outside, and areas (n,) of labels 1..n.

    Labels are in the row-major order of each part's first pixel. Runs of set pixels are joined, not pixels: a camera mask has
    some hundred of them.
    """
    height, width = bits.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = bits
    flat = np.diff(padded.ravel())
    starts, ends = np.flatnonzero(flat == 1) + 1, np.flatnonzero(flat == -1) + 1
    n = len(starts)
    labels = np.zeros((height, width + 2), np.int32)
    if not n:
        return labels[:, 1:-1], np.zeros(0, np.int64)
    # Keys count pixels of the padded image, so the row below is width + 2 further. Runs touch, also at a corner, when one
    # starts at or before the other's end and ends at or after the other's start.
    below = width + 2
    first = np.searchsorted(ends, starts + below, "left")
    last = np.searchsorted(starts, ends + below, "right")
    count = last - first
    upper = np.repeat(np.arange(n), count)
    lower = np.arange(len(upper)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    root = _roots(n, upper, lower)
    _, part = np.unique(root, return_inverse=True)
    areas = np.bincount(part, weights=ends - starts).astype(np.int64)
    labels.ravel()[np.repeat(starts, ends - starts) + _ramp(ends - starts)] = np.repeat(part + 1, ends - starts)
    return labels[:, 1:-1], areas


def _ramp(lengths: np.ndarray) -> np.ndarray:
    """0..length-1 for each length in turn."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _roots(n: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest node connected to each of n nodes by edges a[i] - b[i]: hooking and pointer jumping on whole arrays."""
    root = np.arange(n)
    while True:
        low = np.minimum(root[a], root[b])
        high = np.maximum(root[a], root[b])
        if np.array_equal(low, high):
            return root
        np.minimum.at(root, high, low)
        while not np.array_equal(jumped := root[root], root):
            root = jumped


def main_part(mask: Mask, keep: float = KEEP_PART) -> Mask:
    """The largest connected part of a mask and those with at least `keep` of its area (an object cut by another stays whole)."""
    labels, areas = components(mask.bits)
    if len(areas) == 1:
        return mask
    kept = np.concatenate(([False], areas >= keep * areas.max()))
    part = crop(kept[labels], mask.roi[0], mask.roi[1])
    assert part is not None  # the largest part is kept
    return part


def split_union(union: np.ndarray, proposals: np.ndarray, scores: np.ndarray, cells: int, threshold: float = 0.0) -> list[np.ndarray]:
    """Split the logits of "all of a kind" into those of its instances, (72, 96) float32 each: proposals first, best first.

    `union` (72, 96) and `proposals` (N, 72, 96) are logits at stride 4, `scores` (N,) rank the proposals, `cells` is the number
    of cells that show the image. A proposal is an instance when `INSIDE` of its mask lies in the union; of two that show the
    same, the better stays. Cells of the union belong to the proposal with the greatest logit there; parts that no proposal
    explains are instances of their own when they are larger than `LEAST_PART` of the image, and no mere rim of one.
    """
    inside = union > threshold
    if not inside.any():
        return []
    owner = np.zeros(union.shape, np.int32)
    chosen = _instances(inside, proposals > threshold, scores)
    if chosen:
        ranked = proposals[chosen]
        labels, _ = components(inside)
        explained = (ranked > threshold).any(0) & inside
        touched = np.zeros(labels.max() + 1, bool)
        touched[labels[explained]] = True
        # What the union has beyond its proposals is their rim, unless it is thick enough to be a thing.
        owner = np.where(inside & touched[labels], ranked.argmax(0) + 1, 0).astype(np.int32)
        owner[_own_parts(inside & ~explained, cells) > 0] = 0
    rest, areas = components(inside & (owner == 0))
    large = np.flatnonzero(areas > LEAST_PART * cells) + 1
    if not chosen and not len(large):
        # However small, what was found is there.
        large = np.array([int(areas.argmax()) + 1])
    regions = [owner == i + 1 for i in range(len(chosen))] + [rest == i for i in large]
    # Outside its cells an instance is negative by as much as the union is positive: a border between two runs in the middle.
    return [np.where(region, union, -np.abs(union)) for region in regions if region.any()]


def _instances(inside: np.ndarray, bits: np.ndarray, scores: np.ndarray) -> list[int]:
    """Indices of the proposals that are instances of the union, best first."""
    if not len(bits):
        return []
    flat = bits.reshape(len(bits), -1).astype(np.float32)
    areas = flat.sum(1)
    share = flat @ inside.ravel().astype(np.float32) / np.maximum(areas, 1.0)
    candidates = np.flatnonzero((areas > 0) & (share >= INSIDE))
    if not len(candidates):
        return []
    flat, areas = flat[candidates], areas[candidates]
    shared = flat @ flat.T
    kept = suppress(shared / (areas[:, None] + areas[None] - shared), np.asarray(scores)[candidates], SAME)
    return [int(candidates[i]) for i in kept]


def _own_parts(rest: np.ndarray, cells: int) -> np.ndarray:
    """Labels of the parts of `rest` that are large and thicker than two cells; 0 elsewhere."""
    padded = np.pad(rest, 1)
    core = rest.copy()
    for dy in range(3):
        for dx in range(3):
            core &= padded[dy : dy + rest.shape[0], dx : dx + rest.shape[1]]
    labels, areas = components(rest)
    thick = np.zeros(len(areas) + 1, bool)
    thick[labels[core]] = True
    thick[1:] &= areas > LEAST_PART * cells
    thick[0] = False
    return np.where(thick[labels], labels, 0)
