"""Lifecycle transitions, bundles that cannot be loaded, several cameras, the recording camera, the end of the process."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from PIL import Image as Picture
from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from pixel_perception.action import Perceive
from pixel_perception.msg import Perception, Query
from pixel_perception.ros.conversions import image_to_rgb
from pixel_perception.ros.depth import depth_in_metres
from pixel_perception.srv import GetModelInfo, SetQuery

TIMEOUT = 240.0
"""Seconds for a process to end, on a machine that may be busy."""


def set_text(client, name: str, text: str, node: str = "/perception"):
    value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=text)
    request = SetParameters.Request(parameters=[ParameterMsg(name=name, value=value)])
    return client.call(SetParameters, f"{node}/set_parameters", request).results[0]


def test_a_whole_life(tiny_bundle, launch, client):
    node = launch(bundle=tiny_bundle, threads=1)
    client.connect()
    assert client.state() == "unconfigured"
    goal = client.ask("the mug")
    assert (goal.status, goal.result.error_code) == ("aborted", Perceive.Goal.NOT_ACTIVE)
    assert goal.result.error_msg == "lifecycle state: expected active, found unconfigured."
    assert not client.call(GetModelInfo, "get_model_info", GetModelInfo.Request()).loaded

    for _ in range(2):  # everything can be done again
        assert client.change(Transition.TRANSITION_CONFIGURE) and client.state() == "inactive"
        assert client.ask("the mug").result.error_msg == "lifecycle state: expected active, found inactive."
        assert not set_text(client, "bundle", "elsewhere").successful
        assert client.change(Transition.TRANSITION_ACTIVATE) and client.state() == "active"
        assert client.ask("the mug").result.perception.text == "red mug"
        client.instruct("the banana")

        goal = client.send("mugs forever", max_new_tokens=900)
        client.spin_until(lambda goal=goal: goal.text)
        assert client.change(Transition.TRANSITION_DEACTIVATE) and client.state() == "inactive"
        goal.wait()
        assert (goal.status, goal.result.error_code) == ("aborted", Perceive.Goal.NOT_ACTIVE)
        assert goal.result.finish_reason == "deactivated" and goal.result.perception.text.startswith("red mug")
        client.spin(0.2)
        client.perceptions.clear()
        client.spin(0.5)
        assert not client.perceptions, "an inactive node answers nothing"

        assert client.change(Transition.TRANSITION_ACTIVATE)
        assert client.ask("the banana").result.perception.text == "yellow banana"
        assert client.change(Transition.TRANSITION_DEACTIVATE)
        assert client.change(Transition.TRANSITION_CLEANUP) and client.state() == "unconfigured"
        assert not client.call(GetModelInfo, "get_model_info", GetModelInfo.Request()).loaded

    assert client.change(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN) and client.state() == "finalized"
    assert node.stop() == 0


def test_what_was_said_last_before_activation_stands_from_then_on(tiny_bundle, launch, client):
    node = launch(bundle=tiny_bundle, threads=1, instruction="the unicorn")
    client.connect()
    for said in ("the mug", "the banana"):
        client.instruction.publish(String(data=said))
        client.spin_until(lambda said=said: f"instruction: '{said}' is kept until activation" in node.output)
    client.start()
    first = client.spin_until(lambda: client.perceptions)[0]
    assert (first.query_id, first.text) == ("instruction-1", "yellow banana")
    assert "instruction: 'the banana', said before activation, stands from now on." in node.output
    assert client.change(Transition.TRANSITION_DEACTIVATE)
    client.query.publish(Query(id="mine", text="the mug"))
    client.spin_until(lambda: "query: 'the mug' is kept" in node.output)
    assert client.call(SetQuery, "set_query", SetQuery.Request(clear=True)).success  # forgets it: the parameter is left
    client.perceptions.clear()
    assert client.change(Transition.TRANSITION_ACTIVATE)
    client.spin_until(lambda: any(p.error_code == Perceive.Goal.NOTHING_FOUND for p in client.perceptions))
    assert all(p.query_id != "mine" for p in client.perceptions)
    assert client.change(Transition.TRANSITION_DEACTIVATE)
    client.instruction.publish(String(data="the mug and the banana"))
    client.spin_until(lambda: "instruction: 'the mug and the banana' is kept" in node.output)
    assert set_text(client, "instruction", "the mug").successful  # later than what was said
    client.perceptions.clear()
    assert client.change(Transition.TRANSITION_ACTIVATE)
    assert client.spin_until(lambda: client.perceptions)[0].text == "red mug"


def missing(folder):
    shutil.rmtree(folder)
    return "manifest.json", "expected a bundle's manifest"


def flipped(folder):
    path = folder / "pixel_decoder.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return "pixel_decoder.onnx", "expected SHA-256"


@pytest.mark.parametrize("damage", [missing, flipped])
def test_a_bad_bundle_is_named_and_a_good_one_can_be_put_in_its_place(tmp_path, tiny_bundle, launch, client, damage):
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    name, expected = damage(folder)
    statuses: list[DiagnosticStatus] = []
    client.node.create_subscription(DiagnosticArray, "/diagnostics", lambda msg: statuses.extend(msg.status), 10)
    node = launch(bundle=folder, autostart="true", threads=1)
    client.connect()
    assert client.state() == "unconfigured" and not client.change(Transition.TRANSITION_CONFIGURE)
    goal = client.ask("the mug")
    assert (goal.status, goal.result.error_code) == ("aborted", Perceive.Goal.INVALID_BUNDLE)
    assert str(folder / name) in goal.result.error_msg and expected in goal.result.error_msg
    info = client.call(GetModelInfo, "get_model_info", GetModelInfo.Request())
    assert not info.loaded and info.error_code == Perceive.Goal.INVALID_BUNDLE and info.error_msg == goal.result.error_msg
    assert goal.result.error_msg in node.output
    model = client.spin_until(lambda: next((s for s in reversed(statuses) if s.name == "perception: model"), None))
    assert model.level == DiagnosticStatus.ERROR and str(folder / name) in model.message

    assert set_text(client, "bundle", str(tiny_bundle)).successful
    client.start()
    assert client.ask("the mug").result.perception.text == "red mug"
    model = client.spin_until(lambda: next((s for s in reversed(statuses) if s.level == DiagnosticStatus.OK
                                            and s.name == "perception: model"), None))  # fmt: skip
    assert {v.key: v.value for v in model.values}["bundle"] == str(tiny_bundle)


def test_silent_publishers_are_a_warning(tiny_bundle, launch, client):
    statuses: list[DiagnosticStatus] = []
    client.node.create_subscription(DiagnosticArray, "/diagnostics", lambda msg: statuses.extend(msg.status), 10)
    launch(bundle=tiny_bundle, autostart="true", threads=1, no_image_warning=0.5)
    client.playing = False
    client.connect()
    warning = client.spin_until(lambda: next((s for s in statuses if s.name == "perception: camera"
                                              and s.level == DiagnosticStatus.WARN), None))  # fmt: skip
    assert warning.message.startswith("/image: 1 publishers, but no frame for")
    client.playing = True
    statuses.clear()
    client.spin_until(lambda: any(s.name == "perception: camera" and s.level == DiagnosticStatus.OK for s in statuses))


def test_language_looks_again_after_the_period_without_changing_ids(tiny_bundle, launch, client):
    launch(bundle=tiny_bundle, autostart="true", threads=1, reground_period=0.3, reground_min_interval=0.1)
    client.connect()
    query_id = client.instruct("the mug and the banana")

    def answers():
        return [p for p in client.perceptions if p.query_id == query_id]

    client.spin_until(lambda: len(answers()) > 10 and sum(p.info.language_ran for p in answers()) > 2, what="language again")
    answers = answers()
    tracks = {tuple(sorted((i.label, i.track_id) for i in p.instances)) for p in answers}
    assert len(tracks) == 1
    stamps = [(p.header.stamp.sec, p.header.stamp.nanosec) for p in answers]
    assert stamps == sorted(stamps)


@pytest.mark.parametrize("client", ["front"], indirect=True)
def test_several_cameras_share_one_model(tiny_bundle, launch, client):
    wrist = client.node.create_publisher(Image, "wrist/image", 1)
    launch(bundle=tiny_bundle, autostart="true", threads=1, cameras="['front','wrist']")
    client.connect()
    mirrored = client.scene.image()[:, ::-1]
    client.node.create_timer(0.1, lambda: wrist.publish(client.encode(client.publish_frame(), mirrored)))
    nameless = client.ask("the banana")
    assert nameless.result.error_msg == "camera: expected one of 'front', 'wrist', found ''."
    boxes = {name: client.ask("the banana", camera=name).result.perception.instances[0].box for name in ("front", "wrist")}
    assert boxes["front"].x_min == pytest.approx(380, abs=12) and boxes["wrist"].x_min == pytest.approx(100, abs=12)
    query_id = client.instruct("the banana")
    for name in ("front", "wrist"):
        answer = client.spin_until(lambda name=name: next((p for p in client.perceptions if p.query_id == query_id
                                                           and p.camera == name and not p.info.language_ran), None))  # fmt: skip
        assert answer.instances[0].box.x_min == pytest.approx(boxes[name].x_min, abs=12)


def test_recording_camera_feeds_the_node(tmp_path, tiny_bundle, launch, client):
    client.playing = False
    frame = client.scene.image()
    Picture.fromarray(frame).save(tmp_path / "a.png")
    Picture.fromarray(client.scene.depth()).save(tmp_path / "a-depth.png")
    Picture.fromarray(frame[:, ::-1]).save(tmp_path / "b.png")
    scenes = [{"name": "table", "frames": [{"image": "a.png", "depth": "a-depth.png", "intrinsics": [600, 600, 319.5, 239.5]}]},
              {"name": "photograph", "frames": [{"image": "b.png"}]}]  # fmt: skip
    (tmp_path / "recording.json").write_text(json.dumps({"rate_hz": 20.0, "scenes": scenes}))
    launch(bundle=tiny_bundle, autostart="true", threads=1, depth_tolerance=0.5)  # a busy machine delivers depth late
    client.node.destroy_publisher(client._image)  # else a late frame of the client's own could answer
    launch(script="recording_camera", folder=tmp_path, scene="table", frame_id="lens")
    images, infos, depths = [], [], []
    for kind, topic, into in ((Image, "image", images), (CameraInfo, "camera_info", infos), (Image, "depth/image", depths)):
        client.node.create_subscription(kind, topic, into.append, 5)
    client.connect()
    client.spin_until(lambda: images and infos and depths)
    assert np.array_equal(image_to_rgb(images[-1]), frame) and images[-1].header.frame_id == "lens"
    assert (infos[-1].k[0], infos[-1].k[2], infos[-1].width) == (600.0, 319.5, 640)
    assert depths[-1].encoding == "16UC1" and depth_in_metres(depths[-1], "depth")[0, 0] == pytest.approx(2.0)
    answer = client.ask("the mug").result.perception
    assert answer.instances[0].has_centroid and answer.instances[0].box.x_min == pytest.approx(100, abs=12)
    assert answer.centroid_frame == "lens"
    refused = set_text(client, "scene", "attic", node="/camera")
    assert not refused.successful and "no scene 'attic'; it holds table, photograph" in refused.reason
    assert set_text(client, "scene", "photograph", node="/camera").successful
    later = client.node.get_clock().now().nanoseconds + 10**9  # past the tolerance of the last depth image
    answer = client.ask("the mug", not_before=later).result.perception
    assert answer.instances[0].box.x_min == pytest.approx(420, abs=12) and not answer.instances[0].has_centroid


def test_bad_recording_and_bad_parameters_end_with_a_sentence(tmp_path, launch):
    camera = launch(script="recording_camera", folder=tmp_path / "nowhere")
    assert camera.process.wait(TIMEOUT) == 1
    assert f"folder: {tmp_path / 'nowhere' / 'recording.json'}: not found" in camera.output
    node = launch(backend="abacus")
    assert node.process.wait(TIMEOUT) == 1
    assert "Traceback" not in node.output
    assert "backend: expected one of auto, onnxruntime, " in node.output and node.output.strip().endswith("found 'abacus'.")


def test_interrupting_an_active_node_in_the_middle_of_an_answer_ends_it_cleanly(tiny_bundle, launch, client):
    node = launch(bundle=tiny_bundle, autostart="true", threads=1, instruction="the mug and the banana")
    client.connect()
    client.spin_until(lambda: len(client.perceptions) > 3, what="the standing instruction from the parameter")
    assert isinstance(client.perceptions[-1], Perception) and client.perceptions[-1].query_id == "instruction-1"
    goal = client.send("mugs forever", max_new_tokens=900)
    client.spin_until(lambda: goal.text)
    client.instruction.publish(String(data="the mug"))
    assert node.stop() == 0, node.output
    assert "Traceback" not in node.output and "terminate called" not in node.output
