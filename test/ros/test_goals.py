"""The action Perceive: text and instances streamed, cancel, preemption, deadlines, images and errors."""

from __future__ import annotations

import time

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from action_msgs.srv import CancelGoal
from geometry_msgs.msg import Point
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from pixel_perception.action import Perceive
from pixel_perception.msg import GroundedBox, Query
from pixel_perception.ros.conversions import fill, rgb_to_image
from pixel_perception.ros.messages import mask_from_msg
from pixel_perception.ros.node import PerceptionNode
from pixel_perception.srv import GetModelInfo

TIMEOUT = 240.0
"""Seconds for things that take a fraction of one, on a machine that may be busy."""
ENDLESS = {"text": "mugs forever", "max_new_tokens": 900}


def seconds(duration) -> float:
    return duration.sec + duration.nanosec * 1e-9


def nanoseconds(stamp) -> int:
    return stamp.sec * 10**9 + stamp.nanosec


def image(encoding: str = "rgb8", width: int = 640, height: int = 480) -> Image:
    """A grey image in the words of `encoding`, of three bytes per pixel."""
    msg = rgb_to_image(Header(), np.full((height, width, 3), 110, np.uint8))
    msg.encoding = encoding
    return msg


def test_answer_is_streamed_and_whole(running):
    goal = running.ask("the mug and the banana", id="mine")
    assert goal.status == "succeeded" and goal.result.error_code == Perceive.Goal.NONE, goal.result.error_msg
    answer = goal.result.perception
    assert answer.query_id == "mine" and answer.text == "red mug, yellow banana"
    assert [i.label for i in answer.instances] == ["red mug", "yellow banana"]
    # rclpy's client drops feedback that the result overtakes, which on a busy machine is the last of it.
    assert goal.text and answer.text.startswith(goal.text)
    assert goal.streamed and ["red mug", "yellow banana"][: len(goal.streamed)] == [i.label for i in goal.streamed]
    assert [f.sequence for f in goal.feedback] == list(range(len(goal.feedback)))
    states = [f.state for f in goal.feedback]
    assert states == sorted(states) and states[-1] == Perceive.Feedback.ANSWERING
    text = answer.text.encode()
    assert [text[s.begin : s.end].decode() for s in answer.spans] == ["red mug", "yellow banana"]
    for instance, name in zip(answer.instances, ("mug", "banana"), strict=True):
        box = instance.box
        assert (box.x_min, box.y_min, box.x_max, box.y_max) == pytest.approx(running.scene.box(name), abs=12)
        assert not instance.track_id
    assert 0 < seconds(goal.result.first_mask) <= seconds(goal.result.total)
    info = answer.info
    assert info.model and len(info.digest) == 64 and seconds(info.vision) > 0 and seconds(info.language) > 0
    # Whoever only listens to the topic sees the answer too.
    running.spin_until(lambda: any(p.query_id == "mine" for p in running.perceptions))


def test_first_mask_arrives_before_the_answer_is_complete(running):
    goal = running.send(**ENDLESS)
    running.spin_until(lambda: goal.streamed, what="an instance while the answer goes on")
    assert not goal._result.done()
    goal.cancel()
    goal.wait()


def test_all_of_a_kind_and_region_and_narration(running):
    running.scene.things["mug2"] = ((220, 20, 20), (300, 340, 380, 440))
    try:
        header = running.publish_frame()
        goal = running.ask("all mugs", not_before=nanoseconds(header.stamp))
        (span,) = goal.result.perception.spans
        assert span.quantity == 1 and list(span.instances) == [0, 1]
        assert sorted(round(i.box.x_min, -2) for i in goal.result.perception.instances) == [100.0, 300.0]
        limited = running.ask("all mugs", max_instances=1)
        assert len(limited.result.perception.instances) == 1
    finally:
        del running.scene.things["mug2"]
    region = running.ask(boxes=[GroundedBox(x_min=100.0, y_min=120.0, x_max=220.0, y_max=260.0)])
    assert region.result.perception.regions[0].caption == "red mug" == region.result.perception.text, region.result.error_msg
    narration = running.ask(task=Query.NARRATE)
    answer = narration.result.perception
    assert answer.text == "red mug, yellow banana" and answer.text.startswith(narration.text)
    words = [answer.text.encode()[w.begin : w.end].decode() for w in answer.words]
    assert "mug" in words and "banana" in words


