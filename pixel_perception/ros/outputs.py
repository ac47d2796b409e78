"""What goes out: every answer on ~/perception, label image and overlay only when somebody listens."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from rclpy.clock import Clock
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image

from pixel_perception.errors import PerceptionError
from pixel_perception.msg import Perception
from pixel_perception.ros import detections, messages
from pixel_perception.ros.answers import Answer
from pixel_perception.ros.conversions import mono16_to_image
from pixel_perception.ros.depth import surface
from pixel_perception.ros.inputs import CameraInput
from pixel_perception.ros.overlay import overlay
from pixel_perception.ros.parameters import Settings
from pixel_perception.ros.transforms import Transforms, moved

ORDINARY = ("NOTHING_FOUND", "CANCELLED", "PREEMPTED")
"""Ends of a request that are nobody's fault, and not worth a warning."""


class Outputs:
    """Publishers of the node and the steps from an answer to its messages. Used by the worker threads."""

    def __init__(self, node: LifecycleNode, cameras: Mapping[str, CameraInput], settings: Callable[[], Settings],
                 backend: Callable[[], str]) -> None:
        self._node, self._cameras, self._settings, self._backend = node, cameras, settings, backend
        self._clock: Clock = node.get_clock()
        self._transforms = Transforms(node)
        self._publishers: list = []
        self._perception = self._publisher(Perception, "~/perception", 5)
        several = len(cameras) > 1
        names = {camera: f"~/{camera}/" if several else "~/" for camera in cameras}
        self._labels = {camera: self._publisher(Image, prefix + "instance_labels", 1) for camera, prefix in names.items()}
        self._overlays = {camera: self._publisher(Image, prefix + "overlay", 1) for camera, prefix in names.items()}
        self._detections, self._detections_3d = {}, {}
        if detections.INSTALLED:
            for camera, prefix in names.items():
                self._detections[camera] = self._publisher(detections.Detection2DArray, prefix + "detections", 5)
                self._detections_3d[camera] = self._publisher(detections.Detection3DArray, prefix + "detections_3d", 5)

    def destroy(self) -> None:
        """Give the publishers back."""
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()
        self._transforms.destroy()

    def publish(self, answer: Answer) -> tuple[Answer, Perception]:
        """Make the messages of an answer and send them; returns the answer (a centroid may have failed) and its message."""
        started = time.monotonic()
        msg = messages.answer_to_msg(answer)
        msg.info.backend = self._backend()
        surfaces: list[np.ndarray | None] = []
        try:
            if answer.result is not None and answer.result.instances:
                answer, surfaces = self._place(answer, msg)
            self._send(answer, msg, started)
            self._send_detections(answer, msg, surfaces)
        except Exception as error:  # whatever it is, somebody may wait for the answer
            # Without a context the process is on its way out, and its threads learn of it last.
            if self._node.context.ok():
                self._node.get_logger().error(f"Could not publish an answer:\n{traceback.format_exc()}", throttle_duration_sec=5.0)
                answer = replace(answer, error=answer.error or PerceptionError("INTERNAL", f"{type(error).__name__}: {error}"))
                messages.set_error(msg, answer.error)
        if answer.error is not None and answer.error.code not in ORDINARY:
            self._node.get_logger().warning(f"{answer.query_id}: {answer.error}", throttle_duration_sec=1.0)
        return answer, msg

    def _send(self, answer: Answer, msg: Perception, started: float) -> None:
        labels, drawn = self._pictures(answer)
        msg.info.postprocess = messages.duration(time.monotonic() - started)
        if answer.frame is not None:
            # Not by rclpy's Time, which refuses the negative stamps that broken drivers send.
            msg.info.image_age = messages.duration((self._clock.now().nanoseconds - answer.frame.stamp_ns) * 1e-9)
        self._perception.publish(msg)
        if labels is not None:
            self._labels[answer.camera].publish(labels)
        if drawn is not None:
            self._overlays[answer.camera].publish(drawn)

    def _send_detections(self, answer: Answer, msg: Perception, surfaces: list[np.ndarray | None]) -> None:
        if answer.result is None or answer.camera not in self._detections:
            return
        flat, deep = self._detections[answer.camera], self._detections_3d[answer.camera]
        if flat.get_subscription_count():
            flat.publish(detections.detections_2d(msg))
        if deep.get_subscription_count():
            deep.publish(detections.detections_3d(msg, surfaces))

    def _pictures(self, answer: Answer) -> tuple[Image | None, Image | None]:
        labels = self._labels.get(answer.camera)
        overlays = self._overlays.get(answer.camera)
        result, picture, drawn = answer.result, None, None
        if result is not None and labels is not None and labels.get_subscription_count():
            values = messages.label_image(result.instances, *result.image_size)
            picture = mono16_to_image(answer.frame.msg.header, values)
        if answer.pixels is not None and overlays is not None and overlays.get_subscription_count():
            drawn = overlay(answer)
        return picture, drawn

    def _place(self, answer: Answer, msg: Perception) -> tuple[Answer, list[np.ndarray | None]]:
        """Give the instances centroids; a goal that asked for a frame fails when none of them has one.

        Returns the answer and for each instance its visible surface, (N, 3) points in metres, or None.
        """
        settings, source = self._settings(), msg.header.frame_id
        target = answer.target_frame or source
        try:
            camera = self._cameras.get(answer.camera)
            if camera is None:
                raise PerceptionError("NO_DEPTH", "camera: expected a camera's name for its depth, found none.")
            depth, intrinsics = camera.depth_at(answer.frame, settings.depth_tolerance)
            matrix = self._transforms.matrix(target, source, msg.header.stamp, settings.tf_timeout)
        except PerceptionError as error:
            messages.set_centroids(msg, [error.message] * len(msg.instances), target)
            return self._failed(answer, msg, error), [None] * len(msg.instances)
        found, last = [], None
        for instance in answer.result.instances:
            try:
                found.append(moved(matrix, surface(instance.mask, depth, intrinsics)))
            except PerceptionError as error:
                found.append(error.message)
                last = error
        messages.set_centroids(msg, found, target)
        surfaces = [None if isinstance(points, str) else points for points in found]
        nowhere = all(points is None for points in surfaces)
        return self._failed(answer, msg, last) if nowhere else answer, surfaces

    def _failed(self, answer: Answer, msg: Perception, error: PerceptionError) -> Answer:
        if not answer.target_frame or answer.error is not None:
            return answer
        messages.set_error(msg, error)
        return replace(answer, error=error)

    def _publisher(self, kind: type, name: str, depth: int) -> object:
        options = QoSOverridingOptions.with_default_policies()
        publisher = self._node.create_lifecycle_publisher(kind, name, QoSProfile(depth=depth), qos_overriding_options=options)
        self._publishers.append(publisher)
        return publisher
