"""Region prompt and prompt feature extractor: a box in, a few visual tokens for the language model out (PixelLLM, 3.2).

The paper's learned queries read the whole feature map and learn where the prompt is; here they read samples taken
inside the prompt, which a small model learns in a fraction of the images. One extractor serves the whole image (its
prompt is the full box), proposals and boxes that a user gives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixel_perception.models.config import ImageConfig, LanguageConfig, RegionConfig
from pixel_perception.models.image_encoder import Features
from pixel_perception.models.layers import AttentionBlock, fourier


class PromptFeatures(nn.Module):
    """Boxes -> visual tokens in the language model's embedding space, and queries for the pixel decoder.

    The first token of a prompt is pulled towards the embedding of the object's noun, the second towards its colour
    (`align`), so that the language model meets words it already knows.
    """

    def __init__(self, image: ImageConfig, region: RegionConfig, language: LanguageConfig, levels: int):
        super().__init__()
        dim, self.levels = image.dim, levels
        self.samples, self.frequencies = region.samples, 8
        self.queries = nn.Parameter(torch.randn(region.tokens, dim) * 0.5)
        self.box = nn.Linear(4 * 2 * self.frequencies, dim)
        self.from16, self.from8 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.within = nn.Parameter(torch.randn(region.samples**2, dim) * 0.02)
        self.layers = nn.ModuleList(AttentionBlock(dim) for _ in range(region.layers))
        self.norm = nn.LayerNorm(dim)
        # One projection per token, as in the paper.
        self.project = nn.Parameter(torch.randn(region.tokens, dim, language.hidden) * dim**-0.5)
        self.place = nn.Linear(4 * 2 * self.frequencies, language.hidden)
        nn.init.normal_(self.place.weight, std=0.01)
        nn.init.zeros_(self.place.bias)
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.object_query = nn.Linear(dim, levels * dim)

    def forward(self, features: Features, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """features of B images, boxes (B, R, 4) normalised x0, y0, x1, y1 -> visual tokens (B, R, tokens, hidden),
        queries (B, R, levels, dim) and unit vectors `align` (B, R, tokens, hidden) before place is added."""
        batch, count = boxes.shape[:2]
        code = fourier(boxes, self.frequencies)
        memory = (self.from16(self._sample(features.s16, boxes)) + self.from8(self._sample(features.s8, boxes)) + self.within)
        x = self.queries + self.box(code)[:, :, None]
        x, memory = x.flatten(0, 1), memory.flatten(0, 1)
        for layer in self.layers:
            x = layer(x, memory)
        x = self.norm(x).unflatten(0, (batch, count))
        align = F.normalize(torch.einsum("brtd,tdh->brth", x, self.project), dim=-1)
        queries = self.object_query(x.mean(2)).unflatten(-1, (self.levels, -1))
        return self.scale * align + self.place(code)[:, :, None], queries, align

    def _sample(self, feature_map: Tensor, boxes: Tensor) -> Tensor:
        """Bilinear samples on a regular grid inside each box: (B, R, samples * samples, dim)."""
        n = self.samples
        step = (torch.arange(n, device=boxes.device, dtype=boxes.dtype) + 0.5) / n
        x = boxes[..., 0:1] + step * (boxes[..., 2:3] - boxes[..., 0:1])
        y = boxes[..., 1:2] + step * (boxes[..., 3:4] - boxes[..., 1:2])
        grid = torch.stack([x[:, :, None, :].expand(-1, -1, n, -1), y[:, :, :, None].expand(-1, -1, -1, n)], -1)
        grid = grid.flatten(2, 3) * 2 - 1  # (B, R, n * n, 2)
        sampled = F.grid_sample(feature_map, grid, align_corners=False, padding_mode="border")
        return sampled.permute(0, 2, 3, 1)
