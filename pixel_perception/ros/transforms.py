"""Points moved from one frame to another at an image's stamp, where tf2_ros is installed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.node import Node

from pixel_perception.errors import PerceptionError

FIRST = 2.0
"""Seconds to wait for a transform the first time, when /tf and /tf_static have yet to be discovered."""


class Transforms:
    """Listens to /tf from the first time that somebody needs another frame."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._buffer = None
        self._listener = None

    def destroy(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.unregister()
        self._buffer = self._listener = None

    def matrix(self, target: str, source: str, stamp: Time, timeout: float) -> np.ndarray:
        """(3, 4) float64 that takes points of `source` to `target`.

        Raises PerceptionError TF_ERROR naming the frames.
        """
        if target == source:
            return np.eye(3, 4)
        try:
            import tf2_ros
        except ImportError:
            raise PerceptionError("TF_ERROR", f"target_frame: expected {source!r}, the image's frame, or an installed "
                                              f"tf2_ros to reach {target!r}; it is not installed.") from None  # fmt: skip
        if self._buffer is None:
            self._buffer = tf2_ros.Buffer()
            self._listener = tf2_ros.TransformListener(self._buffer, self._node)
            timeout = max(timeout, FIRST)
        try:
            found = self._buffer.lookup_transform(target, source, stamp, Duration(seconds=timeout)).transform
        except tf2_ros.TransformException as error:
            raise PerceptionError("TF_ERROR", f"target_frame: expected a transform from {source!r} to {target!r} at the "
                                              f"image's stamp: {error}") from None  # fmt: skip
        q, t = found.rotation, found.translation
        return pose_matrix((q.x, q.y, q.z, q.w), (t.x, t.y, t.z))


def pose_matrix(rotation: Sequence[float], translation: Sequence[float]) -> np.ndarray:
    """(3, 4) float64 of a quaternion (x, y, z, w), normalised here, and a translation."""
    x, y, z, w = np.asarray(rotation, np.float64) / np.linalg.norm(rotation)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w), translation[0]],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w), translation[1]],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y), translation[2]],
    ])  # fmt: skip


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., 3) taken through a (3, 4) matrix."""
    return np.asarray(points, np.float64) @ matrix[:, :3].T + matrix[:, 3]
