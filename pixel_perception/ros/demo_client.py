"""The demo's client: asks the node through topic and action, times every answer, keeps what came in and out.

Runs in a process of its own, as a robot's program would; `pixel_perception.demo.run` starts it. What it finds goes to
`results.json` and to an MCAP bag in the output folder.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import rclpy
from builtin_interfaces.msg import Duration
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from pixel_perception.action import Perceive
from pixel_perception.demo.bag import Bag
from pixel_perception.demo.recording import RecordedFrame, Recording
from pixel_perception.demo.script import Answer, Milliseconds, Step, header, line, median, score, steps
from pixel_perception.msg import Perception as PerceptionMsg
from pixel_perception.msg import Query as QueryMsg
from pixel_perception.plain import plain
from pixel_perception.ros.answers import stamp_ns
from pixel_perception.ros.messages import box_to_msg
from pixel_perception.ros.results import result_from_msg
from pixel_perception.srv import GetModelInfo, SetQuery

ANSWER_WITHIN = 60.0
"""Seconds until an answer counts as lost."""
START_WITHIN = 180.0
"""Seconds for the node to load and the camera to play."""
KEPT = 40
"""Images kept, to be found again by the stamp of an answer."""
SHOWN = 6
"""Answers of a standing instruction that go to the bag and the page."""
INPUTS = (("image", Image), ("camera_info", CameraInfo), ("depth/image", Image))


class Client:
    """Publishes, calls and listens; everything runs in the thread that waits."""

    def __init__(self, recording: Recording, bag: Bag) -> None:
        rclpy.init()
        self.node = rclpy.create_node("demo_client")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.recording, self.bag = recording, bag
        self.frames = {zlib.crc32(frame.image().tobytes()): frame for frame in recording.frames}
        self.kept: dict[str, OrderedDict[int, object]] = {topic: OrderedDict() for topic, _ in INPUTS}
        self.seen: OrderedDict[int, RecordedFrame | None] = OrderedDict()
        """Stamp of an image to the recorded frame that it shows."""
        self.answers: list[tuple[float, PerceptionMsg]] = []
        """Messages of the node's topic with the time.monotonic() of their arrival."""
        # A robot's program would take the newest image only; this one must find every image that was answered again.
        qos = QoSProfile(depth=KEPT, reliability=ReliabilityPolicy.RELIABLE)
        for topic, kind in INPUTS:
            self.node.create_subscription(kind, topic, lambda msg, topic=topic: self._keep(topic, msg), qos)
        self.node.create_subscription(PerceptionMsg, "perception/perception",
                                      lambda msg: self.answers.append((time.monotonic(), msg)), 10)  # fmt: skip
        self.instruction = self.node.create_publisher(String, "instruction", 10)
        self.perceive = ActionClient(self.node, Perceive, "perception/perceive")
        self.set_query = self.node.create_client(SetQuery, "perception/set_query")
        self.model_info = self.node.create_client(GetModelInfo, "perception/get_model_info")
        self.set_camera = self.node.create_client(SetParameters, "camera/set_parameters")

    def close(self) -> None:
        """Leave the graph."""
        self.node.destroy_node()
        rclpy.try_shutdown()

    def _keep(self, topic: str, msg: Image | CameraInfo) -> None:
        stamp, kept = stamp_ns(msg.header.stamp), self.kept[topic]
        kept[stamp] = msg
        if len(kept) > KEPT:
            kept.popitem(last=False)
        if topic == "image":
            self.seen[stamp] = self.frames.get(zlib.crc32(msg.data))

    def wait(self, ready: Callable[[], object], seconds: float, what: str) -> object:
        """Spin until `ready()` is true and return its value. Raises TimeoutError that says `what` did not happen."""
        deadline = time.monotonic() + seconds
        while not (value := ready()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: did not happen within {seconds:g} s")
            self.executor.spin_once(timeout_sec=0.05)
        return value

    def call(self, client, request, what: str):
        """Call a service and wait for its answer."""
        future = client.call_async(request)
        self.wait(future.done, ANSWER_WITHIN, what)
        return future.result()

    def start(self) -> GetModelInfo.Response:
        """Wait until the node is loaded and images come. Raises TimeoutError, or RuntimeError with the node's own sentence."""
        self.wait(lambda: all(c.service_is_ready() for c in (self.set_query, self.model_info, self.set_camera))
                  and self.perceive.server_is_ready(), START_WITHIN, "camera and node appear")  # fmt: skip
        deadline = time.monotonic() + START_WITHIN
        while not (info := self.call(self.model_info, GetModelInfo.Request(), "~/get_model_info")).loaded:
            if info.error_code:
                raise RuntimeError(info.error_msg)
            if time.monotonic() > deadline:
                raise TimeoutError(f"the node loads its model: did not happen within {START_WITHIN:g} s")
            self.wait_a_moment(0.2)
        self.wait(lambda: self.seen, START_WITHIN, "an image arrives")
        return info

    def wait_a_moment(self, seconds: float) -> None:
        """Spin for a while."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)

    def look_at(self, scene: str) -> int:
        """Turn the camera to a scene; returns the stamp (ns) of the second image of it that arrived, so that the node has one."""
        value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=scene)
        request = SetParameters.Request(parameters=[Parameter(name="scene", value=value)])
        before = max(self.seen, default=0)
        done = self.call(self.set_camera, request, "camera/set_parameters").results[0]
        if not done.successful:
            raise RuntimeError(done.reason)

        def shown() -> int:
            stamps = [s for s, f in self.seen.items() if s > before and f is not None and f.scene == scene]
            return stamps[1] if len(stamps) > 1 else 0

        return self.wait(shown, ANSWER_WITHIN, f"two images of scene {scene} arrive")

    def clear(self) -> None:
        """End a standing instruction, so that the next request has the node to itself."""
        self.call(self.set_query, SetQuery.Request(clear=True), "~/set_query")

    def ask(self, step: Step, number: int) -> Answer:
        """Ask one step and wait for its answer; a lost answer is one without a result, never an exception."""
        try:
            stamp = self.look_at(step.scene)
            msg, total, first = self._by_topic(step) if step.via == "topic" else self._by_action(step, number, stamp)
        except (TimeoutError, RuntimeError) as error:
            return Answer(step, None, None, -1, str(error), None, None)
        return self.answer(step, msg, total, first)

    def answer(self, step: Step, msg: PerceptionMsg, total: float, first: float | None) -> Answer:
        """The answer in a message, with the frame that it belongs to; all of it goes to the bag."""
        frame, result = self._frame_of(msg), result_from_msg(msg)
        self.record(msg)
        info = msg.info
        parts = (info.image_age, info.queue, info.vision, info.language, info.postprocess)
        ms = Milliseconds(1000 * total, None if first is None else 1000 * first, *(stamp_ns(part) * 1e-6 for part in parts))
        # "Nothing of the kind is there" is an answer; every other error means that there is none.
        lost = msg.error_code not in (Perceive.Goal.NONE, Perceive.Goal.NOTHING_FOUND)
        return Answer(step, frame, None if lost else result, msg.error_code, msg.error_msg, ms, score(step, frame, result))

    def _frame_of(self, msg: PerceptionMsg) -> RecordedFrame | None:
        stamp = stamp_ns(msg.header.stamp)
        with suppress(TimeoutError):  # the node may have answered before this process looked at the image
            self.wait(lambda: stamp in self.seen, 1.0, "the image of an answer arrives")
        return self.seen.get(stamp)

    def record(self, msg: PerceptionMsg) -> None:
        """Write an answer and the images it belongs to into the bag."""
        stamp = stamp_ns(msg.header.stamp)
        for topic, kept in self.kept.items():
            if stamp in kept:
                self._write(f"/{topic}", kept.pop(stamp), stamp)
        self._write("/perception/perception", msg, stamp + stamp_ns(msg.info.image_age))

    def _write(self, topic: str, msg: object, stamp: int) -> None:
        package, name = type(msg).__module__.split(".")[0], type(msg).__name__
        self.bag.write(topic, f"{package}/msg/{name}", stamp, serialize_message(msg))

    def _now(self) -> int:
        return self.node.get_clock().now().nanoseconds

    def _by_topic(self, step: Step) -> tuple[PerceptionMsg, float, None]:
        known, sent = {msg.query_id for _, msg in self.answers}, time.monotonic()
        text = String(data=step.text)
        self.instruction.publish(text)
        self._write("/instruction", text, self._now())

        def answered() -> tuple[float, PerceptionMsg] | None:
            new = ((t, m) for t, m in self.answers if m.query_id.startswith("instruction-") and m.query_id not in known)
            return next(new, None)

        arrived, msg = self.wait(answered, ANSWER_WITHIN, f"an answer to {step.text!r}")
        return msg, arrived - sent, None

    def _by_action(self, step: Step, number: int, stamp: int) -> tuple[PerceptionMsg, float, float | None]:
        query = QueryMsg(id=f"demo-{number}", task=getattr(QueryMsg, step.task), text=step.text)
        if step.box_of:
            thing = next(t for t in self.recording.scene(step.scene).frames[0].things if t.name == step.box_of)
            query.boxes = [box_to_msg(thing.box, 0.0)]
        goal = Perceive.Goal(query=query, timeout=Duration(sec=int(ANSWER_WITHIN)))
        goal.not_before.sec, goal.not_before.nanosec = divmod(stamp, 1_000_000_000)
        self._write("/demo/goals", query, self._now())
        sent, firsts, text = time.monotonic(), [], []

        def feedback(msg) -> None:
            text.append(msg.feedback.text_delta)
            if msg.feedback.instances and not firsts:
                firsts.append(time.monotonic() - sent)

        future = self.perceive.send_goal_async(goal, feedback_callback=feedback)
        self.wait(future.done, ANSWER_WITHIN, f"the goal {step.title!r} is accepted")
        if not future.result().accepted:
            raise RuntimeError(f"the goal {step.title!r} was refused")
        outcome = future.result().get_result_async()
        self.wait(outcome.done, ANSWER_WITHIN, f"a result of {step.title!r}")
        total, result = time.monotonic() - sent, outcome.result().result
        # The end may be missing: rclpy's client throws feedback away that the result has overtaken.
        if not result.perception.text.startswith("".join(text)):
            raise RuntimeError(f"the streamed text {''.join(text)!r} does not begin the result's {result.perception.text!r}")
        return result.perception, total, firsts[0] if firsts else None

    def follow(self, step: Step) -> dict:
        """Let the instruction that was just given stand for `step.follow_s` seconds; returns what arrived, as plain values."""
        start, until, pictures = len(self.answers), time.monotonic() + step.follow_s, []
        with suppress(TimeoutError):
            self.wait(lambda: len(self.answers) >= start + SHOWN, step.follow_s, "frames are followed")
        for _, msg in self.answers[start : start + SHOWN]:  # now, because images are not kept for long
            frame = self._frame_of(msg)
            self.record(msg)
            pictures.append({"frame": frame and [frame.scene, frame.index], "result": plain(result_from_msg(msg))})
        self.wait_a_moment(until - time.monotonic())
        rows = self.answers[start:]
        ages = [stamp_ns(m.info.image_age) * 1e-6 for _, m in rows]
        ious = [score(step, self._frame_of(m), result_from_msg(m)) for _, m in rows]
        known = [v for v in ious if v is not None]
        quiet = [stamp_ns(m.info.vision) * 1e-6 for _, m in rows if not m.info.language_ran]
        seconds = rows[-1][0] - rows[0][0] if len(rows) > 1 else 0.0
        return {"text": step.text, "seconds": round(seconds, 2), "frames": len(rows),
                "frames_per_s": round((len(rows) - 1) / seconds, 2) if seconds else None,
                "language_runs": sum(m.info.language_ran for _, m in rows), "vision_ms": median(quiet),
                "image_age_ms": median(ages), "worst_image_age_ms": round(max(ages), 1) if ages else None,
                "iou": round(sum(known) / len(known), 3) if known else None, "pictures": pictures}  # fmt: skip


def answer_to_plain(answer: Answer) -> dict:
    """A row of results.json."""
    return {
        "step": asdict(answer.step), "title": answer.step.title, "arrived": answer.arrived,
        "error_code": answer.error_code, "error": answer.error, "iou": answer.iou, "ms": answer.ms and asdict(answer.ms),
        "frame": answer.frame and [answer.frame.scene, answer.frame.index],
        "result": answer.result and plain(answer.result),
    }  # fmt: skip


def main() -> int:
    """Ask everything, print a line per answer, write results.json and the bag; 0 when every answer arrived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recording", required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    recording, output = Recording.open(arguments.recording), Path(arguments.output)
    asked, rows, following = steps(recording), [], None
    with Bag(output / "bag") as bag:
        client = Client(recording, bag)
        try:
            info = client.start()
            print(f"{info.name} {info.version}, {info.backend}\n\n{header()}", flush=True)
            for number, step in enumerate(asked):
                answer = client.ask(step, number)
                rows.append(answer)
                print(line(answer), flush=True)
                if step.follow_s and answer.arrived:
                    following = client.follow(step)
                if step.via == "topic":
                    client.clear()
            info = client.call(client.model_info, GetModelInfo.Request(), "~/get_model_info")
        except (TimeoutError, RuntimeError) as error:
            print(f"demo: {error}", flush=True)
            return 1
        finally:
            client.close()
    output.joinpath("results.json").write_text(json.dumps({
        "model": {"name": info.name, "version": info.version, "digest": info.digest, "backend": info.backend,
                  "bundle_mb": round(info.bundle_bytes / 1e6, 1)},
        "memory_mb": round(info.resident_bytes / 1e6, 1), "rate_hz": recording.rate_hz,
        "answers": [answer_to_plain(row) for row in rows], "following": following,
    }, indent=1))  # fmt: skip
    return 0 if all(row.arrived for row in rows) and (following is None or following["frames"] > 0) else 1


if __name__ == "__main__":
    raise SystemExit(main())
