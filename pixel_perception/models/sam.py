"""Segment Anything's small parts (Kirillov et al. 2023), shared by both papers.

PixelLM decodes its masks with them (supplement A); PixelLLM encodes prompts, extracts prompt features
(section 3.2) and decodes referred masks with them. Sequences are (batch, length, channels), maps (batch,
channels, height, width), coordinates (x, y) with x to the right and y down.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of a map (batch, channels, height, width), each pixel by itself."""

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).square().mean(1, keepdim=True)
        x = (x - mean) * torch.rsqrt(variance + self.eps)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class MLP(nn.Module):
    """Linear layers with an activation between them: `inputs -> hidden x (layers - 1) -> outputs`."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int = 2, activation=F.relu):
        super().__init__()
        sizes = [inputs] + [hidden] * (layers - 1) + [outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class FourierPositions(nn.Module):
    """Random Fourier code of positions in [0, 1]^2; the matrix is drawn once and travels with the weights."""

    def __init__(self, channels: int = 256):
        super().__init__()
        if channels % 2:
            raise ValueError(f"the position code needs an even number of channels, got {channels}")
        self.register_buffer("frequencies", torch.randn(2, channels // 2))

    def forward(self, xy: Tensor) -> Tensor:
        """Code points (..., 2), as (x, y) in [0, 1], to (..., channels)."""
        angles = (2 * math.pi) * ((2 * xy - 1).to(self.frequencies.dtype) @ self.frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def grid(self, height: int, width: int) -> Tensor:
        """Code the cell centres of a map: (1, channels, height, width)."""
        options = {"device": self.frequencies.device, "dtype": self.frequencies.dtype}
        y = (torch.arange(height, **options) + 0.5) / height
        x = (torch.arange(width, **options) + 0.5) / width
        xy = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
        return self(xy).permute(2, 0, 1)[None]


class Attention(nn.Module):
    """Multi-head attention of inner width `dim / down_rate`: q (B, n, dim), k, v (B, m, dim) -> (B, n, dim).

    `valid` (B, m), bool, hides the keys where it is False. Raises ValueError when the inner width does not divide
    into the heads.
    """

    def __init__(self, dim: int, heads: int, down_rate: int = 1):
        super().__init__()
        inner = dim // down_rate
        if inner % heads:
            raise ValueError(f"inner width {inner} does not divide into {heads} heads")
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, inner) for _ in range(3))
        self.out = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
        q, k, v = (self._split(f(x)) for f, x in ((self.q, q), (self.k, k), (self.v, v)))
        mask = None if valid is None else valid[:, None, None]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


@dataclass(frozen=True)
class TwoWayConfig:
    """Sizes of a two-way transformer. `down_rate` narrows the cross attentions only."""

    depth: int = 2
    dim: int = 256
    heads: int = 8
    mlp: int = 2048
    down_rate: int = 2
    eps: float = 1e-5


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, pass an MLP; then the image attends to the tokens."""

    def __init__(self, config: TwoWayConfig, first: bool):
        super().__init__()
        dim, heads = config.dim, config.heads
        self.first = first
        self.self_attention = Attention(dim, heads)
        self.token_to_image = Attention(dim, heads, config.down_rate)
        self.image_to_token = Attention(dim, heads, config.down_rate)
        self.mlp = MLP(dim, config.mlp, dim)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim, config.eps) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, token_code: Tensor, image_code: Tensor):
        if self.first:  # the tokens still equal their code here: adding it would only double them
            tokens = self.self_attention(tokens, tokens, tokens)
        else:
            q = tokens + token_code
            tokens = tokens + self.self_attention(q, q, tokens)
        tokens = self.norm1(tokens)
        k = image + image_code
        tokens = self.norm2(tokens + self.token_to_image(tokens + token_code, k, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.image_to_token(k, tokens + token_code, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Two-way attention between a few tokens and many image cells.

    tokens (B, n, dim), image (B, m, dim), image_code (1 or B, m, dim) -> tokens and image, shapes kept.
    """

    def __init__(self, config: TwoWayConfig):
        super().__init__()
        self.blocks = nn.ModuleList(TwoWayBlock(config, first=i == 0) for i in range(config.depth))
        self.final_attention = Attention(config.dim, config.heads, config.down_rate)
        self.final_norm = nn.LayerNorm(config.dim, config.eps)

    def forward(self, tokens: Tensor, image: Tensor, image_code: Tensor) -> tuple[Tensor, Tensor]:
        token_code = tokens
        for block in self.blocks:
            tokens, image = block(tokens, image, token_code, image_code)
        looked = self.final_attention(tokens + token_code, image + image_code, image)
        return self.final_norm(tokens + looked), image


@dataclass(frozen=True)
class PromptEncoderConfig:
    """`mask_channels` is the inner width of the branch that reads a mask prompt."""

    dim: int = 256
    mask_channels: int = 16


class PromptEncoder(nn.Module):
    """SAM's prompt encoder: boxes and points become tokens, a mask (or its absence) becomes a dense map.

    Coordinates are absolute pixels (x, y) of the network's input frame; sizes are (height, width) in pixels.
    """

    NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = range(4)

    def __init__(self, config: PromptEncoderConfig = PromptEncoderConfig()):
        super().__init__()
        dim, inner = config.dim, config.mask_channels
        self.positions = FourierPositions(dim)
        self.kinds = nn.Parameter(torch.randn(4, dim))  # negative point, positive point, two box corners
        self.no_point = nn.Parameter(torch.randn(dim))
        self.no_mask = nn.Parameter(torch.randn(dim))
        self.mask_branch = nn.Sequential(
            nn.Conv2d(1, inner // 4, 2, 2), LayerNorm2d(inner // 4), nn.GELU(),
            nn.Conv2d(inner // 4, inner, 2, 2), LayerNorm2d(inner), nn.GELU(), nn.Conv2d(inner, dim, 1),
        )

    def boxes(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes (..., 4) as x0, y0, x1, y1 -> (..., 2, dim), one token for each corner."""
        corners = self._code(boxes.unflatten(-1, (2, 2)), size)
        return corners + self.kinds[self.TOP_LEFT :]

    def points(self, xy: Tensor, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """Points (..., n, 2) with labels (..., n): 1 on the object, 0 off it, -1 padding -> (..., n, dim)."""
        labels = labels[..., None]
        kind = torch.where(labels == 1, self.kinds[self.POSITIVE], self.kinds[self.NEGATIVE])
        return torch.where(labels < 0, self.no_point, self._code(xy, size) + kind)

    def dense(self, count: int, height: int, width: int) -> Tensor:
        """The dense prompt when no mask is given: (count, dim, height, width)."""
        return self.no_mask[None, :, None, None].expand(count, -1, height, width)

    def masks(self, logits: Tensor) -> Tensor:
        """Mask prompts as logits (B, 1, 4h, 4w) -> dense prompt (B, dim, h, w)."""
        return self.mask_branch(logits)

    def _code(self, xy: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = size
        scale = torch.tensor([width, height], device=xy.device, dtype=xy.dtype)
        return self.positions((xy + 0.5) / scale)  # half a pixel: to the pixel's centre


class MaskHead(nn.Module):
    """The learned output tokens of SAM's mask decoder and what reads masks and quality out of them.

    A decoder puts `tokens(batch)` in front of its prompts, runs attention, and gives the first `1 + masks`
    outputs and the upscaled map back to `read`.
    """

    def __init__(self, dim: int = 256, upscaled: int = 32, masks: int = 4, hidden: int = 256):
        super().__init__()
        self.quality_token = nn.Parameter(torch.randn(1, dim))
        self.mask_tokens = nn.Parameter(torch.randn(masks, dim))
        self.hypernetworks = nn.ModuleList(MLP(dim, dim, upscaled, 3) for _ in range(masks))
        self.quality = MLP(dim, hidden, masks, 3)

    @property
    def length(self) -> int:
        """Number of learned tokens."""
        return 1 + len(self.mask_tokens)

    def tokens(self, batch: int) -> Tensor:
        """(batch, 1 + masks, dim): the quality token, then the mask tokens."""
        return torch.cat([self.quality_token, self.mask_tokens]).expand(batch, -1, -1)

    def read(self, tokens: Tensor, upscaled: Tensor, masks: range = range(1)) -> tuple[Tensor, Tensor]:
        """tokens (B, 1 + masks, dim), upscaled (B, c, h, w) -> logits (B, m, h, w), quality (B, m).

        `masks` chooses which mask tokens to read; 0 is the one that SAM uses when a single mask is wanted.
        """
        weights = torch.stack([self.hypernetworks[i](tokens[:, 1 + i]) for i in masks], dim=1)
        logits = (weights @ upscaled.flatten(2)).unflatten(-1, upscaled.shape[-2:])
        return logits, self.quality(tokens[:, 0])[:, masks.start : masks.stop]
