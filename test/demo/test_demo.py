"""The demo as a user starts it: three ROS 2 processes and what they leave behind, with the tiny bundle."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("pixel_perception.msg")

from pixel_perception.export.tiny import write_tiny_bundle  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The finished process and its output folder."""
    folder = tmp_path_factory.mktemp("demo")
    write_tiny_bundle(folder / "bundle")
    command = [sys.executable, "-m", "pixel_perception.cli", "demo", "--bundle", str(folder / "bundle"), "--output", str(folder / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)
    return done, folder / "out"


def test_every_answer_arrives(demo):
    done, out = demo
    assert done.returncode == 0, done.stdout + done.stderr + (out / "node.log").read_text()
    results = json.loads((out / "results.json").read_text())
    assert len(results["answers"]) >= 8 and all(row["arrived"] for row in results["answers"])
    assert all(row["frame"] and row["frame"][0] == row["step"]["scene"] for row in results["answers"]), "of the scene that was asked"
    assert results["following"]["frames"] > 5 and results["memory_mb"] > 20
    by_kind = {row["step"]["kind"]: row["result"] for row in results["answers"]}
    assert by_kind["caption of a box"]["regions"][0]["caption"] == "red mug"  # to the tiny bundle everything red is one
    assert by_kind["narration"]["words"]


def test_page_and_table(demo):
    done, out = demo
    results = json.loads((out / "results.json").read_text())
    page = (out / "index.html").read_text()
    assert page.count("overlays/") == len(list((out / "overlays").iterdir())) >= len(results["answers"])
    assert all(row["title"][:20] in done.stdout for row in results["answers"])
    assert "frames/s" in done.stdout and "MB resident" in done.stdout


def test_bag_holds_inputs_and_results(demo):
    from rosbags.rosbag2 import Reader
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    _, out = demo
    types = get_typestore(Stores.ROS2_JAZZY)
    for file in sorted((ROOT / "msg").glob("*.msg")):
        types.register(get_types_from_msg(file.read_text(), f"pixel_perception/msg/{file.stem}"))
    texts, images, answered = [], set(), []
    with Reader(out / "bag") as bag:
        for connection, _, data in bag.messages():
            msg = types.deserialize_cdr(data, connection.msgtype)
            if connection.topic == "/instruction":
                texts.append(msg.data)
            elif connection.topic == "/image":
                images.add((msg.header.stamp.sec, msg.header.stamp.nanosec))
            elif connection.topic == "/perception/perception":
                answered.append((msg.header.stamp.sec, msg.header.stamp.nanosec))
    assert "the red apple" in texts
    assert len(answered) >= 8 and set(answered) <= images, "every answer comes with the image it belongs to"
