"""Two image points for every word (PixelLLM section 4.1, equation 3)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pixel_perception.models.sam import MLP


@dataclass(frozen=True)
class LocationHeadConfig:
    """Sizes of the head: ``depth`` linear layers of ``hidden`` channels, ``points`` points per token.

    With ``predicting`` a token's points come from the state that predicts it (the paper's equation 3) instead of the
    state that has read it (the released code).
    """

    hidden: int = 512
    depth: int = 4
    points: int = 2
    predicting: bool = False


class LocationHead(nn.Module):
    """A small MLP beside the vocabulary layer: a language state to two points and two logits each.

    The paper regresses 2 x (x, y); the released code also gives each point a foreground and a background
    logit, which nothing supervises. They are kept so that its weights fit, and so that a background class
    can be trained.
    """

    def __init__(self, width: int, config: LocationHeadConfig):
        super().__init__()
        self.points = config.points
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, config.hidden, 4 * config.points, config.depth, activation=F.gelu)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(..., C) language states -> points and logits, both (..., points, 2).

        Points are (x, y) as fractions of the valid (unpadded) image; they are not clipped to it.
        """
        out = self.mlp(self.norm(states)).unflatten(-1, (self.points, 4))
        return (out[..., :2] + 1) / 2, out[..., 2:]


def points_to_pixels(points: torch.Tensor, valid_size: torch.Tensor) -> torch.Tensor:
    """Scale fractional points (B, ..., 2) to pixels by the valid size (B, 2) = (width, height)."""
    return points * valid_size.reshape(-1, *[1] * (points.ndim - 2), 2).to(points)


def before_end(tokens: torch.Tensor, end: int) -> torch.Tensor:
    """Mark the positions (..., T) whose next token is ``end``: the state that predicts it holds the box."""
    following = F.pad(tokens[..., 1:], (0, 1), value=-1)
    return following == end


def words(tokens: torch.Tensor, begin: int, end: int, pad: int = 0) -> torch.Tensor:
    """Mark the positions (..., T) of real words: a word's place comes from the state that has read it."""
    return (tokens != begin) & (tokens != end) & (tokens != pad)


def boxes_at(points: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
    """The tightest box around the points of the marked tokens.

    Args:
        points: (..., T, 2, 2) as (x, y), pixels.
        marked: (..., T) bool.

    Returns:
        (..., 4) as (x0, y0, x1, y1), pixels; zeros where no token is marked.
    """
    mask = marked[..., None, None]
    low = points.masked_fill(~mask, torch.inf).flatten(-3, -2).amin(-2)
    high = points.masked_fill(~mask, -torch.inf).flatten(-3, -2).amax(-2)
    return torch.cat([low, high], -1).masked_fill(~marked.any(-1, keepdim=True), 0.0)
