"""What comes in for one camera: images into a mailbox, the newest calibration, the latest depth images."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, Image

from pixel_perception.errors import PerceptionError
from pixel_perception.ros.answers import Frame, stamp_ns
from pixel_perception.ros.depth import Intrinsics, depth_in_metres
from pixel_perception.ros.mailbox import Mailbox

try:  # Iron and later
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

KEPT_DEPTHS = 10
"""Depth images kept per camera, since depth may come before its image."""


class CameraInput:
    """Subscriptions of one camera. Callbacks run in the executor and store references, nothing more."""

    def __init__(self, node: LifecycleNode, name: str, use_depth: bool, changed: threading.Condition) -> None:
        self.name = name
        self.mailbox: Mailbox[Frame] = Mailbox(changed)
        self.arrived = 0.0
        """time.monotonic() of the last frame while open; 0 for none."""
        self._node = node
        self._info: CameraInfo | None = None
        self._depth_info: CameraInfo | None = None
        self._depths: deque[Image] = deque(maxlen=KEPT_DEPTHS)
        # Language may take longer than KEPT_DEPTHS images: a frame keeps its own as long as somebody works on it.
        self._depth_of: WeakKeyDictionary[Frame, Image | None] = WeakKeyDictionary()
        prefix = f"{name}/" if name else ""
        self._subscriptions: list[Subscription] = []
        image = self._subscribe(Image, prefix + "image", self._on_image)
        self.topic = image.topic_name
        self.info_topic = self._subscribe(CameraInfo, prefix + "camera_info", self._on_info).topic_name
        self.depth_topic = self.depth_info_topic = ""
        if use_depth:
            self.depth_topic = self._subscribe(Image, prefix + "depth/image", self._on_depth).topic_name
            self.depth_info_topic = self._subscribe(CameraInfo, prefix + "depth/camera_info", self._on_depth_info).topic_name

    def open(self) -> None:
        """Let frames in, as at activation."""
        self.arrived = 0.0
        self.mailbox.open()

    def close(self) -> None:
        """Let nothing in and forget what is there."""
        self.mailbox.close()
        self._depths.clear()

    def destroy(self) -> None:
        """Give the subscriptions back."""
        self.close()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    @property
    def publishers(self) -> int:
        """How many publish on the image topic."""
        return self._node.count_publishers(self.topic)

    def frame_for(self, not_before_ns: int, max_age: float) -> Frame | None:
        """The newest frame, where it is stamped then or later, or without `not_before_ns` arrived in the last `max_age` seconds."""
        newest = self.mailbox.newest()
        if newest is None:
            return None
        frame = newest[1]
        if not_before_ns:
            return frame if frame.stamp_ns >= not_before_ns else None
        return frame if time.monotonic() - frame.arrived <= max_age else None

    def no_frame(self, not_before_ns: int, waited: float) -> PerceptionError:
        """The error of somebody who has waited so many seconds for `frame_for`."""
        expected = f"an image on {self.topic} within {waited:.1f} s"
        if not_before_ns:
            expected += f", stamped {not_before_ns * 1e-9:.3f} or later (not_before)"
        newest = self.mailbox.newest()
        found = "none" if newest is None else f"the newest stamped {newest[1].stamp_ns * 1e-9:.3f}, " \
                                               f"{time.monotonic() - newest[1].arrived:.1f} s ago"  # fmt: skip
        return PerceptionError("NO_IMAGE", f"camera: expected {expected}, found {found} ({self.publishers} publishers).")

    def depth_at(self, frame: Frame, tolerance: float) -> tuple[np.ndarray, Intrinsics]:
        """Depth (H, W) float32 in metres and Intrinsics that belong to a frame.

        The depth must be registered to the image and have its size; its own camera_info counts where it has one.
        Raises PerceptionError NO_DEPTH naming the topic that is missing or wrong.
        """
        if not self.depth_topic:
            raise PerceptionError("NO_DEPTH", "use_depth: expected true for centroids, found false.")
        nearest = _nearest(frame, [*self._depths, self._depth_of.get(frame)])
        if nearest is None:
            raise PerceptionError("NO_DEPTH", f"{self.depth_topic}: expected a depth image, none has arrived.")
        apart = _apart(frame, nearest) * 1e-9
        if apart > tolerance:
            expected = f"a depth image within {tolerance:g} s (depth_tolerance) of the image's stamp"
            raise PerceptionError("NO_DEPTH", f"{self.depth_topic}: expected {expected}, the nearest is {apart:.3f} s away.")
        info, info_topic = (self._depth_info, self.depth_info_topic) if self._depth_info else (self._info, self.info_topic)
        if info is None:
            raise PerceptionError("NO_DEPTH", f"{info_topic}: expected a calibration, none has arrived.")
        for topic, msg in ((self.depth_topic, nearest), (info_topic, info)):
            if (msg.width, msg.height) != (frame.msg.width, frame.msg.height):
                expected = f"the size of {frame.topic}, {frame.msg.width}x{frame.msg.height} (depth registered to it)"
                raise PerceptionError("NO_DEPTH", f"{topic}: expected {expected}, found {msg.width}x{msg.height}.")
        return depth_in_metres(nearest, self.depth_topic), Intrinsics.of(info, info_topic)

    def _subscribe(self, kind: type, name: str, callback: object) -> Subscription:
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        topic = self._node.resolve_topic_name(name)
        events = SubscriptionEventCallbacks(incompatible_qos=lambda event: self._on_incompatible(topic, event))
        subscription = self._node.create_subscription(
            kind, name, callback, qos, event_callbacks=events,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )  # fmt: skip
        self._subscriptions.append(subscription)
        return subscription

    def _on_image(self, msg: Image) -> None:
        frame = Frame(msg, self.topic, self.name, time.monotonic(), self.mailbox.count + 1)
        self._depth_of[frame] = _nearest(frame, self._depths)
        if self.mailbox.put(frame):
            self.arrived = frame.arrived

    def _on_depth(self, msg: Image) -> None:
        self._depths.append(msg)
        for frame, known in list(self._depth_of.items()):
            self._depth_of[frame] = _nearest(frame, [known, msg])

    def _on_info(self, msg: CameraInfo) -> None:
        self._info = msg

    def _on_depth_info(self, msg: CameraInfo) -> None:
        self._depth_info = msg

    def _on_incompatible(self, topic: str, event: object) -> None:
        policy = getattr(event.last_policy_kind, "name", str(event.last_policy_kind)).lower()
        self._node.get_logger().warning(
            f"{topic}: a publisher offers a {policy} that this subscription does not accept; nothing arrives from it. "
            f"Set the parameter qos_overrides.{topic}.subscription.{policy} of this node to what it offers."
        )


def _apart(frame: Frame, depth: Image) -> int:
    return abs(stamp_ns(depth.header.stamp) - frame.stamp_ns)


def _nearest(frame: Frame, depths: Iterable[Image | None]) -> Image | None:
    return min((depth for depth in depths if depth is not None), key=partial(_apart, frame), default=None)
