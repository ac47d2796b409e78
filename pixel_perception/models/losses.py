"""The losses of both papers as pure functions of tensors.

Masks come as logits (K, H, W) with targets of the same shape in [0, 1] unless said otherwise; masked losses
return one value for each mask, (K,), so that masks of different images can be averaged over a batch.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


def text_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy of the next token over the labels that are not IGNORE.

    logits (..., n, V) and labels (..., n), already aligned. The target keeps 1 - smoothing, each other word gets
    smoothing / (V - 1) (PixelLLM). Without any label the loss is zero and still has a gradient.
    """
    known = labels != IGNORE
    logs = logits[known].float().log_softmax(-1)
    chosen = logs.gather(-1, labels[known][:, None])[:, 0]
    share = smoothing / (logs.shape[-1] - 1)
    losses = -(1 - smoothing - share) * chosen - share * logs.sum(-1)
    return losses.sum() / known.sum().clamp(min=1)


def next_token_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """`text_cross_entropy` of a causal model: the logits at position i (B, n, V) against the label at i + 1."""
    return text_cross_entropy(logits[:, :-1], labels[:, 1:], smoothing)


def mask_bce(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean binary cross entropy over each mask's pixels: (K,). `weights` (K, H, W) is the paper's map A."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return (loss if weights is None else loss * weights).flatten(1).mean(1)


def mask_dice(logits: Tensor, targets: Tensor, smooth: float = 1e-3) -> Tensor:
    """1 - (2 sum(p g) + smooth) / (sum p + sum g + smooth) for each mask: (K,).

    The default is PixelLM's (1e-6 on sums in thousands of pixels); PixelLLM and the matching use 1.
    """
    p, g = logits.float().sigmoid().flatten(1), targets.float().flatten(1)
    return 1 - (2 * (p * g).sum(1) + smooth) / (p.sum(1) + g.sum(1) + smooth)


def refinement_map(logits: Tensor, alpha: float, groups: Tensor | None = None) -> Tensor:
    """PixelLM's map A (section 3.2): alpha where two or more targets are predicted together, else 1: (K, H, W).

    `groups` (K,) tells the question that each mask answers; only masks of one question confuse each other. Without
    it all masks belong to one. The map is a weight, not a path for gradients.
    """
    on = (logits.detach() > 0).to(logits.dtype)
    same = on.new_ones(len(on), len(on)) if groups is None else (groups[:, None] == groups).to(on.dtype)
    together = torch.einsum("kj,jhw->khw", same, on) >= 2
    return torch.where(together, alpha, 1.0)


def refined_bce(logits: Tensor, targets: Tensor, alpha: float = 2.0, groups: Tensor | None = None) -> Tensor:
    """The target refinement loss L_ref of section 3.2 for each mask: (K,). alpha = 1 is plain BCE."""
    return mask_bce(logits, targets, refinement_map(logits, alpha, groups))


def overlap_bce(logits: Tensor, targets: Tensor, groups: Tensor | None = None) -> Tensor:
    """The part of the BCE that lies where targets overlap: (K,). Plain BCE plus this is L_ref with alpha = 2."""
    return mask_bce(logits, targets, refinement_map(logits, 2.0, groups) - 1)


def mask_focal(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Mean focal loss over each mask's pixels (Lin et al. 2017): (K,). alpha < 0 leaves the classes unweighted."""
    logits, targets = logits.float(), targets.float()
    p = logits.sigmoid()
    miss = p * (1 - targets) + (1 - p) * targets
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * miss**gamma
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss.flatten(1).mean(1)


def intersection_and_union(predicted: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels in both and in either of two sets of boolean masks (K, H, W): (K,) each, float."""
    both = (predicted & targets).flatten(1).sum(1)
    either = (predicted | targets).flatten(1).sum(1)
    return both.float(), either.float()


def quality_mse(quality: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Squared error of predicted mask qualities (K,) against the IoU of the thresholded logits: (K,)."""
    both, either = intersection_and_union(logits > 0, targets > 0.5)
    return (quality.float() - both / either.clamp(min=1)).square()


def points_l1(points: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error in pixels over the valid tokens' points (PixelLLM, equation 4), a scalar.

    points and targets (..., n, p, 2) as (x, y), valid (..., n) bool. Without a valid token the loss is zero.
    """
    errors = (points.float() - targets.float()).abs().mean((-1, -2))
    return (errors * valid).sum() / valid.sum().clamp(min=1)


def mean_over_masks(losses: Iterable[Tensor], like: Tensor) -> Tensor:
    """Mean over all masks of a batch, given one (K_i,) for each image; zero, of `like`'s kind, without any mask."""
    losses = list(losses)
    count = sum(len(x) for x in losses)
    return torch.cat(losses).mean() if count else like.sum() * 0


def matching_costs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Costs of pairing predictions with targets for MUSE's bipartite matching: BCE (P, G) and DICE (P, G).

    logits (P, n) and targets (G, n) at the same n pixels; DICE has a smoothing of 1.
    """
    logits, targets = logits.float().flatten(1), targets.float().flatten(1)
    bce = (F.softplus(logits).sum(1)[:, None] - logits @ targets.T) / logits.shape[1]
    p = logits.sigmoid()
    dice = 1 - (2 * p @ targets.T + 1) / (p.sum(1)[:, None] + targets.sum(1) + 1)
    return bce, dice


def match_masks(logits: Tensor, targets: Tensor) -> tuple[list[int], list[int]]:
    """The bipartite matching of MUSE (section 4.3): indices of paired predictions and targets, of equal length.

    logits (P, ...) and targets (G, ...) at the same pixels; min(P, G) pairs of least BCE + DICE, predictions rising.
    Every pixel is used, so the answer does not depend on a seed as the published one, on sampled pixels, does.
    """
    from scipy.optimize import linear_sum_assignment  # evaluation only: training and inference need no scipy

    rows, columns = linear_sum_assignment(sum(matching_costs(logits, targets)).detach().cpu().numpy())
    return rows.tolist(), columns.tolist()
