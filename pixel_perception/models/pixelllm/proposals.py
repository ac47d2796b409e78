"""Object proposals for dense captioning (PixelLLM section 4.3): simple feature pyramid, CenterNet, second stage.

Boxes are (x0, y0, x1, y1) in pixels of the padded network input.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pixel_perception.models.pixelllm.boxes import clip_boxes, decode_boxes, nms, roi_align
from pixel_perception.models.sam import LayerNorm2d


@dataclass(frozen=True)
class ProposalConfig:
    """Sizes, thresholds and loss weights of the detector; the defaults are the released ones.

    Attributes:
        width: channels of every level.
        upsampled: channels of the finest level before it is brought to ``width``.
        hidden: width of the second stage.
        strides: nominal pixels per cell of the levels. The features are 27 x 27 for 384 pixels, a pitch of
            14.2 px, yet the reference takes them for stride 16; the heads learn to live with it, and so it
            is kept (papers_spec B.10).
        ranges: half-diagonals, in pixels, that each level answers for.
        before_nms, after_nms: proposals kept around the first suppression, as (training, inference).
        proposal_overlap, overlap: IoU from which a weaker box is suppressed, in the first and second stage.
        score: least score of a detection.
        detections: most detections per image.
        match: IoU from which a proposal counts as an object.
        samples, positives: proposals that train the second stage, and the largest share of objects in them.
        text_proposals: best proposals whose captions are trained.
        heat_weight, box_weight: weights of the CenterNet losses.
    """

    width: int = 256
    upsampled: int = 384
    hidden: int = 1024
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    ranges: tuple[tuple[float, float], ...] = ((0, 40), (32, 80), (64, 160), (128, 320), (256, 50000))
    before_nms: tuple[int, int] = (2000, 1000)
    after_nms: tuple[int, int] = (1000, 256)
    proposal_overlap: float = 0.9
    overlap: float = 0.5
    score: float = 0.05
    detections: int = 100
    match: float = 0.6
    samples: int = 512
    positives: float = 0.25
    text_proposals: int = 32
    heat_weight: float = 0.5
    box_weight: float = 1.0


@dataclass
class Detections:
    """Objects of one image, best first: boxes (N, 4) in pixels and scores (N,) in [0, 1]."""

    boxes: torch.Tensor
    scores: torch.Tensor


class Pyramid(nn.Module):
    """The simple feature pyramid of ViTDet: one map to maps of twice, once, half, quarter and eighth its size."""

    def __init__(self, channels: int, config: ProposalConfig):
        super().__init__()
        width = config.width

        def lateral(inputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), LayerNorm2d(width),
                                 nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width))

        self.up = nn.ConvTranspose2d(channels, config.upsampled, 2, 2)
        self.laterals = nn.ModuleList([lateral(config.upsampled), lateral(channels), lateral(channels)])
        self.coarse = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, H, W) -> five maps (B, width, ., .), finest first."""
        inputs = (self.up(x), x, F.max_pool2d(x, 2))
        levels = [lateral(y) for lateral, y in zip(self.laterals, inputs, strict=True)]
        levels.append(self.coarse[0](levels[-1]))
        levels.append(self.coarse[1](levels[-1].relu()))
        return levels


