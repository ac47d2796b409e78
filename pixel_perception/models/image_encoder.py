"""EfficientNet-Lite0 with a light feature pyramid.

The backbone follows the published EfficientNet-Lite0 layout (BatchNorm folded into the convolutions), so that its
ImageNet weights load; the pyramid adds self-attention at stride 32, where it is cheap, and brings the context down
to strides 16, 8 and 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixel_perception.models.config import ImageConfig
from pixel_perception.models.layers import AttentionBlock, position_grid, tokens

STAGES = (  # expansion, kernel, stride, channels in, channels out, repeats
    (1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2), (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3), (6, 5, 2, 112, 192, 4), (6, 3, 1, 192, 320, 1),
)  # fmt: skip
TAPS = {2: 24, 4: 40, 10: 112, 15: 320}
"""Block index -> channels, of the last block at strides 4, 8, 16 and 32."""


class Features(NamedTuple):
    """What the pixels of a frame are known by. `s16` and `s8` carry their position code."""

    s16: Tensor
    """(B, dim, H / 16, W / 16)."""
    s8: Tensor
    """(B, dim, H / 8, W / 8)."""
    mask: Tensor
    """(B, mask_channels, H / 4, W / 4)."""


class _Conv(nn.Module):
    """Convolution with TensorFlow's "same" padding, which the published weights expect (even input sizes)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.stride, self.pad = stride, ((kernel - 2) // 2, (kernel - 1) // 2) * 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, 0 if stride == 2 else kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pad) if self.stride == 2 else x)


class _InvertedResidual(nn.Module):
    def __init__(self, expansion: int, kernel: int, stride: int, inputs: int, outputs: int):
        super().__init__()
        middle = inputs * expansion
        self.expand = _Conv(inputs, middle, 1) if expansion > 1 else None
        self.depthwise = _Conv(middle, middle, kernel, stride, middle)
        self.project = _Conv(middle, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand(x)) if self.expand else x
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Backbone: (B, 3, H, W) normalised to (x - 127) / 128 -> maps at strides 4, 8, 16, 32."""

    def __init__(self):
        super().__init__()
        self.stem = _Conv(3, 32, 3, 2)
        self.blocks = nn.ModuleList()
        for expansion, kernel, stride, inputs, outputs, repeats in STAGES:
            for i in range(repeats):
                self.blocks.append(_InvertedResidual(expansion, kernel, stride if i == 0 else 1,
                                                     inputs if i == 0 else outputs, outputs))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = F.relu6(self.stem(x)), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                maps.append(x)
        return maps

    def load_imagenet(self, state: dict[str, Tensor]) -> None:
        """Load the published state dict (efficientnet-lite0-57934424), folding each BatchNorm into its convolution."""

        def fold(target: _Conv, weight: str, norm: str) -> None:
            gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + 1e-3)
            target.conv.weight.data = state[f"{weight}.weight"] * gain[:, None, None, None]
            target.conv.bias.data = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain

        fold(self.stem, "_conv_stem", "_bn0")
        for i, block in enumerate(self.blocks):
            name = f"_blocks.{i}."
            if block.expand:
                fold(block.expand, name + "_expand_conv", name + "_bn0")
            fold(block.depthwise, name + "_depthwise_conv", name + "_bn1")
            fold(block.project, name + "_project_conv", name + "_bn2")


def _separable(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, groups=channels), nn.Conv2d(channels, channels, 1), nn.GELU())


class ImageEncoder(nn.Module):
    """Frame -> features, once per frame; everything else reads its output."""

    def __init__(self, config: ImageConfig):
        super().__init__()
        self.config, dim, fine = config, config.dim, 64
        self.backbone = EfficientNetLite0()
        c4, c8, c16, c32 = TAPS.values()
        self.lateral32, self.lateral16, self.lateral8 = nn.Conv2d(c32, dim, 1), nn.Conv2d(c16, dim, 1), nn.Conv2d(c8, dim, 1)
        self.lateral4, self.reduce8 = nn.Conv2d(c4, fine, 1), nn.Conv2d(dim, fine, 1)
        self.context = nn.ModuleList(AttentionBlock(dim) for _ in range(config.context_layers))
        self.smooth16, self.smooth8, self.smooth4 = _separable(dim), _separable(dim), _separable(fine)
        self.mask = nn.Conv2d(fine, config.mask_channels, 1)
        for stride in (32, 16, 8):
            grid = position_grid(config.height // stride, config.width // stride, dim)
            self.register_buffer(f"position{stride}", grid, persistent=False)

    def forward(self, frame: Tensor) -> Features:
        """frame (B, height, width, 3) uint8 RGB, letterboxed -> Features."""
        x = ((frame.permute(0, 3, 1, 2).float() - 127) / 128).contiguous(memory_format=torch.channels_last)
        m4, m8, m16, m32 = self.backbone(x)
        context = tokens(self.lateral32(m32) + self.position32)
        for block in self.context:
            context = block(context)
        top = context.transpose(1, 2).unflatten(2, m32.shape[2:])

        def up(y: Tensor, like: Tensor) -> Tensor:
            return F.interpolate(y, size=like.shape[2:], mode="bilinear", align_corners=False)

        p16 = self.lateral16(m16) + up(top, m16)
        p16 = p16 + self.smooth16(p16)
        p8 = self.lateral8(m8) + up(p16, m8)
        p8 = p8 + self.smooth8(p8)
        p4 = self.lateral4(m4) + up(self.reduce8(p8), m4)
        p4 = p4 + self.smooth4(p4)
        return Features(p16 + self.position16, p8 + self.position8, self.mask(p4))
