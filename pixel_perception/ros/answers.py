"""What passes between the threads: frames in, jobs through, answers out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from sensor_msgs.msg import Image

from pixel_perception.errors import PerceptionError
from pixel_perception.types import Partial, Query, Result

REASONS = {
    "cancelled": ("CANCELLED", "The goal was cancelled by its client."),
    "preempted": ("PREEMPTED", "A newer request took this one's place."),
    "timeout": ("TIMEOUT", "The answer was not complete before the timeout; it holds what there was."),
    "deactivated": ("NOT_ACTIVE", "The node was deactivated while it worked on this request."),
}
"""Why a job was stopped: finish_reason to error code and sentence."""


class Token:
    """Tells a job to stop: by a reason given from another thread, or by its deadline."""

    def __init__(self, deadline: float | None = None) -> None:
        """`deadline` is a time of time.monotonic()."""
        self.deadline = deadline
        self._reason = ""
        self._lock = threading.Lock()

    def cancel(self, reason: str) -> None:
        """Stop with `reason` (a key of REASONS); the first reason counts."""
        with self._lock:
            self._reason = self._reason or reason

    def is_set(self) -> bool:
        """True once the job must stop."""
        return bool(self.reason)

    @property
    def reason(self) -> str:
        """Why it must stop, or an empty string."""
        with self._lock:
            if not self._reason and self.deadline is not None and time.monotonic() >= self.deadline:
                self._reason = "timeout"
            return self._reason

    def error(self) -> PerceptionError:
        """The error that the reason stands for."""
        return PerceptionError(*REASONS[self.reason])


@dataclass(frozen=True, eq=False)
class Frame:
    """An image message as it arrived."""

    msg: Image
    topic: str
    camera: str
    arrived: float
    """time.monotonic() of the arrival."""
    number: int = 0
    """Number of the frame in its camera's mailbox; 0 for an image that came with a goal."""

    @property
    def stamp_ns(self) -> int:
        """Nanoseconds of the header's stamp."""
        return stamp_ns(self.msg.header.stamp)


def stamp_ns(stamp: object) -> int:
    """Nanoseconds of a builtin_interfaces Time or Duration."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


@dataclass(frozen=True, eq=False)
class Answer:
    """All that is known when the work on one query and one frame has ended."""

    camera: str
    query_id: str
    frame: Frame | None = None
    pixels: np.ndarray | None = None
    """(H, W, 3) uint8 RGB of the frame."""
    result: Result | None = None
    error: PerceptionError | None = None
    finish_reason: str = "error"
    queued: float = 0.0
    """Seconds from the arrival of frame and query, whichever came later, to the start of the work."""
    language_ran: bool = True
    tracked: bool = False
    """True for answers to a standing query, whose instances keep their track ids."""
    target_frame: str = ""
    dropped: int = 0
    """Frames of this camera that were replaced before they could be followed."""


def _ignore(*_: object) -> None:
    """Nobody listens."""


@dataclass(eq=False)
class Job:
    """A question for the language model, with the way back to whoever asked."""

    query: Query
    camera: str
    token: Token
    image: Image | None = None
    """Used instead of the camera's newest frame."""
    not_before_ns: int = 0
    target_frame: str = ""
    accepted: float = field(default_factory=time.monotonic)
    on_start: Callable[[], None] = _ignore
    on_partial: Callable[[Partial, Frame], None] = _ignore
    on_done: Callable[[Answer, object], None] = _ignore
    """Called once, with the answer and the Perception message made of it."""
