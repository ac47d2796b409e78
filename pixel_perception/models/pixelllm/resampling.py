"""Resizing of maps and position tables, in the kernel that PixelLLM was defined with."""

import torch
import torch.nn.functional as F


def resize_bicubic(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (B, C, H, W) to ``size`` = (H', W') with Keys' cubic kernel (a = -0.5).

    The antialiased resampler of torch is the one that uses a = -0.5 (the plain one uses -0.75); when it
    enlarges, it filters nothing, so it serves both directions.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bicubic", antialias=True, align_corners=False)


def resize_bilinear(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (B, C, H, W) to ``size`` = (H', W') linearly, averaging when it shrinks."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", antialias=True, align_corners=False)
