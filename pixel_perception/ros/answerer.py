"""From a frame and a query to an answer, whatever goes wrong: no threads, no topics."""

from __future__ import annotations

import time
import traceback
from dataclasses import replace

from rclpy.impl.rcutils_logger import RcutilsLogger

from pixel_perception.errors import PerceptionError
from pixel_perception.perception import Perception
from pixel_perception.ros.answers import Answer, Frame, Job, Token
from pixel_perception.ros.conversions import image_to_rgb
from pixel_perception.types import Standing

LOG_EVERY = 5.0
"""Seconds between two logs of one unexpected error, which may come with every frame."""


class Answerer:
    """Asks the model and turns its results and exceptions into answers."""

    def __init__(self, perception: Perception, log: RcutilsLogger) -> None:
        self._perception, self._log = perception, log

    def ask(self, job: Job, frame: Frame, token: Token) -> Answer:
        """Run language on a frame; stops when the token says so, with what there is."""
        started = time.monotonic()
        answer = Answer(job.camera, job.query.id, frame, target_frame=job.target_frame,
                        queued=started - max(frame.arrived, job.accepted))  # fmt: skip
        try:
            job.on_start()
            pixels = image_to_rgb(frame.msg, frame.topic)
            answer = replace(answer, pixels=pixels)
            result = self._perception.ask(pixels, job.query, lambda part: job.on_partial(part, frame), token)
        except Exception as error:  # whatever it is, somebody waits for an answer
            return replace(answer, error=self._understood(error))
        return judged(replace(answer, result=result, finish_reason=result.finish_reason), token)

    def follow(self, job: Job, frame: Frame, standing: Standing) -> Answer:
        """Run pixels alone on a frame."""
        answer = Answer(frame.camera, job.query.id, frame, queued=time.monotonic() - frame.arrived, language_ran=False,
                        tracked=True, target_frame=job.target_frame)  # fmt: skip
        try:
            pixels = image_to_rgb(frame.msg, frame.topic)
            answer = replace(answer, pixels=pixels)
            result = self._perception.follow(pixels, standing)
        except Exception as error:  # the next frame may be better
            return replace(answer, error=self._understood(error))
        return judged(replace(answer, result=result, finish_reason=result.finish_reason), Token())

    def _understood(self, error: Exception) -> PerceptionError:
        if isinstance(error, PerceptionError):
            return error
        if isinstance(error, MemoryError):
            return PerceptionError("OUT_OF_MEMORY", "expected enough memory for the query; use a smaller image or fewer boxes.")
        self._log.error(f"Unexpected error while answering:\n{traceback.format_exc()}", throttle_duration_sec=LOG_EVERY)
        return PerceptionError("INTERNAL", f"{type(error).__name__}: {error}")


def judged(answer: Answer, token: Token) -> Answer:
    """The answer with the error that its result stands for: stopped, or none of the named targets is there."""
    result = answer.result
    if result.finish_reason == "cancelled":
        return replace(answer, error=token.error() if token.is_set() else None, finish_reason=token.reason or "cancelled")
    if result.targets and not result.instances and not any(target.present for target in result.targets):
        labels = ", ".join(repr(target.label) for target in result.targets)
        return replace(answer, error=PerceptionError("NOTHING_FOUND", f"query: nothing in the image for {labels}."))
    return answer
