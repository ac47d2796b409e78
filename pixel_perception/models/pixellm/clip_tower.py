"""CLIP's vision transformer (Radford et al. 2021) as PixelLM uses it: several depths, padding hidden.

The published tower is ViT-L/14 trained at 336 px and used at 448 px (section 5.1).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixel_perception.models.sam import MLP, Attention


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU that CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of the tower. `levels` are indices into the hidden states, deepest first, as Python counts lists:

    0 is the embedding, -1 the output of the last block. `side` and `patch` are in pixels.
    """

    dim: int = 1024
    layers: int = 24
    heads: int = 16
    mlp: int = 4096
    patch: int = 14
    side: int = 448
    levels: tuple[int, ...] = (-2, -11)

    def __post_init__(self):
        if self.side % self.patch:
            raise ValueError(f"a side of {self.side} px does not divide into patches of {self.patch} px")
        if not self.levels or any(not 0 <= d <= self.layers for d in self.depths):
            raise ValueError(f"levels {self.levels} do not exist in a tower of {self.layers} layers")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.side // self.patch

    @property
    def depths(self) -> tuple[int, ...]:
        """How many blocks each level has passed."""
        return tuple(i if i >= 0 else self.layers + 1 + i for i in self.levels)


class ClipBlock(nn.Module):
    """A pre-norm transformer block on (B, n, dim)."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.attention = Attention(config.dim, config.heads)
        self.norm2 = nn.LayerNorm(config.dim)
        self.mlp = MLP(config.dim, config.mlp, config.dim, activation=quick_gelu)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, valid)
        return x + self.mlp(self.norm2(x))


class ClipTower(nn.Module):
    """Patch features at every level; only the blocks that some level needs exist."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.config = config
        self.patches = nn.Conv2d(3, config.dim, config.patch, config.patch, bias=False)
        self.class_token = nn.Parameter(torch.randn(config.dim) * config.dim**-0.5)
        self.positions = nn.Parameter(torch.randn(1 + config.grid**2, config.dim) * config.dim**-0.5)
        self.norm = nn.LayerNorm(config.dim)
        self.blocks = nn.ModuleList(ClipBlock(config) for _ in range(max(config.depths)))

    def forward(self, images: Tensor, valid: Tensor) -> list[Tensor]:
        """images (B, 3, side, side), valid patches (B, grid^2) bool -> one (B, grid^2, dim) for each level.

        Padded patches are hidden as keys; their own features are still computed.
        """
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        states = [self.norm(x + self.positions)]
        valid = F.pad(valid, (1, 0), value=True)
        for block in self.blocks:
            states.append(block(states[-1], valid))
        return [states[depth][:, 1:] for depth in self.config.depths]


def resize_positions_as_published(table: Tensor, grid: int) -> Tensor:
    """Bring a position table (1 + g^2, dim) to another grid: (1 + grid^2, dim), with PixelLM's index slip.

    The release takes the first g^2 rows for the patches and the last row for the class token, although the class
    token comes first: the class row is smeared into the grid, every patch is off by one, and the last patch's row
    ends as the last patch unresized. The published weights were trained that way, so it must be repeated for them.
    Raises ValueError when the table is not that of a square grid.
    """
    old = round((len(table) - 1) ** 0.5)
    if old**2 + 1 != len(table):
        raise ValueError(f"a position table of {len(table)} rows is not that of a square grid and a class token")
    cells = table[:-1].T.reshape(1, -1, old, old)
    cells = F.interpolate(cells, (grid, grid), mode="bilinear", align_corners=False)
    return torch.cat([cells[0].flatten(1).T, table[-1:]])


def resize_positions(table: Tensor, grid: int) -> Tensor:
    """The same as it was meant (section 5.1): the class row kept first, the patch rows resized bilinearly."""
    slipped = resize_positions_as_published(table.roll(-1, 0), grid)
    return slipped.roll(1, 0)