def test_an_absent_thing_succeeds_with_nothing_found(running):
    goal = running.ask("the unicorn")
    assert goal.status == "succeeded" and goal.result.error_code == Perceive.Goal.NOTHING_FOUND
    assert goal.result.error_msg == "query: nothing in the image for 'red mug'."
    assert goal.result.finish_reason == "stop" and not goal.result.perception.instances


def test_cancel_returns_what_there_is(running):
    goal = running.send(**ENDLESS)
    running.spin_until(lambda: goal.streamed, what="first instance")
    goal.cancel()
    goal.wait()
    assert goal.status == "canceled" and goal.result.error_code == Perceive.Goal.CANCELLED
    assert goal.result.error_msg == "The goal was cancelled by its client." and goal.result.finish_reason == "cancelled"
    answer = goal.result.perception
    assert answer.text.startswith("red mug") and answer.text.startswith(goal.text)
    assert answer.instances and answer.instances[0].label == "red mug" and answer.instances[0].mask.area > 0
    assert len(answer.text) < 400
    assert running.ask("the red mug").status == "succeeded"


def test_cancel_of_a_goal_that_waits_for_its_image(running):
    goal = running.send("the mug", not_before=nanoseconds(running.node.get_clock().now().to_msg()) + 3600 * 10**9)
    started = time.monotonic()
    goal.cancel()
    goal.wait()
    assert goal.status == "canceled" and time.monotonic() - started < 5
    assert [f.state for f in goal.feedback] == [Perceive.Feedback.WAITING_FOR_IMAGE]


def test_a_cancel_that_arrives_together_with_its_goal(tiny_bundle, client):
    """As from one who cancels all goals: both are there when the server's executor, in this process, looks for the first time."""
    values = {"bundle": str(tiny_bundle), "threads": 1, "goal_timeout": TIMEOUT}
    node = PerceptionNode(context=client.context, namespace="here", parameter_overrides=[Parameter(k, value=v) for k, v in values.items()])
    executor = SingleThreadedExecutor(context=client.context)
    executor.add_node(node)

    def done(*futures):
        executor.spin_once(timeout_sec=0.01)
        return all(future.done() for future in futures)

    try:
        assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        goals = ActionClient(client.node, Perceive, "here/perception/perceive")
        cancels = client.node.create_client(CancelGoal, "here/perception/perceive/_action/cancel_goal")
        client.spin_until(lambda: goals.server_is_ready() and cancels.service_is_ready())
        accepted, cancelled = goals.send_goal_async(Perceive.Goal(query=Query(text="the mug"))), cancels.call_async(CancelGoal.Request())
        client.spin(0.5)
        client.spin_until(lambda: done(accepted, cancelled))
        assert len(cancelled.result().goals_canceling) == 1
        result = accepted.result().get_result_async()
        client.spin_until(lambda: done(result))
        assert result.result().status == GoalStatus.STATUS_CANCELED
        assert result.result().result.error_code == Perceive.Goal.CANCELLED
    finally:
        node.close()
        executor.shutdown()


def test_a_newer_goal_preempts(running):
    old = running.send(**ENDLESS)
    running.spin_until(lambda: old.text.startswith("red mug"))
    new = running.ask("the banana")
    old.wait()
    assert (old.status, old.result.error_code) == ("aborted", Perceive.Goal.PREEMPTED)
    assert old.result.finish_reason == "preempted" and old.result.perception.text.startswith("red mug")
    assert new.status == "succeeded" and new.result.perception.text == "yellow banana"


def test_many_goals_at_once_leave_the_newest(running):
    goals = [running.send("the banana") for _ in range(5)]
    for goal in goals:
        goal.wait()
    assert goals[-1].status == "succeeded"
    assert {g.result.error_code for g in goals[:-1]} <= {Perceive.Goal.PREEMPTED, Perceive.Goal.NONE}


def test_timeout_while_answering_returns_what_there_is(running):
    goal = running.ask(**ENDLESS, timeout=0.25)
    assert (goal.status, goal.result.error_code) == ("aborted", Perceive.Goal.TIMEOUT)
    assert goal.result.finish_reason == "timeout" and "timeout" in goal.result.error_msg
    assert seconds(goal.result.total) < 5


