"""The action Perceive: accepted at once, answered by the workers, streamed as feedback.

The execute callback is a coroutine that waits for its answer, so that the executor's one thread stays free. The whole
result is built before the goal's terminal transition, and the callback returns right after it: rclpy loses results
that are set later (rclpy#1598, #1617).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode
from rclpy.task import Future
from sensor_msgs.msg import Image

from pixel_perception.action import Perceive
from pixel_perception.errors import PerceptionError
from pixel_perception.msg import Perception
from pixel_perception.ros import messages
from pixel_perception.ros.answers import Answer, Frame, Job, Token, stamp_ns
from pixel_perception.ros.parameters import Settings
from pixel_perception.ros.workers import Workers
from pixel_perception.types import Partial

GONE = (rclpy_implementation.RCLError, rclpy_implementation.InvalidHandle)
"""What publishing raises once the context or the publisher is gone; rclpy exports neither by a public name."""
RESULT_KEPT = 10
"""Seconds for which a result can be asked for once its goal has ended, as in rcl; rclpy's own 900 hold every mask and image."""


class Goal:
    """One accepted goal: its token, its feedback, and the times that the result reports."""

    def __init__(self, handle: ServerGoalHandle) -> None:
        self.accepted = time.monotonic()
        self.token = Token()
        self.first_mask = 0.0
        self._handle = handle
        self._state = Perceive.Feedback.WAITING_FOR_IMAGE
        self._sequence = 0
        self._instances = 0
        self._text = ""

    def waiting(self) -> None:
        """Tell that the goal stands in line."""
        self._send()

    def started(self) -> None:
        """Tell that language runs."""
        self._state = Perceive.Feedback.ANSWERING
        self._send()

    def partial(self, partial: Partial, frame: Frame) -> None:
        """Pass on new text or a new instance."""
        if partial.kind == "text" and partial.text:
            self._text += partial.text
            self._send(partial.text)
        elif partial.kind == "instance" and partial.instance is not None:
            self.first_mask = self.first_mask or time.monotonic() - self.accepted
            self._instances += 1
            self._send("", [messages.instance_to_msg(partial.instance, self._instances, tracked=False)])

    def rest(self, text: str) -> None:
        """Send what is left of the answer's text, so that the parts join to the whole."""
        if len(text) > len(self._text) and text.startswith(self._text):
            self._send(text[len(self._text) :])
            self._text = text

    def _send(self, text: str = "", instances: list | None = None) -> None:
        if not self._handle.is_active:
            return
        feedback = Perceive.Feedback(state=self._state, sequence=self._sequence, text_delta=text, instances=instances or [])
        self._sequence += 1
        with suppress(*GONE):  # the process is on its way out; its client learns of it without feedback
            self._handle.publish_feedback(feedback)


class PerceiveServer:
    """Serves ~/perceive from the node's first moment, so that even an unconfigured node says why it cannot answer."""

    def __init__(self, node: LifecycleNode, workers: Callable[[], Workers | None], settings: Callable[[], Settings],
                 choose_camera: Callable[[str], str], why_not: Callable[[], PerceptionError]) -> None:
        """`workers` gives None while the node is not active, and `why_not` the error to answer with then."""
        self._node, self._workers, self._settings = node, workers, settings
        self._choose_camera, self._why_not = choose_camera, why_not
        self._goals: dict[bytes, Goal] = {}
        """From acceptance to result: a cancel may come in before the executor begins with the goal."""
        self._count = 0
        self._server = ActionServer(
            node, Perceive, "~/perceive", self._execute,
            goal_callback=lambda _: GoalResponse.ACCEPT, handle_accepted_callback=self._on_accepted,
            cancel_callback=self._on_cancel, result_timeout=RESULT_KEPT,
        )  # fmt: skip

    def destroy(self) -> None:
        """Give the action server back."""
        self._server.destroy()

    def _on_accepted(self, handle: ServerGoalHandle) -> None:
        self._goals[bytes(handle.goal_id.uuid)] = Goal(handle)
        handle.execute()

    def _on_cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        goal = self._goals.get(bytes(handle.goal_id.uuid))
        if goal is None:
            return CancelResponse.REJECT
        goal.token.cancel("cancelled")
        workers = self._workers()
        if workers is not None:
            workers.wake()
        return CancelResponse.ACCEPT

    async def _execute(self, handle: ServerGoalHandle) -> Perceive.Result:
        uuid = bytes(handle.goal_id.uuid)
        goal, answered, executor = self._goals[uuid], Future(), self._node.executor
        try:
            job = self._job(handle.request, goal)
            workers = self._workers()
            if workers is None:
                raise self._why_not()
            # From the worker's thread into the executor's; a task also wakes an executor that waits.
            job.on_done = lambda *answer: executor.create_task(answered.set_result, answer)
            goal.waiting()
            workers.submit(job)
            answer, message = await answered
        except PerceptionError as error:
            result = Perceive.Result(finish_reason="error")
            result.perception.query_id = handle.request.query.id
            return self._finish(handle, goal, result, error)
        finally:
            del self._goals[uuid]
        return self._finish(handle, goal, self._result(goal, answer, message), answer.error)

    def _job(self, request: Perceive.Goal, goal: Goal) -> Job:
        settings = self._settings()
        self._count += 1
        query = messages.query_from_msg(request.query, f"goal-{self._count}", request.max_new_tokens or settings.max_new_tokens,
                                        settings.score_threshold)  # fmt: skip
        timeout = stamp_ns(request.timeout) * 1e-9 or settings.goal_timeout
        if timeout < 0 or request.not_before.sec < 0:
            raise PerceptionError("INVALID_QUERY", f"timeout and not_before: expected 0 or more, found {timeout:g} s "
                                                   f"and {request.not_before.sec} s.")  # fmt: skip
        goal.token.deadline = goal.accepted + timeout
        given = request.image if request.image.width or request.image.height or request.image.encoding else None
        request.image = Image()  # rclpy keeps requests as long as results
        return Job(
            query, request.camera if given is not None else self._choose_camera(request.camera),
            goal.token, given, stamp_ns(request.not_before), request.target_frame, goal.accepted,
            on_start=goal.started, on_partial=goal.partial,
        )  # fmt: skip

    def _result(self, goal: Goal, answer: Answer, message: Perception) -> Perceive.Result:
        if answer.result is not None:
            goal.rest(answer.result.text)
            if answer.result.instances and not goal.first_mask:
                goal.first_mask = time.monotonic() - goal.accepted
        return Perceive.Result(finish_reason=answer.finish_reason, perception=message,
                               first_mask=messages.duration(goal.first_mask))  # fmt: skip

    def _finish(self, handle: ServerGoalHandle, goal: Goal, result: Perceive.Result,
                error: PerceptionError | None) -> Perceive.Result:
        messages.set_error(result.perception, error)
        result.error_code, result.error_msg = result.perception.error_code, result.perception.error_msg
        result.total = messages.duration(time.monotonic() - goal.accepted)
        if error is None or error.code == "NOTHING_FOUND":
            handle.succeed()
        elif error.code == "CANCELLED":
            handle.canceled()
        else:
            handle.abort()
        return result
