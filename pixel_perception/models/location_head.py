"""Location head: hidden state of a word -> two points that bound its place (PixelLLM, equation 2)."""

from __future__ import annotations

from torch import Tensor, nn


class LocationHead(nn.Module):
    """LayerNorm and an MLP on every token's hidden state."""

    def __init__(self, hidden: int, width: int = 256):
        super().__init__()
        self.mlp = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
                                 nn.Linear(width, 4))

    def forward(self, states: Tensor) -> Tensor:
        """states (..., hidden) -> (..., 4): x0, y0, x1, y1 in units of the network frame, not clipped."""
        return (self.mlp(states) + 1) / 2
