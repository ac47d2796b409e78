"""A perception node in a process of its own, and a client in this one that is its camera and its customer."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
# What rclpy reads when it starts, for this process and its children.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
for _name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
    os.environ[_name] = str(ROOT / "config" / "fastdds.xml")

import rclpy  # noqa: E402
from action_msgs.msg import GoalStatus  # noqa: E402
from builtin_interfaces.msg import Duration, Time  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from rclpy.action import ActionClient  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402
from std_msgs.msg import Header, String  # noqa: E402

from pixel_perception.action import Perceive  # noqa: E402
from pixel_perception.export.tiny import write_tiny_bundle  # noqa: E402
from pixel_perception.msg import Perception, Query  # noqa: E402
from pixel_perception.ros.camera import camera_info  # noqa: E402
from pixel_perception.ros.conversions import depth_to_image, rgb_to_image  # noqa: E402

WIDTH, HEIGHT, FOCAL, FAR, NEAR = 640, 480, 600.0, 2000, 1000
RED, YELLOW = (220, 20, 20), (230, 210, 20)
TIMEOUT = 240.0
"""Seconds for things that take a fraction of one, on a machine that may be busy."""


class Scene:
    """Coloured rectangles on grey, one metre before the camera on a wall two metres away; what the tiny bundle understands."""

    def __init__(self) -> None:
        self.things = {"mug": (RED, (100, 120, 220, 260)), "banana": (YELLOW, (380, 200, 540, 300))}

    def image(self) -> np.ndarray:
        """(480, 640, 3) uint8 RGB."""
        pixels = np.full((HEIGHT, WIDTH, 3), 110, np.uint8)
        for color, (x0, y0, x1, y1) in self.things.values():
            pixels[y0:y1, x0:x1] = color
        return pixels

    def depth(self) -> np.ndarray:
        """(480, 640) uint16 millimetres."""
        depth = np.full((HEIGHT, WIDTH), FAR, np.uint16)
        for _, (x0, y0, x1, y1) in self.things.values():
            depth[y0:y1, x0:x1] = NEAR
        return depth

    def box(self, name: str) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) in pixels."""
        return self.things[name][1]


