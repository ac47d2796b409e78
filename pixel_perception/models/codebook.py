"""Token fusion: hidden states of a codebook group -> one query per scale (PixelLM, equations 1 and 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixel_perception.models.config import CodebookConfig


class TokenFusion(nn.Module):
    """Projects the hidden states of a group and adds up the N tokens of each scale with learned weights."""

    def __init__(self, hidden: int, dim: int, codebook: CodebookConfig):
        super().__init__()
        self.levels = codebook.levels
        self.project = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.weight = nn.Parameter(torch.full((codebook.levels, codebook.tokens_per_level), 1 / codebook.tokens_per_level))

    def forward(self, states: Tensor) -> Tensor:
        """states (..., L * N, hidden), level-major -> queries (..., L, dim)."""
        x = self.project(states).unflatten(-2, (self.levels, -1))
        return (x * self.weight[..., None]).sum(-2)
