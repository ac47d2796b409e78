"""Writes a rosbag2 bag (MCAP storage) of serialised messages, with this package's own message types described in it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from pixel_perception.commands import share

VERSION = 9
"""Of rosbag2's metadata.yaml: what Jazzy writes."""


class Bag:
    """A bag that is being written; a context manager. Times are nanoseconds since the epoch."""

    def __init__(self, folder: str | Path) -> None:
        """`folder` must not exist."""
        self._types = get_typestore(Stores.ROS2_JAZZY)
        for file in sorted(share("msg").glob("*.msg")):
            self._types.register(get_types_from_msg(file.read_text(), f"pixel_perception/msg/{file.stem}"))
        self._writer = Writer(Path(folder), version=VERSION, storage_plugin=StoragePlugin.MCAP)
        self._connections: dict[str, object] = {}

    def write(self, topic: str, kind: str, stamp: int, data: bytes) -> None:
        """Append one message: its topic, type ("sensor_msgs/msg/Image"), time and CDR bytes."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, kind, typestore=self._types)
        self._writer.write(self._connections[topic], stamp, data)

    def __enter__(self) -> Bag:
        self._writer.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()
