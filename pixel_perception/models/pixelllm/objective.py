"""What PixelLLM is trained on: captions, places of words, boxes and masks of referred objects (equation 4)."""

from dataclasses import dataclass, replace

import torch

from pixel_perception.models.losses import IGNORE, mask_dice, mask_focal, points_l1, quality_mse, text_cross_entropy
from pixel_perception.models.pixelllm.location_head import words
from pixel_perception.models.pixelllm.model import Features, PixelLLM, VisualTokens, Words
from pixel_perception.models.pixelllm.proposal_losses import detection_losses, match
from pixel_perception.models.pixelllm.resampling import resize_bilinear


@dataclass
class Batch:
    """B images with P texts each; a row of padding has ``real`` false.

    Attributes:
        images: (B, 3, H, W) float in 0..255, padded at the right and below.
        valid: (B, 2) as (width, height) of the unpadded image, pixels.
        prompts: location prompts (B, P, 4) as (x0, y0, x1, y1), pixels.
        tokens: (B, P, T) int64: begin, words, end, zeros.
        real: (B, P) bool.
        context: text prompts (B, P, M) int64, or None.
        traces: places of the words (B, P, T, 2, 2) as two corner points (x, y) in pixels, zeros where unknown.
        boxes: boxes of the referred objects (B, P, 4), pixels.
        masks: masks of the referred objects (B, P, H, W) in {0, 1}.
        text: whether the words themselves are to be learned (not so in referring).
        objects: dense captioning: ``boxes`` are all objects of the image and the tokens their captions. The
            detector is trained on the boxes, and the captions of proposals that fall on an object are learned.
    """

    images: torch.Tensor
    valid: torch.Tensor
    prompts: torch.Tensor
    tokens: torch.Tensor
    real: torch.Tensor
    context: torch.Tensor | None = None
    traces: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    masks: torch.Tensor | None = None
    text: bool = True
    objects: bool = False


@dataclass
class Pass:
    """One forward pass over a batch, and its losses: scalars by name, "total" among them."""

    features: Features
    visual: VisualTokens
    words: Words
    losses: dict[str, torch.Tensor]


def text_loss(logits: torch.Tensor, tokens: torch.Tensor, real: torch.Tensor, end: int, smoothing: float):
    """Smoothed cross-entropy of the next token; rows that are padding or hold no word do not count."""
    following = tokens[..., 1:]
    counted = (following > 0) & real[..., None] & (following[..., :1] != end)
    return text_cross_entropy(logits[..., :-1, :], following.masked_fill(~counted, IGNORE), smoothing)


def location_loss(points: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Mean L1 distance in pixels over the counted tokens whose target is known (not all zero)."""
    return points_l1(points, targets, counted & (targets != 0).flatten(-2).any(-1))


def mask_losses(logits: torch.Tensor, quality: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    """SAM's recipe at the size of the padded input: 20 focal + dice + squared error of the expected IoU.

    Focal averages over the valid image; dice and IoU see the padding too, as in the reference.
    """
    logits = resize_bilinear(logits, tuple(batch.images.shape[-2:]))
    focal, dice, error = [], [], []
    for i, (width, height) in enumerate(batch.valid.tolist()):
        kept = batch.real[i]
        mine, target = logits[i][kept], (batch.masks[i][kept] > 0).to(logits)
        inside = (slice(None), slice(int(height)), slice(int(width)))
        focal.append(mask_focal(mine[inside], target[inside], alpha=0.5))
        dice.append(mask_dice(mine, target, smooth=1.0))
        error.append(quality_mse(quality[i][kept], mine, target))
    count = batch.real.sum().clamp(min=1)
    focal, dice, error = (torch.cat(x).sum() / count for x in (focal, dice, error))
    return {"mask_focal": 20 * focal, "mask_dice": dice, "mask_quality": error, "mask": 20 * focal + dice + error}


def forward(model: PixelLLM, batch: Batch) -> Pass:
    """Run the model on a batch and compute every loss that the batch has targets for.

    Losses are named "text", "location", "mask" and "detection" (with their parts), and "total" is text +
    0.1 location + mask + detection.
    """
    config = model.config
    features = model.encode(batch.images, batch.valid)
    found: dict[str, torch.Tensor] = {}
    if batch.objects:
        found, batch = _detect(model, features, batch)
    visual = model.extract(features, batch.prompts)
    read = model.read(features, visual, batch.tokens, batch.context)
    losses = found
    total = found.get("detection", read.logits.sum() * 0.0)
    if batch.text:
        losses["text"] = text_loss(read.logits, batch.tokens, batch.real, config.end, config.smoothing)
        total = total + losses["text"]
    if batch.traces is not None:
        counted = words(batch.tokens, config.begin, config.end) & batch.real[..., None]
        losses["location"] = location_loss(read.points, batch.traces, counted)
    elif batch.boxes is not None and model.location_head is not None:
        corners = batch.boxes.unflatten(-1, (2, 2))[:, :, None].expand_as(read.points)
        losses["location"] = location_loss(read.points, corners, model.box_places(batch.tokens) & batch.real[..., None])
    if "location" in losses:
        total = total + config.location_weight * losses["location"]
    if batch.masks is not None and model.mask_decoder is not None:
        boxes = model.boxes(read, batch.tokens).detach()
        losses |= mask_losses(*model.masks(features, boxes, visual, read), batch)
        total = total + losses["mask"]
    losses["total"] = total
    return Pass(features, visual, read, losses)


def _detect(model: PixelLLM, features: Features, batch: Batch) -> tuple[dict[str, torch.Tensor], Batch]:
    """Detection losses, and the batch with its best proposals as prompts and their objects' captions as texts.

    The boxes were the detector's to learn: where a caption's words lie is not known.
    """
    config = model.config.detector
    objects = [boxes[real] for boxes, real in zip(batch.boxes, batch.real, strict=True)]
    size = tuple(batch.images.shape[-2:])
    losses, proposals = detection_losses(model.detector, features.joined, objects, size)
    count = min(config.text_proposals, *(len(p.boxes) for p in proposals))
    prompts = torch.stack([p.boxes[:count].detach() for p in proposals])
    matches = [match(boxes, mine, config.match) for boxes, mine in zip(prompts, objects, strict=True)]
    chosen = [real.nonzero()[:, 0][index] if real.any() else index
              for real, (index, _) in zip(batch.real, matches, strict=True)]
    rows = torch.stack(chosen)

    def pick(x):
        return None if x is None else torch.stack([values[i] for values, i in zip(x, rows, strict=True)])

    return losses, replace(batch, prompts=prompts, real=torch.stack([hit for _, hit in matches]),
                           tokens=pick(batch.tokens), context=pick(batch.context), boxes=None, traces=None,
                           masks=None)
