"""Images, depth, parameters and messages as values: no process, no network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from pixel_perception.errors import CODES, PerceptionError
from pixel_perception.ros import messages, parameters
from pixel_perception.ros.answers import Job, Token
from pixel_perception.ros.conversions import fill, image_to_rgb, rgb_to_image
from pixel_perception.ros.depth import Intrinsics, depth_in_metres, surface
from pixel_perception.ros.mailbox import Mailbox
from pixel_perception.ros.standing import StandingQuery, View, fallen
from pixel_perception.ros.transforms import moved, pose_matrix
from pixel_perception.types import Instance, Mask, Query, Target

ROOT = Path(__file__).parents[2]
CHANNELS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2, None), "bgra8": (2, 1, 0, None), "8UC3": (2, 1, 0)}


def encoded(rgb: np.ndarray, encoding: str, padding: int) -> Image:
    """An image message written byte by byte, rows padded with 255."""
    height, width = rgb.shape[:2]
    raw = bytearray()
    for row in rgb.tolist():
        for pixel in row:
            raw += bytes(200 if c is None else pixel[c] for c in CHANNELS[encoding])
        raw += b"\xff" * padding
    step = width * len(CHANNELS[encoding]) + padding
    return Image(height=height, width=width, encoding=encoding, step=step, data=fill(np.frombuffer(bytes(raw), np.uint8)))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(CHANNELS)), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_every_direct_encoding_reads_the_same_pixels(encoding, width, height, padding, seed):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    msg = encoded(rgb, encoding, padding)
    assert np.array_equal(image_to_rgb(msg), rgb)
    del msg.data[len(msg.data) - padding :]  # the last row may come without its padding
    assert np.array_equal(image_to_rgb(msg), rgb)


def test_grey_and_round_trip():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    msg = Image(height=3, width=4, encoding="mono8", step=4, data=fill(grey))
    assert np.array_equal(image_to_rgb(msg), np.stack([grey] * 3, 2))
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert np.array_equal(image_to_rgb(rgb_to_image(Header(), rgb[:, ::-1])), rgb[:, ::-1])


def test_other_encodings_go_through_cv_bridge_or_say_that_it_is_missing():
    mosaic = Image(height=4, width=6, encoding="bayer_rggb8", step=6, data=fill(np.full((4, 6), 99, np.uint8)))
    if importlib.util.find_spec("cv_bridge") and importlib.util.find_spec("cv2"):
        assert np.array_equal(image_to_rgb(mosaic), np.full((4, 6, 3), 99, np.uint8))
    else:
        with pytest.raises(PerceptionError, match="or cv_bridge with OpenCV installed to convert it, found 'bayer_rggb8'"):
            image_to_rgb(mosaic)
    mosaic.step = 5
    with pytest.raises(PerceptionError, match="image: step: expected at least 6 bytes"):
        image_to_rgb(mosaic)


@pytest.mark.parametrize(("change", "sentence"), [
    ({"encoding": "rgb99"}, "cam: encoding: expected one of rgb8, bgr8, rgba8, bgra8, mono8, 8UC3, 8UC1"),
    ({"encoding": ""}, "cam: encoding: expected one of"),
    ({"width": 0}, "cam: width and height: expected at least one pixel, found 0x3."),
    ({"step": 11}, "cam: step: expected at least 12 bytes for 4 pixels of rgb8, found 11."),
    ({"height": 4}, "cam: data: expected at least 48 bytes for 4 rows of 12 bytes, found 36."),
])  # fmt: skip
def test_bad_images_name_topic_field_and_what_was_expected(change, sentence):
    msg = rgb_to_image(Header(), np.zeros((3, 4, 3), np.uint8))
    for name, value in change.items():
        setattr(msg, name, value)
    with pytest.raises(PerceptionError) as caught:
        image_to_rgb(msg, "cam")
    assert caught.value.code == "INVALID_IMAGE" and caught.value.message.startswith(sentence)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_depth_units_come_from_the_encoding_in_either_byte_order(encoding, big):
    raw = np.array([[0, 1500], [250, 65535]], np.uint16)
    if encoding == "32FC1":
        raw = np.array([[np.nan, 1.5], [0.25, -1.0]], np.float32)
    stored = raw.astype(raw.dtype.newbyteorder(">" if big else "<"))
    msg = Image(height=2, width=2, encoding=encoding, is_bigendian=big, step=2 * raw.itemsize, data=fill(stored))
    metres = depth_in_metres(msg, "depth")
    last = 65.535 if encoding == "16UC1" else np.nan
    assert metres.dtype == np.float32 and metres == pytest.approx(np.array([[np.nan, 1.5], [0.25, last]]), nan_ok=True)


def test_depth_of_another_encoding_is_refused():
    with pytest.raises(PerceptionError, match="depth: encoding: expected 32FC1 .* found 'rgb8'"):
        depth_in_metres(rgb_to_image(Header(), np.zeros((1, 1, 3), np.uint8)), "depth")


def test_centroid_leaves_the_background_and_invalid_pixels_out():
    camera = Intrinsics(500.0, 500.0, 50.0, 40.0)
    depth = np.full((80, 100), 3.0, np.float32)
    depth[20:40, 60:80] = 1.0
    depth[20:22, 60:80] = np.nan
    mask = Mask((58, 18, 24, 24), np.ones((24, 24), bool))  # two pixels of wall all around
    x, y, z = surface(mask, depth, camera).mean(0)
    assert z == pytest.approx(1.0)
    assert x == pytest.approx((69.5 - 50) / 500) and y == pytest.approx((30.5 - 40) / 500)


def test_surface_says_why_there_is_none():
    mask = Mask((10, 10, 10, 10), np.ones((10, 10), bool))
    with pytest.raises(PerceptionError, match="expected depth under the mask, found 0 of 100 pixels") as caught:
        surface(mask, np.full((80, 100), np.nan, np.float32), Intrinsics(500.0, 500.0, 50.0, 40.0))
    assert caught.value.code == "NO_DEPTH"


def test_uncalibrated_camera_is_refused():
    with pytest.raises(PerceptionError, match="info: k: expected focal lengths above 0"):
        Intrinsics.of(CameraInfo(width=640, height=480), "info")


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1))
def test_pose_matrix_is_a_rotation(quaternion):
    matrix = pose_matrix(quaternion, (1, 2, 3))
    assert matrix[:, :3] @ matrix[:, :3].T == pytest.approx(np.eye(3), abs=1e-9)
    assert np.linalg.det(matrix[:, :3]) == pytest.approx(1)
    assert moved(matrix, (0, 0, 0)) == pytest.approx((1, 2, 3))


def test_pose_matrix_turns_the_right_way():
    quarter = (0, 0, np.sqrt(0.5), np.sqrt(0.5))  # 90 degrees about z: x becomes y
    assert moved(pose_matrix(quarter, (0, 0, 5)), (1, 0, 0)) == pytest.approx((0, 1, 5))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_masks_survive_their_message(width, height, seed):
    bits = np.random.default_rng(seed).random((height, width)) < 0.5
    mask = messages.mask_from_msg(messages.mask_to_msg(Mask((3, 4, width, height), bits)))
    assert mask.roi == (3, 4, width, height) and np.array_equal(mask.bits, bits)


def test_label_image_gives_the_first_instance_what_two_share():
    def instance(roi):
        return Instance("x", 1.0, (0, 0, 1, 1), Mask(roi, np.ones((roi[3], roi[2]), bool)), 1.0, (0, 1), 0, 0)

    labels = messages.label_image([instance((0, 0, 2, 2)), instance((1, 1, 2, 2))], 4, 3)
    assert labels.tolist() == [[1, 1, 0, 0], [1, 1, 2, 0], [0, 2, 2, 0]]


def test_every_error_code_has_a_number_of_its_own():
    numbers = [messages.error_code(PerceptionError(code, "x")) for code in CODES]
    assert 0 not in numbers and len(set(numbers)) == len(CODES)
    assert messages.error_code(None) == 0


def test_mailbox_holds_the_newest_and_nothing_while_closed():
    box: Mailbox[str] = Mailbox()
    assert not box.put("early") and box.newest() is None
    box.open()
    assert box.put("a") and box.put("b")
    assert box.newest() == (2, "b") and box.newest(after=1) == (2, "b") and box.newest(after=2) is None
    box.close()
    assert box.newest() is None and not box.put("late")
    box.open()
    assert box.newest() is None and box.put("c") and box.newest() == (3, "c")


def some_settings(**changes):
    return parameters.from_values({name: spec.default for name, spec in parameters.SPECS.items()} | changes)


def test_language_is_due_at_first_then_by_period_by_loss_and_after_failure():
    now, calm = 1000.0, some_settings(reground_period=5.0, reground_min_interval=1.0)
    view = View()
    assert view.due(calm) == 0.0
    view.grounded = now
    assert view.due(calm) == now + 5 and view.due(some_settings(reground_period=0.0)) == float("inf")
    view.lost = True
    assert view.due(calm) == now + 1
    view.failed = True
    assert view.due(calm) == now + 1.0


def test_a_query_that_is_said_again_is_due_again_unless_somebody_waits_for_it():
    def asked(text="the mug", name="query-1", **more):
        return StandingQuery(Job(Query(text, id=name), "", Token()), ("",), **more)

    first = asked()
    assert first.repeated_by(asked(name="query-2", anonymous=True)) and first.repeated_by(asked())
    assert not first.repeated_by(asked(name="mine")) and not first.repeated_by(asked("the mugs", anonymous=True))
    assert not first.repeated_by(asked(name="query-2", anonymous=True, answers_once=True))
    calm = some_settings(reground_period=0.0, reground_min_interval=1.0)
    first.views[""].grounded = 1000.0
    assert first.due(calm) == [(float("inf"), "")]
    first.look_again()
    assert first.due(calm) == [(1001.0, "")]


def test_a_score_has_fallen_below_a_part_of_what_it_was():
    def targets(*scores):
        return tuple(Target("x", "one", s, True) for s in scores)

    assert fallen((0.9, 0.8), targets(0.9, 0.39), 0.5) and not fallen((0.9, 0.8), targets(0.9, 0.41), 0.5)
    assert not fallen((0.9,), targets(0.0), 0.0)


@pytest.mark.parametrize(("name", "value", "configured", "sentence"), [
    ("bundle", "x", True, "bundle: expected no change while the node is configured; clean it up first, then set it."),
    ("bundle", "x", False, ""),
    ("backend", "abacus", False, f"backend: expected one of {', '.join(parameters.BACKENDS)}, found 'abacus'."),
    ("cameras", ["a", "a"], False, "cameras: expected different names, or [''] for one camera without a prefix, found ['a', 'a']."),
    ("cameras", ["a", ""], False, "cameras: expected different names, or [''] for one camera without a prefix, found ['a', '']."),
    ("cameras", ["a", "arm/wrist_2"], False, ""),
    ("cameras", ["2nd"], False, "cameras: expected names of letters, digits, _ and / that a topic can begin with, found '2nd'."),
    ("cameras", ["front camera"], False,
     "cameras: expected names of letters, digits, _ and / that a topic can begin with, found 'front camera'."),
    ("instruction", "x" * 1001, True, "instruction: expected at most 1000 characters, found 1001."),
    ("use_sim_time", True, True, ""),
])  # fmt: skip
def test_parameters_are_refused_with_a_sentence(name, value, configured, sentence):
    assert parameters.refusal([Parameter(name, value=value)], configured) == sentence


def test_documents_and_the_parameter_file_say_what_the_table_says():
    lines = (ROOT / "docs" / "node.md").read_text().splitlines()
    file = yaml.safe_load((ROOT / "config" / "perception.yaml").read_text())["/**"]["ros__parameters"]
    for name, spec in parameters.SPECS.items():
        (row,) = [line for line in lines if line.startswith(f"| `{name}` |") and spec.description in line]
        assert f"| {spec.change} |" in row
        assert name == "autostart" or (file[name] == spec.default and type(file[name]) is type(spec.default))
    assert set(file) == set(parameters.SPECS) - {"autostart"}


def test_accepted_parameters_change_the_struct_and_nothing_else():
    before = some_settings()
    after = parameters.updated(before, [Parameter("max_rate", value=5.0), Parameter("use_sim_time", value=True)])
    assert after.max_rate == 5.0 and before.max_rate == 0.0
    assert parameters.updated(after, [Parameter("max_rate", value=0.0)]) == before