class Client:
    """Publishes a scene at a rate and asks about it. Everything runs in `spin_until`, in the test's own thread."""

    def __init__(self, domain: int, camera: str = "", rate: float = 20.0) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("client", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.scene = Scene()
        self.perceptions: list[Perception] = []
        self.sent: dict[int, Header] = {}
        self.playing = True
        self.encode = rgb_to_image
        prefix = f"{camera}/" if camera else ""
        self._image = self.node.create_publisher(Image, prefix + "image", 1)
        self._info = self.node.create_publisher(CameraInfo, prefix + "camera_info", 1)
        self._depth = self.node.create_publisher(Image, prefix + "depth/image", 1)
        self.instruction = self.node.create_publisher(String, "instruction", 10)
        self.query = self.node.create_publisher(Query, "query", 10)
        self.node.create_subscription(Perception, "perception/perception", self.perceptions.append, 50)
        self.goals = ActionClient(self.node, Perceive, "perception/perceive")
        self.node.create_timer(1.0 / rate, self._tick)

    def _tick(self) -> None:
        if self.playing:
            self.publish_frame()

    def publish_frame(self) -> Header:
        """Publish depth, calibration and image with one stamp."""
        header = Header(stamp=self.node.get_clock().now().to_msg(), frame_id="camera_color_optical_frame")
        self.sent[nanoseconds(header.stamp)] = header
        self._depth.publish(depth_to_image(header, self.scene.depth()))
        intrinsics = (FOCAL, FOCAL, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
        self._info.publish(camera_info(header, intrinsics, WIDTH, HEIGHT))
        self._image.publish(self.encode(header, self.scene.image()))
        return header

    def spin_until(self, condition, timeout: float = TIMEOUT, what: str = "what the test waits for"):
        """Spin until `condition()` is true; returns its value."""
        end = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < end, f"timed out after {timeout:g} s: {what}"
            self.executor.spin_once(timeout_sec=0.05)
        return value

    def spin(self, seconds: float) -> None:
        """Spin for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)

    def connect(self) -> Client:
        """Wait until the node hears and is heard."""
        self.spin_until(self.goals.server_is_ready, what="action server")
        self.spin_until(lambda: self.instruction.get_subscription_count() and self.query.get_subscription_count())
        return self

    def call(self, kind: type, name: str, request: object) -> object:
        """Call a service, of the node where the name has no slash in front, and return its response."""
        client = self.node.create_client(kind, name if name.startswith("/") else f"perception/{name}")
        try:
            self.spin_until(client.service_is_ready, what=name)
            future = client.call_async(request)
            self.spin_until(future.done, what=f"answer of {name}")
            return future.result()
        finally:
            self.node.destroy_client(client)

    def change(self, transition: int) -> bool:
        """Ask for a lifecycle transition."""
        return self.call(ChangeState, "change_state", ChangeState.Request(transition=Transition(id=transition))).success

    def state(self) -> str:
        """Label of the node's lifecycle state."""
        return self.call(GetState, "get_state", GetState.Request()).current_state.label

    def start(self) -> None:
        """Configure and activate."""
        assert self.change(Transition.TRANSITION_CONFIGURE)
        assert self.change(Transition.TRANSITION_ACTIVATE)

    def instruct(self, text: str) -> str:
        """Say something on the topic and wait for the first answer to it; returns its query id."""

        def ids():  # a goal's answer comes on the same topic, perhaps later than its result
            return [p.query_id for p in self.perceptions if p.query_id.startswith("instruction-")]

        before = set(ids())
        self.instruction.publish(String(data=text))
        return self.spin_until(lambda: [i for i in ids() if i not in before], what=f"answer to {text!r}")[0]

    def send(self, text: str = "", **fields) -> Goal:
        """Send a goal; fields are those of Perceive.Goal, or of Query."""
        request = Perceive.Goal()
        request.query.text = text
        for name, value in fields.items():
            if name == "timeout":
                value = Duration(sec=int(value), nanosec=round(value % 1 * 1e9))
            if name == "not_before":
                value = Time(sec=value // 10**9, nanosec=value % 10**9)
            setattr(request if hasattr(request, name) else request.query, name, value)
        return Goal(self, request)

    def ask(self, text: str = "", **fields) -> Goal:
        """Send a goal and wait for its result."""
        goal = self.send(text, **fields)
        goal.wait()
        return goal

    def close(self) -> None:
        """Leave."""
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


class Goal:
    """A goal of the client: its feedback, then its status and result."""

    def __init__(self, client: Client, request: Perceive.Goal) -> None:
        self.feedback: list[Perceive.Feedback] = []
        self._client = client
        sent = client.goals.send_goal_async(request, lambda msg: self.feedback.append(msg.feedback))
        client.spin_until(sent.done, what="acceptance")
        self.handle = sent.result()
        assert self.handle.accepted
        self._result = self.handle.get_result_async()

    def wait(self) -> None:
        """Wait for the result, then for feedback that is still on its way."""
        self._client.spin_until(self._result.done, what="result")
        self._client.spin(0.1)

    def cancel(self) -> None:
        """Ask to cancel; the request must be accepted."""
        future = self.handle.cancel_goal_async()
        self._client.spin_until(future.done, what="answer to cancel")
        assert future.result().goals_canceling

    @property
    def text(self) -> str:
        return "".join(f.text_delta for f in self.feedback)

    @property
    def streamed(self) -> list:
        return [instance for f in self.feedback for instance in f.instances]

    @property
    def result(self) -> Perceive.Result:
        return self._result.result().result

    @property
    def status(self) -> str:
        names = {GoalStatus.STATUS_SUCCEEDED: "succeeded", GoalStatus.STATUS_ABORTED: "aborted",
                 GoalStatus.STATUS_CANCELED: "canceled"}  # fmt: skip
        return names[self._result.result().status]


class NodeProcess:
    """scripts/perception_node in a process of its own."""

    def __init__(self, domain: int, script: str = "perception_node", **parameters: object) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        if script == "perception_node":
            parameters = {"goal_timeout": TIMEOUT} | parameters
        arguments = [item for name, value in parameters.items() for item in ("-p", f"{name}:={value}")]
        environment = os.environ | {"ROS_DOMAIN_ID": str(domain), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / script), "--ros-args", *arguments],
            stdout=self._log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip

    @property
    def output(self) -> str:
        """What it has printed so far."""
        # The child shares the file's position: read without moving it.
        return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")

    def stop(self) -> int:
        """Interrupt it as Ctrl-C does; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the node did not stop within {TIMEOUT:g} s:\n{self.output}") from None


def nanoseconds(stamp: Time) -> int:
    """Nanoseconds of a stamp."""
    return stamp.sec * 10**9 + stamp.nanosec


@pytest.fixture(scope="session")
def domain():
    """A ROS domain that no other test run on this machine uses now."""
    for number in range(1, 102):
        lock = open(Path(tempfile.gettempdir()) / f"pixel-perception-domain-{number}.lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        yield number
        lock.close()
        return
    raise RuntimeError("all ROS domains from 1 to 101 are in use by other test runs")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory) -> Path:
    """Folder of the tiny bundle."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_tiny_bundle(folder)
    return folder


@pytest.fixture
def launch(domain):
    """Starts node processes that are stopped when the test ends."""
    started: list[NodeProcess] = []

    def start(**parameters: object) -> NodeProcess:
        started.append(NodeProcess(domain, **parameters))
        return started[-1]

    yield start
    for process in started:
        process.stop()


@pytest.fixture
def client(domain, request):
    """A client that publishes one camera, whose name is the fixture's parameter, or that has none."""
    client = Client(domain, camera=getattr(request, "param", ""))
    yield client
    client.close()


@pytest.fixture(scope="module")
def running(domain, tiny_bundle):
    """An active node with the tiny bundle, shared by the tests of a module, and a client of it."""
    node = NodeProcess(domain, bundle=tiny_bundle, autostart="true", threads=1, reground_period=0.0)
    client = Client(domain).connect()
    yield client
    client.close()
    assert node.stop() == 0, node.output