def test_no_image_in_time_is_an_error_that_names_the_topic(running):
    later = nanoseconds(running.node.get_clock().now().to_msg()) + 3600 * 10**9
    goal = running.ask("the mug", not_before=later, timeout=0.3)
    assert (goal.status, goal.result.error_code) == ("aborted", Perceive.Goal.NO_IMAGE)
    assert "/image" in goal.result.error_msg and "not_before" in goal.result.error_msg
    assert "(1 publishers)" in goal.result.error_msg


def test_not_before_waits_for_a_newer_frame(running):
    moment = nanoseconds(running.node.get_clock().now().to_msg()) + 300_000_000
    goal = running.ask("the mug", not_before=moment)
    assert goal.status == "succeeded" and nanoseconds(goal.result.perception.header.stamp) >= moment


def test_a_frame_that_is_too_old_does_not_answer(running):
    running.playing = False
    try:
        running.spin(1.3)  # max_image_age is 1 s
        goal = running.ask("the mug", timeout=0.3)
        assert goal.result.error_code == Perceive.Goal.NO_IMAGE and "s ago" in goal.result.error_msg
    finally:
        running.playing = True


def test_image_of_the_goal_is_used(running):
    pixels = np.full((240, 320, 3), 90, np.uint8)
    pixels[50:150, 200:300] = (230, 210, 20)
    header = Header(frame_id="elsewhere")
    header.stamp.sec = 77
    goal = running.ask("the banana", image=rgb_to_image(header, pixels))
    answer = goal.result.perception
    assert goal.status == "succeeded" and answer.header == header and (answer.image_width, answer.image_height) == (320, 240)
    mask = mask_from_msg(answer.instances[0].mask).full(320, 240)
    assert mask[60:140, 210:290].mean() > 0.9 and mask.sum() < 1.3 * 100 * 100
    assert not answer.instances[0].has_centroid and "depth" in answer.instances[0].centroid_error


def test_images_of_goals_do_not_stay_in_memory(running):
    def memory() -> int:
        return running.call(GetModelInfo, "get_model_info", GetModelInfo.Request()).resident_bytes

    def ask(times: int) -> None:
        for _ in range(times):
            goal = running.ask("the mug", image=image(width=1024, height=1024))
            assert goal.result.error_code == Perceive.Goal.NOTHING_FOUND, goal.result.error_msg

    ask(2)
    before = memory()
    ask(10)
    grown = memory() - before
    assert grown < 15e6, f"10 images of 3.1 MB were answered, and {grown / 1e6:.0f} MB of memory did not come back"


@pytest.mark.parametrize("sec", [-(2**31), -1, 2**31 - 1])
def test_an_image_with_an_impossible_stamp_is_answered_all_the_same(running, sec):
    msg = image_with_mug()
    msg.header.stamp.sec = sec
    goal = running.ask("the mug", image=msg)
    assert goal.status == "succeeded" and goal.result.perception.header.stamp.sec == sec
    assert goal.result.perception.instances


def test_target_frame_needs_a_transform(running):
    there = running.ask("the mug", target_frame="camera_color_optical_frame")
    assert there.status == "succeeded" and there.result.perception.instances[0].has_centroid
    missing = running.ask("the mug", target_frame="base_link")
    assert (missing.status, missing.result.error_code) == ("aborted", Perceive.Goal.TF_ERROR)
    assert missing.result.error_msg.startswith("target_frame: expected ") and "'base_link'" in missing.result.error_msg
    assert missing.result.perception.instances, "the masks are there all the same"


def test_target_frame_without_depth_is_an_error(running):
    goal = running.ask("the mug", image=image_with_mug(), target_frame="camera_color_optical_frame")
    assert (goal.status, goal.result.error_code) == ("aborted", Perceive.Goal.NO_DEPTH)
    assert goal.result.error_msg.startswith("/depth/image: expected a depth image within 0.05 s")


def image_with_mug() -> Image:
    pixels = np.full((480, 640, 3), 110, np.uint8)
    pixels[100:200, 100:200] = (220, 20, 20)
    return rgb_to_image(Header(frame_id="camera_color_optical_frame"), pixels)


