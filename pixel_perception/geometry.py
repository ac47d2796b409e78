"""The letterbox between a source image and the network frame, and the way back for points, boxes and masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Letterbox:
    """How a source image of `width` x `height` pixels lies in the network frame: scaled to fit, top left, padded with `fill`."""

    width: int
    height: int
    frame_width: int = 384
    frame_height: int = 288
    fill: int = 127

    @property
    def valid(self) -> tuple[int, int]:
        """(width, height) in network pixels of the part that shows the image; the rest is padding."""
        scale = min(self.frame_width / self.width, self.frame_height / self.height)
        return max(1, math.floor(self.width * scale + 0.5)), max(1, math.floor(self.height * scale + 0.5))

    @property
    def scale(self) -> tuple[float, float]:
        """Network pixels per source pixel in x and y: what the resize really did, after rounding to whole pixels."""
        width, height = self.valid
        return width / self.width, height / self.height

    @property
    def whole(self) -> np.ndarray:
        """(4,) float32: the normalised box of the whole image."""
        width, height = self.valid
        return np.array([0, 0, width / self.frame_width, height / self.frame_height], np.float32)

    def image(self, frame: np.ndarray) -> np.ndarray:
        """The network frame, (frame_height, frame_width, 3) uint8, of a source frame (height, width, 3) uint8."""
        width, height = self.valid
        out = np.full((self.frame_height, self.frame_width, 3), self.fill, np.uint8)
        small = Image.fromarray(np.ascontiguousarray(frame))
        if small.size != (width, height):
            small = small.resize((width, height), Image.Resampling.BILINEAR)
        out[:height, :width] = np.asarray(small)
        return out

    def to_network(self, points: np.ndarray) -> np.ndarray:
        """Source pixels to normalised coordinates; the last axis is x, y or x0, y0, x1, y1. Returns float32."""
        return (np.asarray(points, np.float64) * self._factor(np.shape(points)[-1])).astype(np.float32)

    def to_source(self, points: np.ndarray) -> np.ndarray:
        """Normalised coordinates to source pixels, clipped to the image; float64, axes as in `to_network`."""
        out = np.asarray(points, np.float64) / self._factor(np.shape(points)[-1])
        return np.clip(out, 0.0, np.resize([self.width, self.height], out.shape[-1]))

    def cells(self, shape: tuple[int, int]) -> int:
        """How many cells of logits of a shape (rows, columns) show the image."""
        width, height = self.valid
        across, down = self._stride(shape)
        return int(width * height // (across * down))

    def _stride(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Network pixels per cell of logits that cover the whole frame, in x and y."""
        return self.frame_width / shape[1], self.frame_height / shape[0]

    def _factor(self, size: int) -> np.ndarray:
        x, y = self.scale
        return np.resize([x / self.frame_width, y / self.frame_height], size)

    def resize_logits(self, logits: np.ndarray, roi: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """Mask logits (rows, columns) float32 of the whole frame at source pixels, bilinear.

        `roi` (x, y, width, height) in source pixels asks for a part only: equal to that part of the whole.
        Returns (height, width) float32 of the part.
        """
        x, y, width, height = roi or (0, 0, self.width, self.height)
        sx, sy = (s / stride for s, stride in zip(self.scale, self._stride(logits.shape), strict=True))
        # The valid part may end inside a cell; a box in fractional cells samples at the exact scale.
        rows, columns = logits.shape
        box = (x * sx, y * sy, min((x + width) * sx, columns), min((y + height) * sy, rows))
        image = Image.fromarray(np.ascontiguousarray(logits, np.float32))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))

    def covered(self, inside: np.ndarray) -> tuple[int, int, int, int] | None:
        """(x, y, width, height) in source pixels that holds everything that `resize_logits` can make positive, given the cells
        (rows, columns) that are; None where there is none in the image."""
        sx, sy = (s / stride for s, stride in zip(self.scale, self._stride(inside.shape), strict=True))
        x = _extent(inside.any(0), sx, self.width)
        y = _extent(inside.any(1), sy, self.height)
        return None if x is None or y is None else (x[0], y[0], x[1] - x[0], y[1] - y[0])


def _extent(line: np.ndarray, scale: float, size: int) -> tuple[int, int] | None:
    cells = np.flatnonzero(line)
    if not len(cells):
        return None
    # A cell reaches half a cell beyond its border when enlarged, and one source pixel beyond when made smaller.
    margin = max(1.0, scale)
    first = max(0, math.floor((cells[0] - margin) / scale))
    last = min(size, math.ceil((cells[-1] + 1 + margin) / scale))
    return (first, last) if first < last else None
