"""What the detector is trained on: CenterNet's heat and sides, and the second stage's samples (papers_spec B.6).

Boxes are (x0, y0, x1, y1) in pixels of the padded input; N counts objects of one image, M the cells of all levels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pixel_perception.models.pixelllm.boxes import encode_boxes, pairwise_iou
from pixel_perception.models.pixelllm.proposals import Detections, Detector

SMALLEST_RADIUS = 4.0
"""Pixels around an object's centre in which a false peak is forgiven, at least."""

PEAK_OVERLAP = 0.8
"""A box shifted to the edge of the forgiven radius still overlaps the object by this IoU."""


@dataclass
class CentreTargets:
    """For each cell of one image: heat (M,) in [0, 1], sides (M, 4) in cells, and which cells regress (M,)."""

    heat: torch.Tensor
    sides: torch.Tensor
    regress: torch.Tensor


def centre_targets(boxes: torch.Tensor, centres: torch.Tensor, strides: torch.Tensor,
                   ranges: torch.Tensor) -> CentreTargets:
    """Paint the objects (N, 4) of an image onto the cells.

    Each object peaks at the cell that holds its centre, on the levels made for its size, and fades as a Gaussian
    whose radius grows with it. The 3 x 3 cells around the peak that lie inside the box regress its sides.

    Args:
        centres: (M, 2) cell centres in pixels.
        strides: (M,) pixels per cell.
        ranges: (M, 2) half-diagonals, in pixels, that the cell's level answers for.
    """
    cells = len(centres)
    if not len(boxes):
        return CentreTargets(centres.new_zeros(cells), centres.new_zeros(cells, 4),
                             torch.zeros(cells, dtype=torch.bool, device=centres.device))
    size = boxes[:, 2:] - boxes[:, :2]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = torch.cat([centres[:, None] - boxes[:, :2], boxes[:, 2:] - centres[:, None]], -1)
    stride = strides[:, None, None]
    snapped = (middle / stride).floor() * stride + stride / 2
    offset = (centres[:, None] - snapped).abs()
    diagonal = size.norm(dim=-1) / 2
    level = (diagonal >= ranges[:, :1]) & (diagonal <= ranges[:, 1:])
    peak = (offset == 0).all(-1) & level
    regress = (offset <= stride).all(-1) & (sides.amin(-1) > 0) & level

    slack = (1 - PEAK_OVERLAP) / (1 + PEAK_OVERLAP)
    radius = (2 * slack**2 * size.prod(-1)).clamp(min=SMALLEST_RADIUS**2)
    far = ((centres[:, None] - middle).square().sum(-1) / radius).clamp(min=1e-6).masked_fill(peak, 0.0)
    heat = torch.exp(-far).amax(1)
    nearest = far.masked_fill(~regress, torch.inf).argmin(1)
    chosen = sides[torch.arange(cells, device=sides.device), nearest] / strides[:, None]
    return CentreTargets(heat, chosen, regress.any(1))


