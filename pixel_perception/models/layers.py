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
        attended = self._to_itself(y, bias) if memory is None else self._to_memory(y, memory, bias)
        x = x + self.out(attended)
        return x + self.mlp(self.norm_mlp(x))

    def _to_itself(self, y: Tensor, bias: Tensor | None) -> Tensor:
        query, key, value = (part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value, None if bias is None else bias[:, None])
        return attended.transpose(1, 2).flatten(2)

    def _to_memory(self, y: Tensor, memory: Tensor, bias: Tensor | None) -> Tensor:
        """The same attention in the order that is cheap where few rows look at many: q . (K m) is (q K) . m, and the sum of
        a (V m) is V (sum of a m), so that no key and no value of the memory is ever computed."""
        size = y.shape[-1] // self.heads
        own = torch.eye(self.heads, dtype=y.dtype, device=y.device).repeat_interleave(size, 1)[:, None]  # the channels of each head
        query = (self.query(y)[:, None] * own).flatten(1, 2) * size**-0.5  # (B, heads * T, dim)
        logits = (query @ self.key.weight) @ memory.transpose(1, 2) + (query @ self.key.bias)[..., None]
        if bias is not None:
            logits = logits + bias.repeat(1, self.heads, 1)
        pooled = self.value(logits.softmax(-1) @ memory).unflatten(1, (self.heads, -1))
        return (pooled * own).sum(1)


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
