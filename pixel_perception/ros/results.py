"""A Result read back from its message: what a client of the node draws and measures."""

from __future__ import annotations

from pixel_perception import types as pp
from pixel_perception.msg import GroundedBox, GroundedSpan, Instance, Perception
from pixel_perception.ros.messages import mask_from_msg


def result_from_msg(msg: Perception) -> pp.Result:
    """Everything of a Perception that a Result holds. Raises ValueError where run lengths do not fit their crop."""
    return pp.Result(
        query_id=msg.query_id,
        image_size=(msg.image_width, msg.image_height),
        text=msg.text,
        targets=tuple(_target(span, msg.text) for span in msg.spans),
        instances=tuple(_instance(instance, msg.spans) for instance in msg.instances),
        words=tuple(pp.WordLocation(w.begin, w.end, (w.x_min, w.y_min, w.x_max, w.y_max)) for w in msg.words),
        regions=tuple(pp.Region(_box(r.box), r.caption, r.score) for r in msg.regions),
        finish_reason=msg.finish_reason,
        model=msg.info.model,
        digest=msg.info.digest,
    )


def _box(msg: GroundedBox) -> pp.Box:
    return msg.x_min, msg.y_min, msg.x_max, msg.y_max


def _target(span: GroundedSpan, text: str) -> pp.Target:
    label = text.encode()[span.begin : span.end].decode(errors="replace")
    quantity = "all" if span.quantity == GroundedSpan.ALL else "one"
    return pp.Target(label, quantity, span.score, span.present, (span.begin, span.end))


def _instance(msg: Instance, spans: list[GroundedSpan]) -> pp.Instance:
    span = spans[msg.target]
    track = int(msg.track_id) if msg.track_id else 0
    return pp.Instance(msg.label, msg.score, _box(msg.box), mask_from_msg(msg.mask), msg.mask_score, (span.begin, span.end),
                       msg.target, track)  # fmt: skip
