"""Pure functions on boxes (N, 4) as (x0, y0, x1, y1), for the detector."""

import math

import torch

LARGEST_GROWTH = math.log(1000 / 16)
"""Bound on the logarithm of a side's growth, so that an untrained head cannot overflow."""


def clip_boxes(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Move corners that lie outside the image of ``size`` = (height, width) onto its border."""
    height, width = size
    return torch.minimum(boxes, boxes.new_tensor([width, height, width, height])).clamp(min=0)


def pairwise_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4); 0 where both are empty."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b))
    union = area_a[:, None] + area_b - common
    return common / union.clamp(min=1e-8)


def nms(boxes: torch.Tensor, overlap: float) -> torch.Tensor:
    """Indices of the boxes that survive suppression, in order; boxes (N, 4) come best first.

    A box goes when its IoU with a better survivor is ``overlap`` or more.
    """
    # Boxes entirely at or left of the origin are how the reference marks empty slots; it never keeps them.
    alive = (boxes > 0).any(-1).cpu()
    covers = (pairwise_iou(boxes, boxes) >= overlap).cpu()
    keep = []
    for i in range(len(boxes)):
        if alive[i]:
            keep.append(i)
            alive &= ~covers[i]
    return torch.tensor(keep, dtype=torch.int64, device=boxes.device)


def encode_boxes(boxes: torch.Tensor, anchors: torch.Tensor, weights: tuple[float, ...]) -> torch.Tensor:
    """Changes (N, 4) that turn anchors into boxes: weighted shifts per side length and logarithms of growth."""
    size, anchor = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    shift = (boxes[:, :2] + size / 2 - anchors[:, :2] - anchor / 2) / anchor
    return torch.cat([shift, (size / anchor).log()], -1) * boxes.new_tensor(weights)


def decode_boxes(changes: torch.Tensor, anchors: torch.Tensor, weights: tuple[float, ...]) -> torch.Tensor:
    """The inverse of ``encode_boxes``: apply changes (N, 4) to anchors (N, 4)."""
    changes = changes / changes.new_tensor(weights)
    anchor = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + anchor / 2 + changes[:, :2] * anchor
    size = changes[:, 2:].clamp(max=LARGEST_GROWTH).exp() * anchor
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def roi_align(features: torch.Tensor, boxes: torch.Tensor, side: int, samples: int = 2) -> torch.Tensor:
    """Cut boxes out of a map and resample each to ``side`` x ``side`` cells.

    Bilinear interpolation is a product of two tents, one per axis, so each crop is two small matrix products;
    outside the map everything is zero.

    Args:
        features: (C, H, W).
        boxes: (N, 4) in cells of the map, whose cell i spans [i, i + 1].
        side: cells of the crop, each the mean of ``samples`` x ``samples`` points.

    Returns:
        (N, side, side, C).
    """
    def tents(low: torch.Tensor, high: torch.Tensor, cells: int) -> torch.Tensor:
        at = (torch.arange(side * samples, device=boxes.device) + 0.5) / (side * samples)
        at = low[:, None] + at * (high - low)[:, None]
        centre = torch.arange(cells, device=boxes.device) + 0.5
        weight = (1 - (at[..., None] - centre).abs()).clamp(min=0)
        return weight.unflatten(1, (side, samples)).mean(2)

    height, width = features.shape[-2:]
    rows, columns = tents(boxes[:, 1], boxes[:, 3], height), tents(boxes[:, 0], boxes[:, 2], width)
    return torch.einsum("chw,nyh,nxw->nyxc", features, rows, columns)
