"""The visible surface of instances in metres, from a registered depth image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import CameraInfo, Image

from pixel_perception.errors import PerceptionError
from pixel_perception.ros.conversions import rows
from pixel_perception.types import Mask

SPREAD = 0.10
"""Depth around an object's median, in metres, that is counted as the object: more is background seen past its edge."""
LEAST = 8
"""Fewest valid depth pixels of a centroid; a smaller mask needs half of its pixels."""


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole camera in pixels of its image."""

    fx: float
    fy: float
    cx: float
    cy: float

    @staticmethod
    def of(info: CameraInfo, topic: str) -> Intrinsics:
        """From a CameraInfo's K. Raises PerceptionError NO_DEPTH when it is not calibrated."""
        fx, fy, cx, cy = info.k[0], info.k[4], info.k[2], info.k[5]
        if not (fx > 0 and fy > 0):
            raise PerceptionError("NO_DEPTH", f"{topic}: k: expected focal lengths above 0, found {fx:g} and {fy:g}.")
        return Intrinsics(fx, fy, cx, cy)


def depth_in_metres(msg: Image, topic: str) -> np.ndarray:
    """(H, W) float32 metres, NaN where nothing was measured; the encoding decides about the units (REP-118).

    Raises PerceptionError NO_DEPTH for an encoding or a size that is no depth image.
    """
    if msg.encoding not in ("16UC1", "mono16", "32FC1"):
        expected = "32FC1 (metres) or 16UC1 (millimetres)"
        raise PerceptionError("NO_DEPTH", f"{topic}: encoding: expected {expected}, found {msg.encoding!r}.")
    kind = np.dtype(np.float32 if msg.encoding == "32FC1" else np.uint16)
    try:
        raw = rows(msg, kind, 1, topic)[:, :, 0]
    except PerceptionError as error:
        raise PerceptionError("NO_DEPTH", error.message) from None
    if kind == np.float32:
        return np.where(np.isfinite(raw) & (raw > 0), raw, np.float32(np.nan))
    return np.where(raw > 0, raw * np.float32(0.001), np.float32(np.nan))


def surface(mask: Mask, depth: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """(N, 3) float64 points of the visible surface under `mask`: x right, y down, z forward in metres, camera's optical frame.

    depth (H, W) metres with NaN, of the size of the image that the mask belongs to and registered to it. Pixels further
    than SPREAD from the median depth are left out, since a mask's border often lies on what is behind the object.
    Raises PerceptionError NO_DEPTH when too few pixels have a depth.
    """
    x, y, w, h = mask.roi
    part = depth[y : y + h, x : x + w]
    inside = mask.bits & np.isfinite(part)
    valid, total = int(inside.sum()), mask.area
    if valid < min(LEAST, (total + 1) // 2) or valid == 0:
        raise PerceptionError("NO_DEPTH", f"depth/image: expected depth under the mask, found {valid} of {total} pixels.")
    inside &= np.abs(part - np.median(part[inside])) <= SPREAD
    v, u = np.nonzero(inside)
    z = part[v, u].astype(np.float64)
    # A pixel's centre lies half a pixel right of its left border; K counts from the centre of pixel (0, 0).
    return np.stack([(u + x - camera.cx) * z / camera.fx, (v + y - camera.cy) * z / camera.fy, z], 1)
