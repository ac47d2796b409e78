"""What /diagnostics says once a second (REP-107): the model, each camera, the work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from pixel_perception.errors import PerceptionError
from pixel_perception.ros.inputs import CameraInput
from pixel_perception.ros.workers import Workers

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


class Diagnostics:
    """Publishes on /diagnostics and remembers what it needs for rates."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._counts: dict[str, tuple[float, int]] = {}

    def publish(self, statuses: Iterable[DiagnosticStatus]) -> None:
        """Send statuses under the node's name."""
        msg = DiagnosticArray(status=list(statuses))
        msg.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(msg)

    def model(self, loaded: dict[str, object] | None, error: PerceptionError | None) -> DiagnosticStatus:
        """The model: its values when loaded, else why it is not."""
        values = {"resident_bytes": resident_bytes(), **(loaded or {})}
        if error is not None:
            return self._status("model", ERROR, str(error), values)
        if loaded is None:
            return self._status("model", WARN, "not configured", values)
        return self._status("model", OK, "loaded", values)

    def camera(self, camera: CameraInput, active_since: float, patience: float) -> DiagnosticStatus:
        """One camera: its rate, and a warning when publishers exist but no frame has come for `patience` seconds."""
        now, count = time.monotonic(), camera.mailbox.count
        before, seen = self._counts.get(camera.name, (now, count))
        self._counts[camera.name] = (now, count)
        rate = (count - seen) / (now - before) if now > before else 0.0
        publishers = camera.publishers
        silent = now - max(camera.arrived, active_since)
        values = {"topic": camera.topic, "publishers": publishers, "frames": count, "rate_hz": f"{rate:.1f}",
                  "seconds_since_frame": f"{silent:.1f}"}  # fmt: skip
        name = f"camera {camera.name}".strip()
        if silent <= patience:
            return self._status(name, OK, "frames arrive", values)
        if publishers:
            sentence = f"{camera.topic}: {publishers} publishers, but no frame for {silent:.0f} s"
            self._node.get_logger().warning(f"{sentence}; check their QoS and the network.", throttle_duration_sec=30.0)
            return self._status(name, WARN, sentence, values)
        return self._status(name, WARN, f"{camera.topic}: nobody publishes", values)

    def work(self, workers: Workers | None) -> DiagnosticStatus:
        """What the workers do."""
        if workers is None:
            return self._status("work", OK, "not active", {})
        values = {"answering": workers.busy, "standing_query": workers.standing_id}
        return self._status("work", OK, "answering" if workers.busy else "ready", values)

    def _status(self, name: str, level: bytes, message: str, values: dict[str, object]) -> DiagnosticStatus:
        pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        return DiagnosticStatus(level=level, name=f"{self._node.get_name()}: {name}", message=message,
                                hardware_id=self._node.get_fully_qualified_name(), values=pairs)  # fmt: skip


def resident_bytes() -> int:
    """Resident memory of this process in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
