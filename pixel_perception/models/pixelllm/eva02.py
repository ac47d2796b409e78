"""EVA-02, the tunable semantic backbone of PixelLLM (Fang et al., 2023; PixelLLM section 5.1)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pixel_perception.models.pixelllm.resampling import resize_bicubic


@dataclass(frozen=True)
class Eva02Config:
    """Sizes of the tower; the defaults are EVA-02-L/14.

    Attributes:
        width, depth, heads: of the transformer.
        patch: side of a patch in pixels.
        hidden: inner width of the gated feed-forward layers.
        pretrain_grid: side, in patches, of the learned position table.
        drop_path: stochastic-depth rate of the last block; it grows linearly from 0 at the first.
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    patch: int = 14
    hidden: int = 2730
    pretrain_grid: int = 16
    drop_path: float = 0.1


def drop_path(x: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """Stochastic depth: zero the residual branch of whole samples, and rescale the others."""
    if not training or rate == 0.0:
        return x
    keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= rate
    return x * keep / (1.0 - rate)


def rotary_tables(grid: tuple[int, int], head_width: int, device=None, theta: float = 1e4):
    """Cosines and sines of the two-dimensional rotary position code.

    Half of a head's channels turn with the row, half with the column, each with ``head_width / 4``
    frequencies. Returns two (H * W, head_width) tensors in float32, patches in row-major order.
    """
    half = head_width // 2
    frequency = theta ** (-torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)
    angle = [torch.outer(torch.arange(n, device=device, dtype=torch.float32), frequency) for n in grid]
    rows, columns = (a.repeat_interleave(2, dim=-1) for a in angle)
    height, width = grid
    both = torch.cat([rows[:, None].expand(height, width, half), columns[None].expand(height, width, half)], -1)
    both = both.reshape(height * width, head_width)
    return both.cos(), both.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the channel pairs (2i, 2i + 1) of (..., N, D) by the angles of the tables."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)


class Attention(nn.Module):
    """Self-attention in which every token but the first (the class token) knows where it is."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # EVA has no key bias: softmax would cancel it
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, tables) -> torch.Tensor:
        """(B, 1 + N, C) and the rotary tables of the N patches -> (B, 1 + N, C)."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        q, k = (torch.cat([t[..., :1, :], rotate(t[..., 1:, :], *tables)], dim=-2) for t in (q, k))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    """SwiGLU with a normalisation before the way down (EVA-02's sub-LN)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-5)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.norm(F.silu(self.gate(x)) * self.up(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: Eva02Config, rate: float):
        super().__init__()
        self.rate = rate
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attention = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = GatedFeedForward(config.width, config.hidden)

    def forward(self, x: torch.Tensor, tables) -> torch.Tensor:
        x = x + drop_path(self.attention(self.norm1(x), tables), self.rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.rate, self.training)


class Eva02(nn.Module):
    """EVA-02 without its head: an image to a map of patch features."""

    def __init__(self, config: Eva02Config):
        super().__init__()
        self.config = config
        self.patch = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, config.width))
        self.position = nn.Parameter(torch.zeros(1, config.pretrain_grid**2 + 1, config.width))
        nn.init.trunc_normal_(self.position, std=0.02)
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised with CLIP's numbers -> (B, C, H // patch, W // patch).

        Pixels to the right of and below the last whole patch are not seen.
        """
        x = self.patch(image)
        grid = tuple(x.shape[-2:])
        table = self.position[:, 1:].transpose(1, 2).unflatten(-1, (self.config.pretrain_grid,) * 2)
        x = (x + resize_bicubic(table, grid)).flatten(2).transpose(1, 2)
        x = torch.cat([(self.cls + self.position[:, :1]).expand(len(x), -1, -1), x], dim=1)
        tables = rotary_tables(grid, self.config.width // self.config.heads, x.device)
        for block in self.blocks:
            x = block(x, tables)
        return self.norm(x)[:, 1:].transpose(1, 2).unflatten(-1, grid)
