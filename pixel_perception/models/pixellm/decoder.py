"""PixelLM's multi-scale pixel decoder (section 3.1, equation 1, supplement A) for any number of scales.

Level 0 is the deepest feature map; each further level works on a map twice as wide, which is the size of the mask
before it, and looks harder where that mask is on. Maps are (batch, channels, height, width).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixel_perception.models.sam import FourierPositions, LayerNorm2d, MaskHead, TwoWayConfig, TwoWayTransformer


@dataclass(frozen=True)
class PixelDecoderConfig:
    """`upscaled` is the width of the map that the masks are read from, `masks` the number of mask tokens."""

    levels: int = 2
    upscaled: int = 32
    masks: int = 4
    transformer: TwoWayConfig = field(default_factory=TwoWayConfig)


def upsampler(inputs: int, outputs: int) -> nn.Sequential:
    """Twice the resolution: transposed convolution, layer norm, GELU."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 2, 2), LayerNorm2d(outputs), nn.GELU())


@dataclass(frozen=True)
class DecodedMasks:
    """Logits of T targets: `combined` (T, h, w), one (T, h_l, w_l) and one quality (T,) for each level."""

    combined: Tensor
    levels: list[Tensor]
    qualities: list[Tensor]


class PixelDecoder(nn.Module):
    """Fused target states and feature maps to mask logits."""

    def __init__(self, config: PixelDecoderConfig):
        super().__init__()
        dim, levels = config.transformer.dim, config.levels
        self.head = MaskHead(dim, config.upscaled, config.masks, hidden=dim)
        self.level_code = nn.Parameter(torch.randn(levels, dim))
        self.no_mask = nn.Parameter(torch.randn(dim))
        self.positions = nn.ModuleList(FourierPositions(dim) for _ in range(levels))
        self.transformers = nn.ModuleList(TwoWayTransformer(config.transformer) for _ in range(levels))
        self.widen = nn.ModuleList(upsampler(dim, dim) for _ in range(levels - 1))
        self.upscale = upsampler(dim, config.upscaled)
        self.scale_weights = nn.Parameter(torch.full((levels,), 1 / levels))

    def forward(self, targets: Tensor, maps: Tensor, image_of_target: Sequence[int] | Tensor | None = None) -> DecodedMasks:
        """targets (T, L, dim) on the images that `image_of_target` tells (all on the first when it is None).

        maps (B, L, dim, h, w). All targets run at once; an image's maps are widened once for all its targets.
        """
        images = torch.as_tensor([0] * len(targets) if image_of_target is None else image_of_target, device=maps.device)
        logits, qualities = [], []
        for level, transformer in enumerate(self.transformers):
            source = self.source(level, maps[:, level])[images]
            if level:  # equation 1: twice the feature where the mask before is sure, once where it is not
                source = source * (logits[-1].sigmoid() + 1)
            mask, quality = self._decode(level, transformer, targets[:, level], source + self.no_mask[:, None, None])
            logits.append(mask)
            qualities.append(quality)
        return DecodedMasks(self.combine(logits), [x[:, 0] for x in logits], [x[:, 0] for x in qualities])

    def source(self, level: int, feature: Tensor) -> Tensor:
        """A level's feature map (B, dim, h, w) at the resolution it works on, (B, dim, 2^level h, 2^level w)."""
        for widen in self.widen[:level]:
            feature = widen(feature)
        return feature

    def combine(self, logits: list[Tensor]) -> Tensor:
        """Weighted sum of the levels' logits (T, 1, h_l, w_l) at the finest size: (T, h, w); weights sum to one."""
        weights = self.scale_weights / self.scale_weights.abs().sum()
        size = logits[-1].shape[-2:]
        scaled = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in logits]
        return sum(w * x for w, x in zip(weights, scaled, strict=True))[:, 0]

    def _decode(self, level: int, transformer: TwoWayTransformer, target: Tensor, source: Tensor):
        size = source.shape[-2:]
        tokens = torch.cat([self.head.tokens(len(target)), target[:, None]], dim=1) + self.level_code[level]
        code = self.positions[level].grid(*size).flatten(2).transpose(1, 2)
        tokens, image = transformer(tokens, source.flatten(2).transpose(1, 2), code)
        image = image.transpose(1, 2).unflatten(2, size)
        return self.head.read(tokens[:, : self.head.length], self.upscale(image))
