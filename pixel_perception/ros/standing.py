"""The standing query: what it is, what language found for it in each camera, and when language must look again.

Nothing here locks; the workers hold their condition while they use it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pixel_perception import tracking
from pixel_perception.ros.answers import Job
from pixel_perception.ros.parameters import Settings
from pixel_perception.types import Result, Standing, Target

RETRY = 1.0
"""Seconds until a grounding that failed is tried again."""


@dataclass(eq=False)
class View:
    """A standing query in one camera."""

    standing: Standing | None = None
    """What pixels alone can follow; None before language has run, and where its answer names no target."""
    scores: tuple[float, ...] = ()
    """Presence of each target when language ran."""
    grounded: float = 0.0
    """time.monotonic() of the last try of language; 0 for never."""
    failed: bool = False
    lost: bool = False
    """A score has fallen so far that language must look again."""
    refreshed: bool = False
    """Language has looked again on a frame older than the last that was answered; the next answer tells of it."""
    seen: int = 0
    """Number of the last frame that was answered."""
    followed: float = 0.0
    dropped: int = 0

    def due(self, settings: Settings) -> float:
        """time.monotonic() at which language should look (again); infinity for never."""
        if not self.grounded:
            return 0.0
        if self.failed:
            return self.grounded + RETRY
        times = [float("inf")]
        if settings.reground_period > 0:
            times.append(self.grounded + max(settings.reground_period, settings.reground_min_interval))
        if self.lost:
            times.append(self.grounded + settings.reground_min_interval)
        return min(times)

    def ground(self, result: Result) -> Result:
        """Take over what language found; instances keep the ids of the tracks that they continue. Returns the result with them."""
        found, old = result.standing, self.standing
        if found is not None and old is not None and old.tracks:
            instances, tracks, next_id = tracking.assign(result.instances, old.tracks, max(old.next_id, found.next_id))
            found = replace(found, tracks=tracks, next_id=next_id)
            result = replace(result, instances=instances, standing=found)
        self.standing, self.lost, self.failed = found, False, False
        self.scores = tuple(t.score for t in result.targets)
        return result

    def follow(self, before: Standing, result: Result, settings: Settings) -> bool:
        """Take over what pixels found; False when language has put something else in place meanwhile."""
        if self.standing is not before:
            return False
        self.standing = result.standing or before
        self.lost = self.lost or fallen(self.scores, result.targets, settings.reground_score_drop)
        return True


def fallen(scores: tuple[float, ...], targets: tuple[Target, ...], part: float) -> bool:
    """True when a target's score is below `part` of what it was."""
    return any(target.score < part * score for score, target in zip(scores, targets, strict=False))


@dataclass(eq=False)
class StandingQuery:
    """A query that is answered on every frame of its cameras."""

    job: Job
    cameras: tuple[str, ...]
    answers_once: bool = False
    """Somebody waits for the first answer (the service): any error then ends it."""
    anonymous: bool = False
    """Its id was made by the node."""
    views: dict[str, View] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.views = {camera: View() for camera in self.cameras}

    def repeated_by(self, other: StandingQuery) -> bool:
        """True when `other` asks the same of the same cameras and nobody waits for its answer."""
        if other.answers_once or self.cameras != other.cameras:
            return False
        ours, theirs = self.job.query, other.job.query
        return replace(ours, id=theirs.id) == theirs and (other.anonymous or ours.id == theirs.id)

    def look_again(self) -> None:
        """Let language look again as soon as `reground_min_interval` allows."""
        for view in self.views.values():
            view.lost = True

    def due(self, settings: Settings) -> list[tuple[float, str]]:
        """(time, camera) of the next run of language for each camera, earliest first."""
        return sorted((view.due(settings), camera) for camera, view in self.views.items())
