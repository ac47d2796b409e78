"""Between source images and PixelLM's square frame: letterbox in, un-padding out.

The published system feeds CLIP with ImageNet's colour statistics, not CLIP's; its weights expect that. Sizes are
(height, width) in pixels.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def fitted_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The (height, width) of an image whose longer side becomes `side`, aspect kept, halves rounded up."""
    scale = side / max(height, width)
    return math.floor(height * scale + 0.5), math.floor(width * scale + 0.5)


def prepare(image: np.ndarray, side: int = 448) -> tuple[Tensor, tuple[int, int]]:
    """Fit an RGB image (H, W, 3) uint8 into the frame's top left corner.

    Returns the network input (3, side, side) float32 and the fitted (height, width). The rest is zero, which is the
    mean colour. Raises ValueError for another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"an RGB image (H, W, 3) of uint8 is needed, got {image.shape} of {image.dtype}")
    height, width = fitted_size(*image.shape[:2], side)
    height, width = max(height, 1), max(width, 1)  # a sliver still needs one row of pixels
    pixels = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    pixels = (torch.from_numpy(pixels).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    pixels = F.pad(pixels.permute(2, 0, 1), (0, side - width, 0, side - height))
    return pixels, (height, width)


def valid_pixels(fitted: Sequence[tuple[int, int]], side: int, device=None) -> Tensor:
    """Which pixels of the frames belong to images: (B, side, side) bool from B fitted sizes."""
    sizes = torch.as_tensor(fitted, device=device)
    steps = torch.arange(side, device=device)
    return (steps < sizes[:, :1])[:, :, None] & (steps < sizes[:, 1:])[:, None, :]


def valid_cells(pixels: Tensor, cells: int) -> Tensor:
    """Validity of a `cells` x `cells` grid, row-major (B, cells^2): a cell counts when its top left pixel does."""
    return F.interpolate(pixels[:, None].float(), (cells, cells))[:, 0].flatten(1) > 0


def unpad(logits: Tensor, fitted: tuple[int, int], source: tuple[int, int]) -> Tensor:
    """Mask logits of the square frame (K, h, w) -> logits on the source image (K, H, W), float32.

    The frame is rebuilt with the side of the longer fitted edge, cropped, then brought to the source size.
    """
    side = max(fitted)
    logits = F.interpolate(logits[:, None].float(), (side, side), mode="bilinear", align_corners=False)
    logits = logits[..., : fitted[0], : fitted[1]]
    return F.interpolate(logits, source, mode="bilinear", align_corners=False)[:, 0]
