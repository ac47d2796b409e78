"""Light multi-scale pixel decoder (PixelLM, 3.3): queries of a target -> mask, presence.

Level 0 attends to the stride-16 map; its mask then steers the attention of level 1 on the stride-8 map (the paper's
modulation of features by the mask before). The mask at stride 4 comes from a two-layer head whose weights the query
generates and which also sees coordinates relative to the target. Few queries look at many positions, so what they ask
for is taken to the maps: neither keys nor values of a map are computed (`layers.AttentionBlock`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixel_perception.models.config import ImageConfig
from pixel_perception.models.image_encoder import Features
from pixel_perception.models.layers import AttentionBlock, tokens

GEOMETRY = 4
"""Coordinate channels of the mask head: signed and absolute offsets in x and y, in half sizes of the target."""


class Decoded(NamedTuple):
    """Of B images with T targets each."""

    mask: Tensor
    """(B, T, H / 4, W / 4) logits."""
    presence: Tensor
    """(B, T) logits: is the target there at all."""
    coarse: Tensor
    """(B, T, H / 16, W / 16) logits of level 0."""


class PixelDecoder(nn.Module):
    """Decodes masks and presence for queries (B, T, 2, dim)."""

    def __init__(self, config: ImageConfig, hidden: int = 16, layers: int = 2):
        super().__init__()
        dim, self.channels, self.hidden = config.dim, config.mask_channels, hidden
        self.level0 = nn.ModuleList(AttentionBlock(dim) for _ in range(layers))
        self.level1 = nn.ModuleList(AttentionBlock(dim) for _ in range(layers))
        self.coarse_query, self.coarse_key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.steer = nn.Parameter(torch.tensor(1.0))
        self.norm = nn.LayerNorm(dim)
        weights = (self.channels + GEOMETRY) * hidden + 2 * hidden + 1
        self.generate = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, weights))
        self.found = nn.Linear(dim, dim)
        self.presence = nn.Sequential(nn.LayerNorm(3 * dim + 2), nn.Linear(3 * dim + 2, dim), nn.GELU(), nn.Linear(dim, 1))

    def forward(self, features: Features, queries: Tensor) -> Decoded:
        """queries (B, T, 2, dim), one per level -> Decoded."""
        memory16, memory8 = tokens(features.s16), tokens(features.s8)
        h16, w16 = features.s16.shape[2:]
        q = queries[:, :, 0]
        for block in self.level0:
            q = block(q, memory16)
        scores = torch.einsum("btd,bnd->btn", self.coarse_query(q), self.coarse_key(memory16)) * q.shape[-1] ** -0.5
        coarse = scores.unflatten(2, (h16, w16))
        finer = F.interpolate(coarse.clamp(-4, 4), size=features.s8.shape[2:], mode="bilinear", align_corners=False)
        bias = (self.steer * finer).flatten(2)
        q = q + queries[:, :, 1]
        for block in self.level1:
            q = block(q, memory8, bias)
        q = self.norm(q)
        mask = self._mask(features.mask, q, coarse.detach())
        return Decoded(mask, self._presence(q, memory8, finer, mask), coarse)

    def _presence(self, q: Tensor, memory: Tensor, finer: Tensor, mask: Tensor) -> Tensor:
        # Looks again at what the mask holds: a red mug found for "blue mug" shows in the pooled features.
        weight = finer.flatten(2).sigmoid()
        pooled = self.found(torch.einsum("btn,bnd->btd", weight / (weight.sum(-1, keepdim=True) + 1e-3), memory))
        peak = torch.stack([mask.flatten(2).amax(-1), finer.flatten(2).amax(-1)], -1).detach() / 8
        return self.presence(torch.cat([q, pooled, q * pooled, peak], -1))[..., 0]

    def _mask(self, mask_features: Tensor, q: Tensor, coarse: Tensor) -> Tensor:
        b, t = q.shape[:2]
        h, w = mask_features.shape[2:]
        c, n = self.channels, self.hidden
        weights = self.generate(q)
        first, bias, second, offset = weights.split([(c + GEOMETRY) * n, n, n, 1], -1)
        first = first.view(b, t, n, c + GEOMETRY)
        geometry = self._geometry(coarse, h, w)
        z = torch.einsum("btnc,bcp->btnp", first[..., :c] * c**-0.5, mask_features.flatten(2))
        z = z + torch.einsum("btnc,btcp->btnp", first[..., c:], geometry) + bias[..., None]
        return (torch.einsum("btn,btnp->btp", second, F.relu(z)) + offset).unflatten(2, (h, w))

    @staticmethod
    def _geometry(coarse: Tensor, h: int, w: int) -> Tensor:
        """Offsets of every stride-4 cell from the centre of mass of the coarse mask, (B, T, GEOMETRY, h * w)."""
        share = (2 * coarse).flatten(2).softmax(-1).view(coarse.shape)

        def axis(profile: Tensor, cells: int) -> Tensor:
            count = profile.shape[-1]
            centres = (torch.arange(count, device=profile.device) + 0.5) / count
            mean = (profile * centres).sum(-1, keepdim=True)
            spread = ((profile * (centres - mean) ** 2).sum(-1, keepdim=True) + (0.3 / count) ** 2).sqrt()
            fine = (torch.arange(cells, device=profile.device) + 0.5) / cells
            return ((fine - mean) / (3.4 * spread).clamp(min=0.05)).clamp(-3, 3)

        x = axis(share.sum(2), w)[:, :, None, :].expand(-1, -1, h, -1)
        y = axis(share.sum(3), h)[:, :, :, None].expand(-1, -1, -1, w)
        return torch.stack([x, y, x.abs(), y.abs()], 2).flatten(3)
