"""Queries read from messages, results written into messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point

from pixel_perception import masks
from pixel_perception import types as pp
from pixel_perception.action import Perceive
from pixel_perception.errors import PerceptionError
from pixel_perception.msg import (
    CaptionedRegion,
    GroundedBox,
    GroundedSpan,
    InferenceInfo,
    Instance,
    InstanceMask,
    Perception,
    Query,
    WordLocation,
)
from pixel_perception.ros.answers import Answer

TASKS = {getattr(Query, task.value): task for task in pp.Task}
LONGEST_NS = (1 << 31) * 1_000_000_000 - 1
"""Of a Duration, whose seconds are an int32."""
ANY_SIZE = 1 << 24
"""Pixels of an image that every sensible box fits into: checks what can be checked before there is an image."""


def error_code(error: PerceptionError | None) -> int:
    """Number of an error's code in action/Perceive; 0 for no error."""
    return Perceive.Goal.NONE if error is None else getattr(Perceive.Goal, error.code)


def query_from_msg(msg: Query, new_id: str, max_new_tokens: int, score_threshold: float) -> pp.Query:
    """A query message as a Query, with `new_id` where it has none and `score_threshold` where it has none (0: the bundle's).

    Raises PerceptionError INVALID_QUERY for whatever is wrong with it whatever the image will be.
    """
    if msg.task not in TASKS:
        known = ", ".join(f"{number} ({task.value})" for number, task in sorted(TASKS.items()))
        raise PerceptionError("INVALID_QUERY", f"task: expected one of {known}, found {msg.task}.")
    query = pp.Query(
        text=msg.text,
        task=TASKS[msg.task],
        boxes=tuple((b.x_min, b.y_min, b.x_max, b.y_max) for b in msg.boxes),
        points=tuple((p.x, p.y) for p in msg.points),
        id=msg.id or new_id,
        score_threshold=msg.score_threshold or score_threshold or None,
        max_instances=msg.max_instances,
        max_new_tokens=max_new_tokens,
    )
    query.checked(ANY_SIZE, ANY_SIZE)
    return query


def duration(seconds: float) -> Duration:
    """Seconds as a Duration, from 0 to the longest that there is."""
    nanoseconds = min(max(0, round(seconds * 1e9)), LONGEST_NS)
    return Duration(sec=nanoseconds // 1_000_000_000, nanosec=nanoseconds % 1_000_000_000)


def box_to_msg(box: pp.Box, score: float) -> GroundedBox:
    """A box in source pixels."""
    x0, y0, x1, y1 = (float(v) for v in box)
    return GroundedBox(x_min=x0, y_min=y0, x_max=x1, y_max=y1, score=float(score))


def mask_to_msg(mask: pp.Mask) -> InstanceMask:
    """Run lengths inside the mask's crop."""
    msg = InstanceMask()
    msg.roi.x_offset, msg.roi.y_offset, msg.roi.width, msg.roi.height = (int(v) for v in mask.roi)
    counts = masks.run_lengths(mask.bits).astype(f"u{msg.counts.itemsize}", copy=False)
    msg.counts.frombytes(counts.data.cast("B"))
    msg.area = mask.area
    return msg


def mask_from_msg(msg: InstanceMask) -> pp.Mask:
    """The mask of its message. Raises ValueError where the run lengths do not add up to the crop."""
    roi = (msg.roi.x_offset, msg.roi.y_offset, msg.roi.width, msg.roi.height)
    return pp.Mask(roi, masks.from_run_lengths(np.asarray(msg.counts), roi[2], roi[3]))


def instance_to_msg(instance: pp.Instance, mask_value: int, tracked: bool) -> Instance:
    """One instance, without a centroid."""
    return Instance(
        mask_value=mask_value,
        track_id=str(instance.track_id) if tracked else "",
        label=instance.label,
        score=float(instance.score),
        box=box_to_msg(instance.box, instance.score),
        mask=mask_to_msg(instance.mask),
        mask_score=float(instance.mask_score),
        target=instance.target,
    )


def result_to_msg(result: pp.Result, tracked: bool) -> Perception:
    """Everything that a Result says; header, camera, errors and info are the caller's."""
    msg = Perception(query_id=result.query_id, text=result.text)
    msg.image_width, msg.image_height = result.image_size
    for i, target in enumerate(result.targets):
        span = GroundedSpan(begin=target.span[0], end=target.span[1], score=float(target.score), present=bool(target.present))
        span.quantity = GroundedSpan.ALL if target.quantity == "all" else GroundedSpan.ONE
        span.instances = [k for k, instance in enumerate(result.instances) if instance.target == i]
        msg.spans.append(span)
    msg.words = [word_to_msg(word) for word in result.words]
    msg.instances = [instance_to_msg(instance, k + 1, tracked) for k, instance in enumerate(result.instances)]
    msg.regions = [CaptionedRegion(box=box_to_msg(r.box, r.score), caption=r.caption, score=float(r.score))
                   for r in result.regions]  # fmt: skip
    return msg


def word_to_msg(word: pp.WordLocation) -> WordLocation:
    """A word's bytes and place."""
    x0, y0, x1, y1 = (float(v) for v in word.box)
    return WordLocation(begin=word.begin, end=word.end, x_min=x0, y_min=y0, x_max=x1, y_max=y1)


def answer_to_msg(answer: Answer) -> Perception:
    """The message of an answer, complete but for centroids, the time after the model, and the image's age."""
    msg = Perception() if answer.result is None else result_to_msg(answer.result, answer.tracked)
    if answer.frame is not None:
        source = answer.frame.msg
        msg.header = source.header
        msg.image_width, msg.image_height = source.width, source.height
        msg.centroid_frame = source.header.frame_id
    msg.camera, msg.query_id = answer.camera, answer.query_id
    msg.finish_reason = answer.finish_reason
    msg.info = _info(answer)
    set_error(msg, answer.error)
    return msg


def set_error(msg: Perception, error: PerceptionError | None) -> None:
    """Write an error, or none, into a message."""
    msg.error_code = error_code(error)
    msg.error_msg = error.message if error else ""


def set_centroids(msg: Perception, surfaces: Sequence[np.ndarray | str], frame_id: str) -> None:
    """Centres of visible surfaces, (N, 3) points in metres; a sentence for an instance says why it has none."""
    msg.centroid_frame = frame_id
    for instance, points in zip(msg.instances, surfaces, strict=True):
        if isinstance(points, str):
            instance.has_centroid, instance.centroid_error = False, points
        else:
            x, y, z = points.mean(0).tolist()
            instance.has_centroid, instance.centroid = True, Point(x=x, y=y, z=z)


def label_image(instances: Sequence[pp.Instance], width: int, height: int) -> np.ndarray:
    """(height, width) uint16: 0 background, k + 1 where instance k is; of two, the one that comes first."""
    labels = np.zeros((height, width), np.uint16)
    for k in reversed(range(len(instances))):
        x, y, w, h = instances[k].mask.roi
        labels[y : y + h, x : x + w][instances[k].mask.bits] = k + 1
    return labels


def _info(answer: Answer) -> InferenceInfo:
    info = InferenceInfo(language_ran=answer.language_ran, frames_dropped=answer.dropped, queue=duration(answer.queued))
    if answer.result is not None:
        timings = answer.result.timings
        info.model, info.digest = answer.result.model, answer.result.digest
        info.vision = duration(timings.encode + timings.pixels)
        info.language = duration(timings.prefix + timings.language)
    return info