def short(msg: Image) -> Image:
    msg.data = fill(np.zeros(100, np.uint8))
    return msg


BAD = {
    "unknown encoding": ({"image": image("rgb99")}, "INVALID_IMAGE", "image: encoding: expected one of rgb8, "),
    "empty image": ({"image": Image(encoding="rgb8")}, "INVALID_IMAGE", "image: width and height: expected at least one pixel, "),
    "short image": ({"image": short(image())}, "INVALID_IMAGE", "image: data: expected at least 921600 bytes"),
    "empty text": ({"text": ""}, "INVALID_QUERY", "text: expected an instruction in words, found ''."),
    "blank text": ({"text": " ?!"}, "INVALID_QUERY", "text: expected an instruction in words, found ' ?!'."),
    "long text": ({"text": "a" * 10000}, "INVALID_QUERY", "text: expected at most 1000 characters, found 10000."),
    "box outside": ({"text": "", "boxes": [GroundedBox(x_min=700.0, y_min=10.0, x_max=800.0, y_max=90.0)]}, "INVALID_QUERY",
                    "boxes[0]: expected a box that overlaps the 640x480 image, found (700.0, 10.0, 800.0, 90.0)."),
    "inverted box": ({"text": "", "boxes": [GroundedBox(x_min=90.0, y_min=10.0, x_max=80.0, y_max=90.0)]}, "INVALID_QUERY",
                     "boxes[0]: expected x0 < x1 and y0 < y1"),
    "not a number": ({"text": "", "boxes": [GroundedBox(x_min=float("nan"), x_max=80.0, y_max=90.0)]}, "INVALID_QUERY",
                     "boxes[0]: expected four finite numbers"),
    "point outside": ({"text": "", "points": [Point(x=-5.0, y=3.0)]}, "INVALID_QUERY", "points[0]: expected a point inside"),
    "unknown task": ({"task": 99}, "INVALID_QUERY", "task: expected one of 0 (AUTO), "),
    "threshold": ({"score_threshold": 1.5}, "INVALID_QUERY", "score_threshold: expected a number in 0..1, found 1.5."),
    "camera": ({"camera": "rear"}, "INVALID_QUERY", "camera: expected one of '', found 'rear'."),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_goal_ends_in_a_code_and_a_sentence_and_the_next_good_one_is_answered(running, case):
    fields, code, sentence = BAD[case]
    goal = running.ask(**{"text": "the mug"} | fields)
    assert goal.status == "aborted" and goal.result.error_code == getattr(Perceive.Goal, code)
    assert goal.result.error_msg.startswith(sentence) and goal.result.error_msg.endswith(".")
    assert goal.result.finish_reason == "error"
    assert running.state() == "active"
    assert running.ask("the mug").result.perception.text == "red mug"


def test_bad_images_on_the_topic_are_reported_and_the_next_good_one_is_answered(running):
    good = running.encode

    def unknown(header: Header, pixels: np.ndarray) -> Image:
        msg = good(header, pixels)
        msg.encoding = "rgb99"
        return msg

    query_id = running.instruct("the red mug")
    for encode, sentence in ((unknown, "/image: encoding: expected one of rgb8, "),
                             (lambda header, _: Image(header=header, encoding="rgb8"), "/image: width and height: ")):  # fmt: skip
        running.encode = encode
        try:
            running.perceptions.clear()
            answer = running.spin_until(lambda: next((p for p in running.perceptions if p.error_code), None))
            assert answer.error_code == Perceive.Goal.INVALID_IMAGE and answer.error_msg.startswith(sentence)
            assert answer.query_id == query_id and nanoseconds(answer.header.stamp) in running.sent
            goal = running.ask("the mug")
            assert (goal.status, goal.result.error_code) == ("aborted", Perceive.Goal.INVALID_IMAGE)
        finally:
            running.encode = good
        fresh = running.publish_frame()
        running.spin_until(lambda fresh=fresh: any(p.header == fresh and p.instances for p in running.perceptions) or
                           running.perceptions[-1].instances)  # fmt: skip
    assert running.ask("the mug").status == "succeeded"
