import numpy as np

from pixel_perception.masks import crop
from pixel_perception.tracking import FORGET, assign
from pixel_perception.types import Instance


def _thing(x, y, size=20, target=0):
    bits = np.ones((size, size), bool)
    mask = crop(bits, x, y)
    return Instance("cup", 0.9, (float(x), float(y), float(x + size), float(y + size)), mask, 0.9, (0, 3), target, 0)


def _ids(instances):
    return [i.track_id for i in instances]


def test_ids_follow_their_objects_whatever_the_order():
    first, tracks, free = assign([_thing(10, 10), _thing(100, 10)], (), 1)
    assert _ids(first) == [1, 2] and free == 3
    second, tracks, free = assign([_thing(103, 12), _thing(14, 12)], tracks, free)
    assert _ids(second) == [2, 1] and free == 3


def test_targets_are_kept_apart():
    _, tracks, free = assign([_thing(10, 10, target=0)], (), 1)
    named, _, _ = assign([_thing(10, 10, target=1)], tracks, free)
    assert _ids(named) == [2]


def test_a_small_thing_that_moved_beyond_itself_keeps_its_id_and_a_far_one_does_not():
    _, tracks, free = assign([_thing(10, 10)], (), 1)
    assert _ids(assign([_thing(27, 10)], tracks, free)[0]) == [1]
    assert _ids(assign([_thing(80, 10)], tracks, free)[0]) == [2]


def test_overlap_beats_nearness():
    _, tracks, free = assign([_thing(10, 10)], (), 1)
    assert _ids(assign([_thing(28, 10), _thing(18, 10)], tracks, free)[0]) == [2, 1]


def test_an_object_comes_back_within_memory_only():
    _, tracks, free = assign([_thing(10, 10)], (), 1)
    for _ in range(FORGET):
        _, tracks, free = assign([], tracks, free)
    assert _ids(assign([_thing(12, 10)], tracks, free)[0]) == [1]
    _, tracks, free = assign([], tracks, free)
    assert tracks == () and _ids(assign([_thing(12, 10)], tracks, free)[0]) == [2]


def test_same_input_same_ids():
    _, tracks, free = assign([_thing(10, 10), _thing(10, 10)], (), 1)
    frames = [_thing(11, 10), _thing(11, 10), _thing(12, 10)]
    assert _ids(assign(frames, tracks, free)[0]) == _ids(assign(frames, tracks, free)[0]) == [1, 2, 3]
