"""Small parts that several networks share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionBlock(nn.Module):
    """Pre-norm attention (to `memory`, or to itself without one) followed by an MLP of twice the width."""

    def __init__(self, dim: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, memory: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x (B, T, dim), memory (B, S, dim), bias (B, T, S) added to the attention logits of every head -> (B, T, dim)."""
        y = self.norm_attention(x)
        memory = y if memory is None else memory

        def split(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        bias = None if bias is None else bias[:, None]
        attended = F.scaled_dot_product_attention(
            split(self.query(y)), split(self.key(memory)), split(self.value(memory)), bias
        )
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_mlp(x))


def fourier(values: Tensor, frequencies: int) -> Tensor:
    """Sine and cosine code of coordinates in 0..1. (..., n) -> (..., n * 2 * frequencies)."""
    scale = math.pi * 2 ** torch.linspace(0, 6, frequencies, device=values.device, dtype=values.dtype)
    angle = (values[..., None] * scale).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], -1)


def position_grid(height: int, width: int, dim: int) -> Tensor:
    """Fourier position code of cell centres, (dim, height, width)."""
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    centres = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)
    return fourier(centres, dim // 4).permute(2, 0, 1)


def tokens(feature_map: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)."""
    return feature_map.flatten(2).transpose(1, 2)