class CenterHead(nn.Module):
    """CenterNet's head, shared by the levels: where object centres are, and how far the four sides."""

    def __init__(self, config: ProposalConfig):
        super().__init__()
        width = config.width
        tower: list[nn.Module] = []
        for _ in range(4):
            tower += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(min(32, width), width, eps=1e-6), nn.ReLU()]
        self.tower = nn.Sequential(*tower)
        self.heat = nn.Conv2d(width, 1, 3, padding=1)
        self.box = nn.Conv2d(width, 4, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(config.strides)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.heat.bias, -4.6)  # sigmoid of it is 0.01: few places are centres
        nn.init.constant_(self.box.bias, 8.0)  # start with sides in the middle of a level's range

    def forward(self, levels: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Levels (B, C, h, w) -> heat logits (B, 1, h, w) and sides (B, 4, h, w): left, top, right, bottom in cells."""
        towers = [self.tower(level) for level in levels]
        sides = [(self.box(t) * scale).relu() for t, scale in zip(towers, self.scales, strict=True)]
        return [self.heat(t) for t in towers], sides


class SecondStage(nn.Module):
    """Looks into each proposal: object or not, and a better box."""

    weights = (10.0, 10.0, 5.0, 5.0)
    side = 7

    def __init__(self, config: ProposalConfig):
        super().__init__()
        self.levels = [int(math.log2(s)) for s in config.strides]
        self.fc1 = nn.Linear(config.width * self.side**2, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.hidden)
        self.score = nn.Linear(config.hidden, 2)
        self.box = nn.Linear(config.hidden, 4)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.normal_(self.box.weight, std=0.001)
        nn.init.zeros_(self.score.bias)
        nn.init.zeros_(self.box.bias)

    def level(self, boxes: torch.Tensor) -> torch.Tensor:
        """Which of ``levels`` boxes (N, 4) are looked up in, (N,): one of 224 px at stride 16 (equation 1 of the FPN paper)."""
        extent = (boxes[:, 2:] - boxes[:, :2]).prod(-1).clamp(min=0).sqrt()
        return (4 + torch.log2(extent / 224 + 1e-8)).floor().clamp(self.levels[0], self.levels[-1]).long()

    def judge(self, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Crops (N, side, side, C) -> class logits (N, 2) and box changes (N, 4)."""
        x = self.fc2(self.fc1(crops.flatten(1)).relu()).relu()
        return self.score(x), self.box(x)

    def forward(self, levels: list[torch.Tensor], boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels (C, h, w) of one image and boxes (N, 4) -> class logits (N, 2) and box changes (N, 4)."""
        level = self.level(boxes)
        crops = boxes.new_zeros(len(boxes), self.side, self.side, levels[0].shape[0])
        for number, features in zip(self.levels, levels, strict=True):
            mine = level == number
            if mine.any():
                crops[mine] = roi_align(features, boxes[mine] / 2**number, self.side)
        return self.judge(crops)


class Detector(nn.Module):
    """Boxes of all objects of an image, without their classes."""

    def __init__(self, channels: int, config: ProposalConfig):
        super().__init__()
        self.config = config
        self.pyramid = Pyramid(channels, config)
        self.head = CenterHead(config)
        self.second = SecondStage(config)

    def grid(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Centres (M, 2) as (x, y) pixels, and strides (M,), of all cells of all levels."""
        centres, strides = [], []
        for stride, level in zip(self.config.strides, maps, strict=True):
            y, x = (torch.arange(n, device=level.device) * stride + stride // 2 for n in level.shape[-2:])
            centre = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2).float()
            centres.append(centre)
            strides.append(torch.full((len(centre),), float(stride), device=level.device))
        return torch.cat(centres), torch.cat(strides)

    def candidates(self, heat: list[torch.Tensor], sides: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What every cell of every level proposes: boxes (B, M, 4), not clipped, and scores (B, M)."""
        centres, strides = self.grid(heat)
        scores = torch.cat([h.flatten(1) for h in heat], 1).sigmoid()
        sides = torch.cat([s.flatten(2) for s in sides], 2).transpose(1, 2) * strides[:, None]
        return torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], -1), scores

    def proposals(self, heat: list[torch.Tensor], sides: list[torch.Tensor], size: tuple[int, int],
                  training: bool = False) -> list[Detections]:
        """The strongest peaks of each image after suppression; ``size`` is the input's (height, width)."""
        stage = 0 if training else 1
        out = []
        for box, score in zip(*self.candidates(heat, sides), strict=True):
            score, index = score.topk(min(self.config.before_nms[stage], len(score)))
            box = box[index]
            keep = nms(box, self.config.proposal_overlap)[: self.config.after_nms[stage]]
            out.append(Detections(clip_boxes(box[keep], size), score[keep]))
        return out

    def forward(self, features: torch.Tensor, size: tuple[int, int]) -> list[Detections]:
        """Features (B, C, H, W) and the input's (height, width) in pixels -> the objects of each image."""
        levels = self.pyramid(features)
        out = []
        for i, proposal in enumerate(self.proposals(*self.head(levels), size)):
            logits, change = self.second([level[i] for level in levels], proposal.boxes)
            scores = (logits.softmax(-1)[:, 1] * proposal.scores).sqrt()
            boxes = clip_boxes(decode_boxes(change, proposal.boxes, self.second.weights), size)
            index = scores.argsort(descending=True)
            index = index[scores[index] > self.config.score]
            index = index[nms(boxes[index], self.config.overlap)][: self.config.detections]
            out.append(Detections(boxes[index], scores[index]))
        return out
