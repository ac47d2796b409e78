"""Identities kept between frames: an instance keeps its id while it overlaps, or stays close to, where it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pixel_perception import masks
from pixel_perception.boxes import iou_matrix
from pixel_perception.types import Instance, Track

LEAST_OVERLAP = 0.1
"""Mask or box IoU from which an instance is the one that was there."""
NEAR = 1.0
"""Without overlap (a small thing, a quick camera), the distance of centres in box sizes that still makes it the same."""
FORGET = 15
"""Frames after which an object that is not seen loses its id."""


def assign(instances: Sequence[Instance], tracks: Sequence[Track], next_id: int
           ) -> tuple[tuple[Instance, ...], tuple[Track, ...], int]:
    """Give each instance the id of the track that it continues, or a new one.

    Only instances of one target are compared with each other; pairs are taken best first, each track once. Pure and
    deterministic. Returns the instances with their ids in the order given, the tracks to hand to the next call, and the next
    free id.
    """
    taken: dict[int, Track] = {}
    pairs = sorted((-_likeness(instance, track), i, k) for i, instance in enumerate(instances)
                   for k, track in enumerate(tracks) if instance.target == track.target)
    used: set[int] = set()
    for likeness, i, k in pairs:
        if likeness < 0 and i not in taken and k not in used:
            taken[i] = tracks[k]
            used.add(k)
    named, kept = [], []
    for i, instance in enumerate(instances):
        if i in taken:
            identity = taken[i].id
        else:
            identity, next_id = next_id, next_id + 1
        named.append(replace(instance, track_id=identity))
        kept.append(Track(identity, instance.target, instance.box, instance.mask))
    lost = [replace(t, missed=t.missed + 1) for k, t in enumerate(tracks) if k not in used and t.missed < FORGET]
    return tuple(named), tuple(kept + lost), next_id


def _likeness(instance: Instance, track: Track) -> float:
    """0 where they cannot be the same; more than 1 for overlap, less for mere nearness."""
    overlap = max(masks.iou(instance.mask, track.mask), float(iou_matrix([instance.box], [track.box])[0, 0]))
    if overlap >= LEAST_OVERLAP:
        return 1.0 + overlap
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = instance.box, track.box
    size = math.sqrt(max(math.sqrt((ax1 - ax0) * (ay1 - ay0) * (bx1 - bx0) * (by1 - by0)), 1.0))
    distance = math.hypot(ax0 + ax1 - bx0 - bx1, ay0 + ay1 - by0 - by1) / 2 / size
    return max(0.0, 1.0 - distance / NEAR)
