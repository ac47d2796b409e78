"""Masks for referred objects: SAM's mask decoder, prompted by the predicted box (PixelLLM sections 4.3, 5.1)."""

from dataclasses import dataclass

import torch
from torch import nn

from pixel_perception.models.sam import LayerNorm2d, MaskHead, TwoWayConfig, TwoWayTransformer


@dataclass(frozen=True)
class MaskConfig:
    """Sizes of the mask branch; the transformers are those of SAM (width 256, depth 2).

    Attributes:
        width: channels of SAM's image features and prompts.
        masks: mask tokens; the first gives the single answer, the others SAM's ambiguous ones.
        adapter: let the words correct the box prompt (the paper's "learnable embedding").
    """

    width: int = 256
    masks: int = 4
    adapter: bool = True


class MaskAdapter(nn.Module):
    """Two learned queries look at the visual tokens and the words, and correct the two corners of the box.

    The correction is gated by tanh of a weight that starts at 0, so that training starts from plain SAM.
    """

    def __init__(self, config: MaskConfig, visual_channels: int, word_channels: int):
        super().__init__()
        width = config.width
        self.queries = nn.Parameter(torch.randn(2, width))
        self.gate = nn.Parameter(torch.zeros(2, width))
        self.visual = nn.Sequential(nn.LayerNorm(visual_channels, eps=1e-6), nn.Linear(visual_channels, width))
        self.words = nn.Sequential(nn.LayerNorm(word_channels, eps=1e-6), nn.Linear(word_channels, width))
        self.transformer = TwoWayTransformer(TwoWayConfig(dim=width))

    def forward(self, corners: torch.Tensor, visual: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """corners (R, 2, D), visual tokens (R, N, Cv), language states (R, T, Ct) -> corners (R, 2, D)."""
        keys = torch.cat([self.visual(visual), self.words(words)], dim=1)
        queries = self.queries.expand(corners.shape[0], -1, -1)  # len() would make the exporter take it for a constant
        queries, _ = self.transformer(queries, keys, torch.zeros_like(keys))
        return corners + self.gate.tanh() * queries


class MaskDecoder(nn.Module):
    """SAM's mask decoder: image features and prompt tokens to mask logits and their expected IoU."""

    def __init__(self, config: MaskConfig):
        super().__init__()
        width = config.width
        self.head = MaskHead(width, width // 8, config.masks)
        self.transformer = TwoWayTransformer(TwoWayConfig(dim=width))
        self.upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, 2), LayerNorm2d(width // 4), nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, 2), nn.GELU())

    def forward(self, image: torch.Tensor, position: torch.Tensor, prompts: torch.Tensor, dense: torch.Tensor,
                masks: range = range(1)) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode one set of masks for each prompt.

        Args:
            image: SAM's features (B, D, H, W).
            position: their position code (1, D, H, W).
            prompts: prompt tokens (B, P, K, D).
            dense: the dense prompt (D,).
            masks: which mask tokens to read; range(1) is the single answer, range(1, 4) the ambiguous ones.

        Returns:
            Logits (B, P, len(masks), 4H, 4W) and expected IoUs (B, P, len(masks)).
        """
        batch, count = prompts.shape[:2]
        size = image.shape[-2:]
        rows = batch * count
        tokens = torch.cat([self.head.tokens(rows), prompts.flatten(0, 1)], dim=1)
        keys = image.flatten(2).transpose(1, 2) + dense
        keys = keys[:, None].expand(-1, count, -1, -1).flatten(0, 1)
        tokens, keys = self.transformer(tokens, keys, position.flatten(2).transpose(1, 2))
        upscaled = self.upscaling(keys.transpose(1, 2).unflatten(-1, size))
        logits, quality = self.head.read(tokens[:, : self.head.length], upscaled, masks)
        return logits.unflatten(0, (batch, count)), quality.unflatten(0, (batch, count))
