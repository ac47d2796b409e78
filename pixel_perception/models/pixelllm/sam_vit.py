"""SAM's image encoder, the frozen localisation backbone of PixelLLM (Kirillov et al., 2023; section 5.1)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pixel_perception.models.pixelllm.eva02 import drop_path
from pixel_perception.models.pixelllm.resampling import resize_bicubic
from pixel_perception.models.sam import LayerNorm2d


@dataclass(frozen=True)
class SamVitConfig:
    """Sizes of the tower; the defaults are SAM's ViT-H/16.

    Attributes:
        width, depth, heads: of the transformer.
        patch: side of a patch in pixels.
        window: side, in patches, of the attention windows.
        global_blocks: indices of the blocks that attend to the whole map.
        pretrain_grid: side, in patches, of the learned position tables.
        output: channels after the neck.
        drop_path: stochastic-depth rate of the last block (0 where the tower is frozen).
    """

    width: int = 1280
    depth: int = 32
    heads: int = 16
    patch: int = 16
    window: int = 14
    global_blocks: tuple[int, ...] = (7, 15, 23, 31)
    pretrain_grid: int = 64
    output: int = 256
    drop_path: float = 0.0


def relative_table(table: torch.Tensor, size: int) -> torch.Tensor:
    """Look up a learned table (L, D) of relative offsets for ``size`` positions: (size, size, D).

    Entry [i, j] belongs to the offset i - j; a table learned at another size is resampled linearly.
    """
    if len(table) != 2 * size - 1:
        resized = F.interpolate(table.t()[None, :, :, None], size=(2 * size - 1, 1), mode="bilinear",
                                antialias=True, align_corners=False)
        table = resized[0, :, :, 0].t()
    index = torch.arange(size, device=table.device)
    return table[index[:, None] - index[None] + size - 1]


class Attention(nn.Module):
    """Self-attention over a map with additive relative positions, separately for rows and columns."""

    def __init__(self, width: int, heads: int, side: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.relative_y = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.relative_x = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        grid = q.unflatten(2, (height, width))
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, relative_table(self.relative_y, height))
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, relative_table(self.relative_x, width))
        bias = (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(out.transpose(1, 2).reshape(batch, height, width, -1))


class Block(nn.Module):
    """A pre-norm block; with ``window`` > 0 the attention stays inside non-overlapping windows."""

    def __init__(self, config: SamVitConfig, index: int):
        super().__init__()
        self.window = 0 if index in config.global_blocks else config.window
        self.rate = config.drop_path * index / max(config.depth - 1, 1)
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attention = Attention(config.width, config.heads, self.window or config.pretrain_grid)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(config.width, 4 * config.width), nn.GELU(),
                                 nn.Linear(4 * config.width, config.width))

    def windowed(self, x: torch.Tensor) -> torch.Tensor:
        """Attend in windows, the map padded with zeros at the right and below to whole windows."""
        batch, height, width, channels = x.shape
        side = self.window
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        x = x.reshape(batch, rows, side, columns, side, channels).transpose(2, 3).reshape(-1, side, side, channels)
        x = self.attention(x).reshape(batch, rows, columns, side, side, channels).transpose(2, 3)
        return x.reshape(batch, rows * side, columns * side, channels)[:, :height, :width]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attend = self.windowed if self.window else self.attention
        x = x + drop_path(attend(self.norm1(x)), self.rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.rate, self.training)


class SamVit(nn.Module):
    """SAM's ViT with its convolutional neck: an image to a map of ``output`` channels."""

    def __init__(self, config: SamVitConfig):
        super().__init__()
        self.patch = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.position = nn.Parameter(torch.zeros(1, config.width, config.pretrain_grid, config.pretrain_grid))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.neck = nn.Sequential(
            nn.Conv2d(config.width, config.output, 1, bias=False), LayerNorm2d(config.output),
            nn.Conv2d(config.output, config.output, 3, padding=1, bias=False), LayerNorm2d(config.output))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised with ImageNet's numbers -> (B, output, H // patch, W // patch)."""
        x = self.patch(image)
        x = (x + resize_bicubic(self.position, tuple(x.shape[-2:]))).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))
