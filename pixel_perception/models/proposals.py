"""Object proposals: a class-agnostic centre heat map with box sides (CenterNet; PixelLLM, dense captioning head)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixel_perception.models.config import ImageConfig, RegionConfig


class Proposals(nn.Module):
    """Centre heat map and distances to the four box sides on the stride-8 map."""

    def __init__(self, image: ImageConfig, region: RegionConfig):
        super().__init__()
        self.count = region.proposals
        dim = image.dim

        def layer() -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(dim, dim, 3, 1, 1, groups=dim), nn.Conv2d(dim, dim, 1), nn.GroupNorm(8, dim), nn.GELU())

        self.tower = nn.Sequential(layer(), layer(), layer())
        self.heat = nn.Conv2d(dim, 1, 1)
        self.sides = nn.Conv2d(dim, 4, 1)
        nn.init.constant_(self.heat.bias, -4.0)  # most cells are no centre: start there (focal loss prior)
        nn.init.constant_(self.sides.bias, -2.0)

    def maps(self, s8: Tensor) -> tuple[Tensor, Tensor]:
        """s8 (B, dim, h, w) -> heat logits (B, h, w), boxes (B, h, w, 4) normalised x0, y0, x1, y1."""
        y = self.tower(s8)
        sides = self.sides(y).clamp(-7, 1).exp().permute(0, 2, 3, 1)  # left, top, right, bottom, in image sizes
        h, w = s8.shape[2:]
        cy = ((torch.arange(h, device=y.device) + 0.5) / h)[:, None].expand(h, w)
        cx = ((torch.arange(w, device=y.device) + 0.5) / w)[None].expand(h, w)
        centre = torch.stack([cx, cy], -1)
        return self.heat(y)[:, 0], torch.cat([centre - sides[..., :2], centre + sides[..., 2:]], -1)

    def forward(self, s8: Tensor) -> tuple[Tensor, Tensor]:
        """s8 (B, dim, h, w) -> the best peaks: boxes (B, count, 4) normalised, scores (B, count), best first."""
        heat, boxes = self.maps(s8)
        heat = heat.sigmoid()
        peak = heat * (F.max_pool2d(heat[:, None], 5, 1, 2)[:, 0] == heat)
        scores, index = peak.flatten(1).topk(self.count, dim=1)
        boxes = boxes.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, 4))
        return boxes.clamp(0, 1), scores
