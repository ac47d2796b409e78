"""Instructions on topics and the service: language once, then masks with every frame."""

from __future__ import annotations

import numpy as np
import pytest
from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import Image
from std_msgs.msg import String

from pixel_perception.msg import Query
from pixel_perception.ros.conversions import rows
from pixel_perception.ros.messages import mask_from_msg
from pixel_perception.srv import GetModelInfo, SetQuery


@pytest.fixture(autouse=True)
def nothing_stands(running):
    """Every test begins without a standing query."""
    assert running.call(SetQuery, "set_query", SetQuery.Request(clear=True)).success


def nanoseconds(stamp) -> int:
    return stamp.sec * 10**9 + stamp.nanosec


def iou_with_box(instance, box) -> float:
    """Mask IoU of an instance with a filled rectangle."""
    truth = np.zeros((480, 640), bool)
    truth[box[1] : box[3], box[0] : box[2]] = True
    mask = mask_from_msg(instance.mask).full(640, 480)
    return (mask & truth).sum() / (mask | truth).sum()


def test_instruction_is_answered_by_language_once_and_by_pixels_from_then_on(running):
    query_id = running.instruct("the red mug")
    answers = running.spin_until(lambda: [p for p in running.perceptions if p.query_id == query_id][:8][7:] and
                                 [p for p in running.perceptions if p.query_id == query_id])  # fmt: skip
    first, rest = answers[0], answers[1:]
    assert first.error_code == 0, first.error_msg
    assert first.text == "red mug" and first.info.language_ran and first.finish_reason == "stop"
    assert [p.info.language_ran for p in rest] == [False] * len(rest)
    assert {p.finish_reason for p in rest} == {"followed"}
    for answer in answers:
        (instance,) = answer.instances
        assert instance.label == "red mug" and iou_with_box(instance, running.scene.box("mug")) > 0.85
        assert instance.mask.area == mask_from_msg(instance.mask).area
        assert answer.spans[instance.target].present and list(answer.spans[0].instances) == [0]
        # The header is the image's own, not one made at publication.
        assert answer.header == running.sent[nanoseconds(answer.header.stamp)]
        assert (answer.image_width, answer.image_height) == (640, 480)
        assert nanoseconds(answer.info.image_age) > 0
    assert len({p.instances[0].track_id for p in answers}) == 1 and first.instances[0].track_id
    stamps = [nanoseconds(p.header.stamp) for p in answers]
    assert stamps == sorted(set(stamps))


def test_centroid_is_where_the_depth_says(running):
    running.instruct("the red mug")
    answer = running.spin_until(lambda: next((p for p in reversed(running.perceptions) if p.instances), None))
    (instance,) = answer.instances
    assert instance.has_centroid, instance.centroid_error
    assert answer.centroid_frame == "camera_color_optical_frame"
    x0, y0, x1, y1 = running.scene.box("mug")
    # Centre of the rectangle, one metre away, through the pinhole: (u - cx) * z / f.
    expected = ((x0 + x1) / 2 - 320) / 600, ((y0 + y1) / 2 - 240) / 600, 1.0
    assert (instance.centroid.x, instance.centroid.y, instance.centroid.z) == pytest.approx(expected, abs=0.01)


def test_masks_follow_what_moves(running):
    query_id = running.instruct("the red mug")
    track = running.spin_until(lambda: [p for p in running.perceptions if p.query_id == query_id])[0].instances[0].track_id
    color, home = running.scene.things["mug"]
    try:
        for step in range(1, 5):
            running.scene.things["mug"] = (color, tuple(int(v) for v in np.add(home, (20 * step, 10 * step) * 2)))
            header = running.publish_frame()
            after = nanoseconds(header.stamp)
            moved = running.spin_until(lambda after=after: next(
                (p for p in running.perceptions if nanoseconds(p.header.stamp) >= after), None))  # fmt: skip
            assert iou_with_box(moved.instances[0], running.scene.box("mug")) > 0.85
            assert moved.instances[0].track_id == track and not moved.info.language_ran
    finally:
        running.scene.things["mug"] = (color, home)


def test_a_new_instruction_takes_over_for_good(running):
    old = running.instruct("the red mug")
    new = running.instruct("the banana")
    running.spin_until(lambda: sum(p.query_id == new for p in running.perceptions) > 5)
    ids = [p.query_id for p in running.perceptions]
    assert old not in ids[ids.index(new) :]
    assert {i.label for p in running.perceptions if p.query_id == new for i in p.instances} == {"yellow banana"}


def test_saying_the_same_again_keeps_id_and_tracks(running):
    query_id = running.instruct("the mug and the banana")
    running.spin_until(lambda: any(p.query_id == query_id and not p.info.language_ran for p in running.perceptions))
    running.perceptions.clear()
    for _ in range(3):
        running.instruction.publish(String(data="the mug and the banana"))
        count = len(running.perceptions)
        running.spin_until(lambda count=count: len(running.perceptions) > count + 4)
    answers = list(running.perceptions)
    assert {p.query_id for p in answers} == {query_id}
    assert len({tuple(i.track_id for i in p.instances) for p in answers}) == 1
    running.query.publish(Query(id="ours", text="the mug and the banana"))
    running.spin_until(lambda: running.perceptions[-1].query_id == "ours", what="the same words under an id of their own")


def test_queries_that_come_faster_than_language_do_not_keep_it_from_answering(running):
    sent = []

    def storm() -> bool:
        sent.append(f"storm-{len(sent)}")
        running.query.publish(Query(id=sent[-1], text="mugs forever"))
        return sum(p.query_id in sent and bool(p.instances) for p in running.perceptions) > 2

    running.spin_until(storm, what="answers while queries keep coming")
    running.spin_until(lambda: running.perceptions[-1].query_id == sent[-1], what="the last query")
    reasons = {p.finish_reason for p in running.perceptions if p.query_id in sent}
    assert "preempted" in reasons and reasons <= {"preempted", "stop", "length", "followed"}


