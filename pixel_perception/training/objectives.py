"""Losses of the compact model that the papers do not share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pixel_perception.models.losses import mask_bce, mask_dice
from pixel_perception.models.pixel_decoder import Decoded


def target_losses(decoded: Decoded, masks: Tensor, there: Tensor, judged: Tensor,
                   weights: Tensor | None = None) -> dict[str, Tensor]:
    """Mask losses over the targets that are there, presence over those that are judged.

    masks (B, T, h, w) in 0..1 at stride 4; there, judged (B, T) bool; weights (B, T, h, w) multiply the pixels' loss.
    """
    present = there
    truth = masks[present]
    boost = 1 + 2 * truth  # targets are small: their pixels count three times
    if weights is not None:
        boost = boost * weights[present]
    coarse = F.avg_pool2d(truth[:, None], 4)[:, 0]
    count = max(int(present.sum()), 1)
    fine_logits, coarse_logits = decoded.mask[present], decoded.coarse[present]
    presence = F.binary_cross_entropy_with_logits(decoded.presence, there.float(), reduction="none")
    return {
        "mask": 4 * mask_bce(fine_logits, truth, boost).sum() / count,
        "dice": mask_dice(fine_logits, truth, 1.0).sum() / count,
        "coarse": (mask_bce(coarse_logits, coarse, 1 + 2 * coarse) + 0.5 * mask_dice(coarse_logits, coarse, 1.0)).sum() / count,
        "presence": (presence * judged).sum() / judged.sum().clamp(min=1),
    }


def centre_losses(heat: Tensor, boxes: Tensor, target: Tensor, target_boxes: Tensor, near: Tensor) -> dict[str, Tensor]:
    """CenterNet: penalty-reduced focal loss on the heat map (B, h, w), GIoU on the boxes around centres."""
    p = heat.sigmoid().clamp(1e-4, 1 - 1e-4)
    centre = target == 1
    positive = -(((1 - p) ** 2) * p.log())[centre].sum()
    negative = -((1 - target) ** 4 * p**2 * (1 - p).log())[~centre].sum()
    giou = generalised_iou(boxes[near], target_boxes[near])
    return {"heat": 0.5 * (positive + negative) / centre.sum().clamp(min=1), "sides": (1 - giou).sum() / near.sum().clamp(min=1)}


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """Of boxes (..., 4) x0, y0, x1, y1 -> (...)."""

    def area(t: Tensor) -> Tensor:
        return (t[..., 2] - t[..., 0]).clamp(min=0) * (t[..., 3] - t[..., 1]).clamp(min=0)

    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    both = size[..., 0] * size[..., 1]
    either = area(a) + area(b) - both
    hull = torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], -1)
    return both / (either + 1e-6) - (area(hull) - either) / (area(hull) + 1e-6)


def direction_loss(vectors: Tensor, directions: Tensor, index: Tensor, temperature: float = 0.07) -> Tensor:
    """Cross entropy of unit vectors (n, hidden) over word directions (words, hidden); index (n,), -100 is ignored."""
    if not (index >= 0).any():
        return vectors.sum() * 0
    return F.cross_entropy(vectors @ directions.T / temperature, index)