def heat_loss(logits: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
    """CenterNet's focal loss (equation 1 there) of logits (B, M) against heat (B, M), per peak of an image."""
    p = logits.float().sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = heat == 1
    hit = p.log() * (1 - p) ** 2 * peak
    miss = (1 - p).log() * p**2 * (1 - heat) ** 4
    count = peak.sum(1).clamp(min=1).float().mean()
    return -(0.25 * hit + 0.75 * miss).sum(1).mean() / count


def giou_loss(sides: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - generalised IoU of boxes (..., 4) given as distances to their left, top, right and bottom: (...)."""
    def area(low, high):
        return (low + high).clamp(min=0).prod(-1)

    a, b = (area(x[..., :2], x[..., 2:]) for x in (sides, targets))
    common = torch.minimum(sides, targets)
    hull = torch.maximum(sides, targets)
    inter, around = (area(x[..., :2], x[..., 2:]) for x in (common, hull))
    union = a + b - inter
    return 1 - inter / (union + 1e-6) + (around - union) / (around + 1e-6)


def match(proposals: torch.Tensor, boxes: torch.Tensor, overlap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The best object of each proposal (K,), and whether their IoU reaches ``overlap`` (K,)."""
    if not len(boxes):
        none = torch.zeros(len(proposals), dtype=torch.int64, device=proposals.device)
        return none, none.bool()
    best, index = pairwise_iou(proposals, boxes).max(1)
    return index, best >= overlap


def sample(positive: torch.Tensor, count: int, share: float) -> torch.Tensor:
    """Random indices of at most ``count`` proposals, at most ``share`` of them positive."""
    def some(of: torch.Tensor, limit: int) -> torch.Tensor:
        index = of.nonzero()[:, 0]
        return index[torch.randperm(len(index), device=index.device)[:limit]]

    chosen = some(positive, int(count * share))
    return torch.cat([chosen, some(~positive, count - len(chosen))])


def second_stage_loss(detector: Detector, levels: list[torch.Tensor], proposals: torch.Tensor,
                      boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Classification and regression losses of one image; proposals (K, 4), objects (N, 4)."""
    config = detector.config
    proposals = torch.cat([proposals.detach(), boxes])  # the objects themselves, so that there is always one to find
    proposals = proposals[(proposals[:, 2:] > proposals[:, :2]).all(-1)]
    index, found = match(proposals, boxes, config.match)
    kept = sample(found, config.samples, config.positives)
    proposals, index, found = proposals[kept], index[kept], found[kept]
    logits, change = detector.second(levels, proposals)
    if not len(kept):
        return logits.sum() * 0, change.sum() * 0
    score = F.cross_entropy(logits.float(), found.long())
    if not found.any():
        return score, change.sum() * 0
    wanted = encode_boxes(boxes[index[found]], proposals[found], detector.second.weights)
    return score, (change[found] - wanted).abs().sum() / len(kept)


def detection_losses(detector: Detector, features: torch.Tensor, boxes: list[torch.Tensor],
                     size: tuple[int, int]) -> tuple[dict[str, torch.Tensor], list[Detections]]:
    """Losses of a batch, and the proposals of each image, whose captions are trained.

    Args:
        features: (B, C, H, W).
        boxes: the objects of each image (N_i, 4).
        size: (height, width) of the padded input, pixels.

    Returns:
        "heat", "sides", "objects", "boxes" and their weighted sum "detection"; and the proposals, best first.
    """
    config = detector.config
    levels = detector.pyramid(features)
    heat, sides = detector.head(levels)
    centres, strides = detector.grid(heat)
    table = centres.new_tensor(config.ranges)
    ranges = torch.cat([table[i].expand(h.shape[-1] * h.shape[-2], 2) for i, h in enumerate(heat)])
    targets = [centre_targets(b, centres, strides, ranges) for b in boxes]
    proposals = detector.proposals(heat, sides, size, training=True)

    logits = torch.cat([h.flatten(1) for h in heat], 1)
    predicted = torch.cat([s.flatten(2) for s in sides], 2).transpose(1, 2)
    regress = torch.stack([t.regress for t in targets])
    distance = giou_loss(predicted[regress], torch.stack([t.sides for t in targets])[regress])
    count = regress.sum(1).clamp(min=1).float().mean() * len(boxes)
    losses = {"heat": heat_loss(logits, torch.stack([t.heat for t in targets])), "sides": distance.sum() / count}
    second = [second_stage_loss(detector, [level[i] for level in levels], p.boxes, b)
              for i, (p, b) in enumerate(zip(proposals, boxes, strict=True))]
    losses["objects"], losses["boxes"] = (torch.stack(x).mean() for x in zip(*second, strict=True))
    losses["detection"] = (config.heat_weight * losses["heat"] + config.box_weight * losses["sides"]
                           + losses["objects"] + losses["boxes"])
    return losses, proposals