def test_absent_things_are_named(running):
    query_id = running.instruct("the unicorn")
    answer = next(p for p in running.perceptions if p.query_id == query_id)
    assert answer.error_msg == "query: nothing in the image for 'red mug'."
    assert not answer.instances and not answer.spans[0].present and answer.spans[0].score < 0.5
    assert nanoseconds(answer.header.stamp) in running.sent
    # Pixels keep looking, and say the same of every frame.
    followed = running.spin_until(lambda: [p for p in running.perceptions if p.query_id == query_id][2:])
    assert not followed[0].info.language_ran and followed[0].error_msg == answer.error_msg


def test_label_image_and_overlay_are_made_for_those_who_listen(running):
    running.instruct("the mug and the banana")
    labels, overlays = [], []
    subscriptions = [running.node.create_subscription(Image, "perception/instance_labels", labels.append, 5),
                     running.node.create_subscription(Image, "perception/overlay", overlays.append, 5)]  # fmt: skip
    try:
        running.spin_until(lambda: labels and overlays)
    finally:
        for subscription in subscriptions:
            running.node.destroy_subscription(subscription)
    assert labels[-1].encoding == "mono16" and overlays[-1].encoding == "rgb8"
    values = rows(labels[-1], np.dtype(np.uint16), 1, "labels")[:, :, 0]
    answer = running.spin_until(lambda: next((p for p in running.perceptions if p.header == labels[-1].header), None))
    assert sorted(np.unique(values)) == [0, 1, 2]
    for instance in answer.instances:
        mask = mask_from_msg(instance.mask).full(640, 480)
        assert (values[mask] == instance.mask_value).all()
    drawn = rows(overlays[-1], np.dtype(np.uint8), 3, "overlay")
    assert drawn.shape == (480, 640, 3) and not np.array_equal(drawn, running.scene.image())


def test_query_topic_carries_id_and_limits(running):
    running.query.publish(Query(id="mine", text="the mug and the banana", max_instances=1))
    answer = running.spin_until(lambda: next((p for p in running.perceptions if p.query_id == "mine"), None))
    assert len(answer.instances) == 1 and [s.present for s in answer.spans] == [True, True]


def test_set_query_answers_when_language_has_run_and_clear_ends_it(running):
    response = running.call(SetQuery, "set_query", SetQuery.Request(query=Query(id="stand", text="the banana")))
    assert response.success and response.query_id == "stand", response.error_msg
    running.spin_until(lambda: sum(p.query_id == "stand" for p in running.perceptions) > 2)
    assert running.call(SetQuery, "set_query", SetQuery.Request(clear=True)).success
    running.spin(0.3)
    running.perceptions.clear()
    running.spin(0.7)
    assert not running.perceptions


def test_set_query_refuses_with_a_sentence_and_leaves_the_old_one_standing(running):
    old = running.instruct("the banana")
    response = running.call(SetQuery, "set_query", SetQuery.Request(query=Query(text="a mug", task=77)))
    assert not response.success and response.error_code == 1
    assert response.error_msg.startswith("task: expected one of 0 (AUTO)") and response.error_msg.endswith("found 77.")
    response = running.call(SetQuery, "set_query", SetQuery.Request(query=Query(text="a mug"), camera="rear"))
    assert response.error_msg == "camera: expected one of '', found 'rear'."
    running.perceptions.clear()
    running.spin_until(lambda: len(running.perceptions) > 2)
    assert {p.query_id for p in running.perceptions} == {old}


def test_instruction_parameter_stands_and_refuses_with_a_sentence(running):
    def set_instruction(text: str):
        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=text)
        request = SetParameters.Request(parameters=[ParameterMsg(name="instruction", value=value)])
        return running.call(SetParameters, "set_parameters", request).results[0]

    before = len(running.perceptions)
    assert set_instruction("the banana").successful
    running.spin_until(lambda: any(i.label == "yellow banana" for p in running.perceptions[before:] for i in p.instances))
    refused = set_instruction("a" * 1001)
    assert not refused.successful and refused.reason == "instruction: expected at most 1000 characters, found 1001."


def test_model_info_says_what_is_loaded(running, tiny_bundle):
    info = running.call(GetModelInfo, "get_model_info", GetModelInfo.Request())
    assert info.loaded and info.name == "tiny" and info.bundle == str(tiny_bundle) and len(info.digest) == 64
    assert "refer" in info.tasks and (info.image_width, info.image_height) == (384, 288)
    assert info.bundle_bytes == sum(f.stat().st_size for f in tiny_bundle.iterdir() if f.name != "manifest.json")
    assert info.resident_bytes > 30e6 and any(p.startswith("language_model:") for p in info.precision)


def test_bad_instructions_are_answered_with_an_error_and_the_next_good_one_is_followed(running):
    for text, sentence in (("", "text: expected an instruction in words, found ''."),
                           ("mug " * 2500, "text: expected at most 1000 characters, found 10000.")):  # fmt: skip
        running.perceptions.clear()
        running.instruction.publish(String(data=text))
        answer = running.spin_until(lambda: next((p for p in running.perceptions if p.error_code), None), what=sentence)
        assert (answer.error_code, answer.error_msg, answer.finish_reason) == (1, sentence, "error")
    query_id = running.instruct("the red mug")
    assert any(p.instances for p in running.perceptions if p.query_id == query_id)
