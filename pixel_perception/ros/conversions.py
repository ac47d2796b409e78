"""sensor_msgs/Image to numpy and back, without cv_bridge for the encodings that cameras publish every day.

Step (bytes per row, padding included), encoding and byte order are respected. Message data is read as a view and
written with array.frombytes: assigning an ndarray or a list to `Image.data` costs a thousand times as much.
"""

from __future__ import annotations

import array

import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from pixel_perception.errors import PerceptionError

DIRECT = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "8UC3": 3, "8UC1": 1}
"""Encodings that are read as they are, with their channels. 8UC3 is what OpenCV publishes without saying more: BGR."""
BRIDGED = ("bayer_", "yuv", "uyvy", "yuyv", "nv12", "nv21", "nv24", "mono16", "rgb16", "bgr16", "rgba16", "bgra16")
"""Beginnings of the encodings that cv_bridge turns into rgb8."""


def image_to_rgb(msg: Image, topic: str = "image") -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image message; a view of the message's data where the layout allows it.

    Raises PerceptionError INVALID_IMAGE with a sentence that names `topic`, the field and what was expected.
    """
    channels = DIRECT.get(msg.encoding)
    if channels is None:
        if msg.encoding.lower().startswith(BRIDGED):
            return _through_cv_bridge(msg, topic)
        known = ", ".join(DIRECT)
        raise _bad(topic, "encoding", f"one of {known} (or a bayer, yuv or 16 bit one)", repr(msg.encoding))
    pixels = rows(msg, np.dtype(np.uint8), channels, topic)
    if msg.encoding in ("mono8", "8UC1"):
        return np.repeat(pixels, 3, axis=2)
    if msg.encoding in ("bgr8", "bgra8", "8UC3"):
        return np.ascontiguousarray(pixels[:, :, 2::-1])
    return pixels if channels == 3 else np.ascontiguousarray(pixels[:, :, :3])


def rows(msg: Image, kind: np.dtype, channels: int, topic: str) -> np.ndarray:
    """(H, W, channels) view of the message's data as `kind`, in the machine's byte order.

    Raises PerceptionError INVALID_IMAGE when height, width, step and data do not fit together.
    """
    width, height = msg.width, msg.height
    if width == 0 or height == 0:
        raise _bad(topic, "width and height", "at least one pixel", f"{width}x{height}")
    row = width * channels * kind.itemsize
    if msg.step < row or msg.step % kind.itemsize:
        raise _bad(topic, "step", f"at least {row} bytes for {width} pixels of {msg.encoding}", f"{msg.step}")
    # The last row may come without its padding.
    needed = msg.step * (height - 1) + row
    if len(msg.data) < needed:
        expected = f"at least {needed} bytes for {height} rows of {msg.step} bytes"
        raise _bad(topic, "data", expected, f"{len(msg.data)}")
    kind = kind.newbyteorder(">" if msg.is_bigendian else "<")
    data = np.frombuffer(msg.data, np.uint8)
    strides = (msg.step, channels * kind.itemsize, kind.itemsize)
    view = np.lib.stride_tricks.as_strided(
        data[:row].view(kind), (height, width, channels), strides, writeable=False
    )
    return view if kind.isnative else view.astype(kind.newbyteorder("="))


def rgb_to_image(header: Header, pixels: np.ndarray) -> Image:
    """(H, W, 3) uint8 RGB as an rgb8 message."""
    return _image(header, pixels, "rgb8")


def mono16_to_image(header: Header, labels: np.ndarray) -> Image:
    """(H, W) uint16 as a mono16 message (tools take 16UC1 for depth)."""
    return _image(header, labels, "mono16")


def depth_to_image(header: Header, millimetres: np.ndarray) -> Image:
    """(H, W) uint16 millimetres, 0 invalid, as a 16UC1 message (REP-118)."""
    return _image(header, millimetres, "16UC1")


def fill(data: np.ndarray) -> array.array:
    """The array's bytes as array('B'), which a message field takes without looking at every byte."""
    out = array.array("B")
    out.frombytes(np.ascontiguousarray(data).data.cast("B"))
    return out


def _image(header: Header, pixels: np.ndarray, encoding: str) -> Image:
    little = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False))
    msg = Image()
    msg.header = header
    msg.height, msg.width = pixels.shape[:2]
    msg.encoding = encoding
    msg.is_bigendian = 0
    msg.step = little.strides[0]
    msg.data = fill(little)
    return msg


def _through_cv_bridge(msg: Image, topic: str) -> np.ndarray:
    rows(msg, np.dtype(np.uint8), 1, topic)  # sizes first: cv_bridge answers a short buffer with a stack trace
    try:
        from cv_bridge import CvBridge

        bridge = CvBridge()  # imports OpenCV
    except ImportError as error:
        expected = f"one of {', '.join(DIRECT)}, or cv_bridge with OpenCV installed to convert it"
        raise _bad(topic, "encoding", expected, f"{msg.encoding!r} ({error})") from None
    try:
        return np.ascontiguousarray(bridge.imgmsg_to_cv2(msg, "rgb8"))
    except Exception as error:  # OpenCV's and cv_bridge's own exceptions share no base class
        raise _bad(topic, "encoding", "an encoding that cv_bridge turns into rgb8", f"{msg.encoding!r} ({error})") from None


def _bad(topic: str, name: str, expected: str, found: str) -> PerceptionError:
    return PerceptionError("INVALID_IMAGE", f"{topic}: {name}: expected {expected}, found {found}.")
