"""A camera that plays a recording: image, camera_info and depth/image at a steady rate, for demonstrations and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import rclpy
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from pixel_perception.demo.recording import RecordedFrame, Recording, RecordingError, back_and_forth
from pixel_perception.ros.conversions import depth_to_image, rgb_to_image

KEPT = 64
"""Frames kept decoded (a 640x480 one with depth takes 1.5 MB)."""


class RecordingCamera(Node):
    """Publishes the frames of one scene of a recording, or of all, in a loop that turns at both ends.

    Parameters: folder; scene (empty: all, may be changed at any time); rate in Hz (0: the recording's); frame_id.
    """

    def __init__(self, **kwargs: object) -> None:
        """Raises RecordingError naming the file or parameter that is wrong."""
        super().__init__("camera", **kwargs)
        texts = {"folder": ("", "Folder of the recording."), "scene": ("", "Scene to play; empty for all, one after another."),
                 "frame_id": ("camera_color_optical_frame", "Frame of the images.")}  # fmt: skip
        for name, (default, description) in texts.items():
            self.declare_parameter(name, default, ParameterDescriptor(description=description, read_only=name != "scene"))
        rate = self.declare_parameter("rate", 0.0, ParameterDescriptor(description="Hz; 0: the recording's.", read_only=True))
        self._recording = Recording.open(self.get_parameter("folder").value)
        self._frame_id = self.get_parameter("frame_id").value
        self._frames = self._play(self.get_parameter("scene").value)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        qos, options = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE), QoSOverridingOptions.with_default_policies()
        self._image = self.create_publisher(Image, "image", qos, qos_overriding_options=options)
        self._info = self.create_publisher(CameraInfo, "camera_info", qos, qos_overriding_options=options)
        self._depth = self.create_publisher(Image, "depth/image", qos, qos_overriding_options=options)
        self._decode = lru_cache(maxsize=KEPT)(_decoded)
        self.create_timer(1.0 / (rate.value or self._recording.rate_hz), self._tick)

    def _play(self, scene: str) -> Iterator[RecordedFrame]:
        return back_and_forth(self._recording.scene(scene).frames if scene else self._recording.frames)

    def _on_set_parameters(self, changes: Sequence[Parameter]) -> SetParametersResult:
        for change in changes:
            if change.name == "scene":
                try:
                    self._frames = self._play(change.value)
                except RecordingError as error:
                    return SetParametersResult(successful=False, reason=f"scene: {error}")
        return SetParametersResult(successful=True)

    def _tick(self) -> None:
        frame = next(self._frames)
        image, depth = self._decode(frame)
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self._frame_id)
        try:
            if frame.intrinsics is not None:
                self._info.publish(camera_info(header, frame.intrinsics, image.shape[1], image.shape[0]))
            if depth is not None:
                self._depth.publish(depth_to_image(header, depth))
            # The image last: whoever acts on it finds its depth there.
            self._image.publish(rgb_to_image(header, image))
        except rclpy_implementation.RCLError:
            if self.context.ok():
                raise  # else the process was told to stop between two frames


def camera_info(header: Header, intrinsics: Sequence[float], width: int, height: int) -> CameraInfo:
    """An undistorted pinhole camera; intrinsics are (fx, fy, cx, cy) in pixels."""
    fx, fy, cx, cy = (float(v) for v in intrinsics)
    info = CameraInfo(header=header, width=width, height=height, distortion_model="plumb_bob", d=[0.0] * 5)
    info.k = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]
    info.r = np.eye(3).ravel().tolist()
    info.p = [fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


def _decoded(frame: RecordedFrame) -> tuple[np.ndarray, np.ndarray | None]:
    return frame.image(), frame.depth()


def main(args: Sequence[str] | None = None) -> None:
    """Publish until told to stop."""
    rclpy.init(args=args)
    try:
        node = RecordingCamera()
    except RecordingError as error:
        rclpy.try_shutdown()
        raise SystemExit(f"recording_camera: folder: {error}") from None
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
