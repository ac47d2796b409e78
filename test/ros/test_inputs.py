"""One camera's topics as the node takes them in, in this process."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, Image

from pixel_perception.errors import PerceptionError
from pixel_perception.ros.answers import Frame
from pixel_perception.ros.camera import camera_info
from pixel_perception.ros.conversions import depth_to_image
from pixel_perception.ros.inputs import KEPT_DEPTHS, CameraInput


@pytest.fixture
def camera(client):
    """An open camera, fed by a client that publishes when it is told to."""
    client.playing = False
    camera = CameraInput(client.node, "", True, threading.Condition())
    camera.open()
    yield camera
    camera.destroy()


def placed(client, camera: CameraInput) -> Frame:
    """Publish until a frame has come with its calibration and the depth of its very moment; returns the frame."""

    def whole() -> Frame | None:
        client.publish_frame()
        client.spin(0.1)
        newest = camera.mailbox.newest()
        return newest[1] if newest is not None and complaint(camera, newest[1]) == "" else None

    return client.spin_until(whole, what="a frame with depth")


def complaint(camera: CameraInput, frame: Frame) -> str:
    try:
        camera.depth_at(frame, tolerance=0.0)
    except PerceptionError as error:
        assert error.code == "NO_DEPTH"
        return error.message
    return ""


def test_a_frame_keeps_its_depth_however_many_come_before_its_answer(camera, client):
    frame = placed(client, camera)
    later = frame.number + 3 * KEPT_DEPTHS
    client.spin_until(lambda: camera.mailbox.count > later or not client.publish_frame(), what="many more frames")
    assert complaint(camera, frame) == ""
    depth, intrinsics = camera.depth_at(frame, tolerance=0.0)
    assert depth.shape == (480, 640) and intrinsics.fx == 600.0


@pytest.mark.parametrize(("topic", "size", "sentence"), [
    ("depth/image", (1280, 720), "/depth/image: expected the size of /image, 640x480 (depth registered to it), found 1280x720."),
    ("depth/image", (320, 240), "/depth/image: expected the size of /image, 640x480 (depth registered to it), found 320x240."),
    ("camera_info", (1280, 720), "/camera_info: expected the size of /image, 640x480 (depth registered to it), found 1280x720."),
    ("depth/camera_info", (320, 240),
     "/depth/camera_info: expected the size of /image, 640x480 (depth registered to it), found 320x240."),
])  # fmt: skip
def test_depth_or_calibration_of_another_size_is_refused_by_its_topic(camera, client, topic, size, sentence):
    frame, (width, height) = placed(client, camera), size
    header = frame.msg.header
    if topic == "depth/image":
        frame.msg.header.stamp.sec += 1  # as if its own depth had never come
        msg = depth_to_image(header, np.full((height, width), 1000, np.uint16))
    else:
        msg = camera_info(header, (600.0, 600.0, width / 2, height / 2), width, height)
    publisher = client.node.create_publisher(Image if topic == "depth/image" else CameraInfo, topic, 1)

    def refused() -> bool:
        publisher.publish(msg)
        return complaint(camera, frame) == sentence

    client.spin_until(refused, what=sentence)
