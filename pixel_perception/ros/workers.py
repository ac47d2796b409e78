"""The two threads that work: one asks the language model, one follows the standing query with pixels alone.

Both share one model, whose sessions may run at the same time, and one condition that is notified when a frame, a job
or a stop arrives. A goal goes before a standing query, and interrupts it when language merely looks again.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from rclpy.impl.rcutils_logger import RcutilsLogger

from pixel_perception.ros.answerer import LOG_EVERY, Answerer
from pixel_perception.ros.answers import Answer, Frame, Job, Token
from pixel_perception.ros.inputs import CameraInput
from pixel_perception.ros.parameters import Settings
from pixel_perception.ros.standing import StandingQuery, View

IDLE = 0.5
"""Longest wait in seconds before a worker looks around without having been notified."""


Publish = Callable[[Answer], tuple[Answer, object]]
"""Makes the messages of an answer and sends them; returns the answer (a centroid may have failed) and its Perception."""


class Workers:
    """Schedules the work between activation and deactivation."""

    def __init__(self, answerer: Answerer, cameras: Mapping[str, CameraInput], changed: threading.Condition,
                 settings: Callable[[], Settings], publish: Publish, log: RcutilsLogger) -> None:
        self.busy = ""
        """Id of the query that language works on, for diagnostics."""
        self._answerer, self._cameras, self._changed = answerer, cameras, changed
        self._settings, self._publish, self._log = settings, publish, log
        self._outlet = threading.Lock()  # taken before `changed`: the standing query's answers go out in order
        self._stopped = False
        self._waiting: Job | None = None
        self._running: Job | None = None
        self._candidate: StandingQuery | None = None
        self._standing: StandingQuery | None = None
        self._first_look: StandingQuery | None = None
        """The candidate that language works on, even when a newer one has taken its place."""
        self._interrupted = False
        """A first look has been given up for a newer candidate since one was last brought to its end."""
        self._looking_again: Token | None = None
        self._threads = [threading.Thread(target=self._guard, args=(step,), name=name, daemon=True)
                         for name, step in (("language", self._language_step), ("pixels", self._pixel_step))]  # fmt: skip

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, deadline: float) -> bool:
        """End all jobs and both threads; False when one of them did not end within `deadline` seconds."""
        with self._changed:
            self._stopped = True
            unanswered = self._forget("deactivated")
            for job in filter(None, (self._waiting, self._running)):
                job.token.cancel("deactivated")
            if self._waiting is not None:
                unanswered.append(self._waiting)
            self._waiting = None
            self._changed.notify_all()
        for job in unanswered:
            self._end(job)
        end = time.monotonic() + deadline
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def submit(self, job: Job) -> None:
        """Answer a goal next; the goal before it is preempted. Returns at once."""
        with self._changed:
            replaced, self._waiting = self._waiting, job
            for other in (replaced, self._running):
                if other is not None:
                    other.token.cancel("preempted")
            if self._looking_again is not None:
                self._looking_again.cancel("preempted")
            self._changed.notify_all()
        if replaced is not None:
            self._end(replaced)

    def stand(self, standing: StandingQuery) -> None:
        """Put a standing query in the old one's place as soon as language has run for it once. Returns at once.

        Saying the same again changes nothing but that language looks again soon: ids and tracks stay. Queries that come faster
        than language runs do not keep it from ever coming to an end: of two first looks in a row one is not given up.
        """
        with self._changed:
            current = self._candidate or self._standing
            if current is not None and current.repeated_by(standing):
                current.look_again()
                self._changed.notify_all()
                return
            replaced, self._candidate = self._candidate, standing
            if replaced is not None and replaced is self._first_look:
                replaced = None if self._interrupted else replaced
                self._interrupted, self._first_look = True, self._first_look if replaced is None else None
            if replaced is not None:
                replaced.job.token.cancel("preempted")
            if self._looking_again is not None:
                self._looking_again.cancel("preempted")
            self._changed.notify_all()
        if replaced is not None:
            self._end(replaced.job)

    def clear(self) -> None:
        """Forget the standing query, and the one that was to take its place."""
        with self._changed:
            unanswered = self._forget("preempted")
        for job in unanswered:
            self._end(job)

    def _forget(self, reason: str) -> list[Job]:
        """Drop all standing queries; returns the jobs that have not been answered yet."""
        unanswered = [standing.job for standing in dict.fromkeys((self._candidate, self._first_look)) if standing]
        for standing in filter(None, (self._candidate, self._first_look, self._standing)):
            standing.job.token.cancel(reason)
        if self._looking_again is not None:
            self._looking_again.cancel(reason)
        self._candidate = self._standing = self._first_look = None
        return unanswered

    def wake(self) -> None:
        """Let both threads look around: a token was cancelled."""
        with self._changed:
            self._changed.notify_all()

    @property
    def standing_id(self) -> str:
        """Id of the standing query, or an empty string."""
        standing = self._standing
        return standing.job.query.id if standing else ""

    def dropped(self, camera: str) -> int:
        """Frames of a camera that were replaced before they could be followed, for the standing query."""
        standing = self._standing
        return standing.views[camera].dropped if standing and camera in standing.views else 0

    def _guard(self, step: Callable[[], None]) -> None:
        while not self._stopped:
            try:
                step()
            except Exception:  # a worker that dies leaves a node that looks alive
                self._log.error(f"A worker's step failed:\n{traceback.format_exc()}", throttle_duration_sec=LOG_EVERY)

    # Language: goals first, then standing queries that are due.

    def _language_step(self) -> None:
        with self._changed:
            work, patience = self._next_goal()
            if work is None:
                work, patience = self._next_grounding(patience)
            if work is None:
                if not self._stopped:
                    self._changed.wait(patience)
                return
        work()

    def _next_goal(self) -> tuple[Callable[[], None] | None, float]:
        job = self._waiting
        if job is None:
            return None, IDLE
        frame = None if job.token.is_set() else self._frame_for(job)
        if frame is None and not job.token.is_set():
            return None, min(IDLE, max(0.0, (job.token.deadline or float("inf")) - time.monotonic()))
        self._waiting, self._running = None, job
        return partial(self._goal, job, frame), 0.0

    def _goal(self, job: Job, frame: Frame | None) -> None:
        try:
            if frame is None:
                self._end(job)
            else:
                job.on_done(*self._publish(self._ask(job, frame, job.token)))
        finally:
            with self._changed:
                self._running = None

    def _next_grounding(self, patience: float) -> tuple[Callable[[], None] | None, float]:
        settings, now = self._settings(), time.monotonic()
        standing = self._candidate or self._standing
        if standing is None:
            return None, patience
        if standing is self._candidate and standing.job.token.is_set():
            self._candidate = None
            return partial(self._end, standing.job), 0.0
        for due, camera in standing.due(settings):
            if due > now:
                patience = min(patience, due - now)
                continue
            frame = self._frame_for(replace(standing.job, camera=camera))
            if frame is not None and frame.number > standing.views[camera].seen:
                first = not standing.views[camera].grounded or standing.views[camera].failed
                token = standing.job.token if first else Token()
                self._looking_again = None if first else token
                self._first_look = standing if standing is self._candidate else None
                return partial(self._ground, standing, camera, frame, token), 0.0
        if standing.job.token.deadline is not None and standing is self._candidate:
            patience = min(patience, max(0.0, standing.job.token.deadline - now))
        return None, patience

    def _ground(self, standing: StandingQuery, camera: str, frame: Frame, token: Token) -> None:
        view, job = standing.views[camera], replace(standing.job, camera=camera)
        if view.grounded:
            job.accepted = 0.0  # language looks again: nobody has asked just now
        answer = replace(self._ask(job, frame, token), tracked=True, dropped=view.dropped)
        with self._outlet:
            with self._changed:
                self._looking_again = None
                wanted = standing in (self._candidate, self._standing, self._first_look)
                if not wanted or token.reason in ("preempted", "deactivated"):
                    return  # nobody wants it any more, or a goal came between and it is still due
                answer, decided = self._adopt(standing, view, answer)
                stale = view.refreshed = view.seen > frame.number
                view.seen = max(view.seen, frame.number)
                self._changed.notify_all()
            if stale:
                return  # pixels have answered a newer frame already: stamps must not run backwards
            answer, message = self._publish(answer)
        if decided:
            job.on_done(answer, message)

    def _adopt(self, standing: StandingQuery, view: View, answer: Answer) -> tuple[Answer, bool]:
        """Let a view have what language found; True when that decided about a first look."""
        view.grounded = time.monotonic()
        view.failed = answer.error is not None and answer.error.code != "NOTHING_FOUND"
        last_try = standing is not self._candidate or standing.answers_once
        decided = standing in (self._candidate, self._first_look) and (
            not view.failed or last_try or answer.error.code == "INVALID_QUERY")  # fmt: skip
        self._first_look = None
        if decided:
            self._candidate = None if standing is self._candidate else self._candidate
            self._interrupted = False
        if not view.failed:
            answer = replace(answer, result=view.ground(answer.result))
            self._standing = standing
            standing.job = replace(standing.job, token=Token())  # the deadline was for the first answer
        return answer, decided

    def _frame_for(self, job: Job) -> Frame | None:
        """A frame that may answer the job, or None when it must wait for one."""
        if job.image is not None:
            return Frame(job.image, "image", job.camera, job.accepted)
        return self._cameras[job.camera].frame_for(job.not_before_ns, self._settings().max_image_age)

    def _ask(self, job: Job, frame: Frame, token: Token) -> Answer:
        self.busy = job.query.id
        try:
            return self._answerer.ask(job, frame, token)
        finally:
            self.busy = ""

    def _end(self, job: Job) -> None:
        """Answer a job that never met a frame."""
        error = job.token.error()
        if error.code == "TIMEOUT" and self._frame_for(job) is None:
            error = self._cameras[job.camera].no_frame(job.not_before_ns, time.monotonic() - job.accepted)
        answer = Answer(job.camera, job.query.id, error=error, finish_reason=job.token.reason)
        job.on_done(*self._publish(answer))

    # Pixels: the newest frame of each camera, while a standing query has targets.

    def _pixel_step(self) -> None:
        with self._changed:
            picked, patience = self._next_frame()
            if picked is None:
                if not self._stopped:
                    self._changed.wait(patience)
                return
        self._follow(*picked)

    def _next_frame(self) -> tuple[tuple[StandingQuery, View, Frame, int] | None, float]:
        standing, settings, patience = self._standing, self._settings(), IDLE
        if standing is None:
            return None, patience
        # The camera that has waited longest comes first.
        for camera, view in sorted(standing.views.items(), key=lambda item: item[1].followed):
            newest = self._cameras[camera].mailbox.newest(view.seen)
            if view.standing is None or newest is None:
                continue
            rest = 0.0 if settings.max_rate <= 0 else view.followed + 1.0 / settings.max_rate - time.monotonic()
            if rest <= 0:
                number, frame = newest
                skipped = number - view.seen - 1 if view.followed and settings.max_rate <= 0 else 0
                view.dropped += skipped
                view.seen, view.followed = number, time.monotonic()
                return (standing, view, frame, view.dropped), 0.0
            patience = min(patience, rest)
        return None, patience

    def _follow(self, standing: StandingQuery, view: View, frame: Frame, dropped: int) -> None:
        before = view.standing
        answer = replace(self._answerer.follow(standing.job, frame, before), dropped=dropped)
        with self._outlet:
            with self._changed:
                if standing is not self._standing:
                    return  # another query stands by now: its answers must not mix with these
                if answer.result is not None and not view.follow(before, answer.result, self._settings()):
                    return  # language has looked again meanwhile; the next frame shows what it found
                if view.lost:
                    self._changed.notify_all()
                answer, view.refreshed = replace(answer, language_ran=view.refreshed), False
            self._publish(answer)
