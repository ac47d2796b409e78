import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pixel_perception import masks
from pixel_perception.geometry import Letterbox
from pixel_perception.types import Mask

BITS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


@given(BITS)
def test_run_lengths_come_back(bits):
    counts = masks.run_lengths(bits)
    assert counts.dtype == np.uint32 and counts.sum() == bits.size
    assert (counts[1:] > 0).all()
    assert np.array_equal(masks.from_run_lengths(counts, bits.shape[1], bits.shape[0]), bits)


def test_run_lengths_start_with_zeros():
    assert masks.run_lengths(np.array([[True, True, False]])).tolist() == [0, 2, 1]
    assert masks.run_lengths(np.array([[False, True], [True, False]])).tolist() == [1, 2, 1]
    assert masks.run_lengths(np.zeros((2, 3), bool)).tolist() == [6]


def test_run_lengths_that_do_not_add_up():
    with pytest.raises(ValueError, match="add up to 6, found 5"):
        masks.from_run_lengths(np.array([2, 3]), 3, 2)


@given(BITS)
def test_coco_comes_back(bits):
    height, width = bits.shape
    mask = masks.crop(bits)
    if mask is not None:
        assert np.array_equal(masks.from_coco(masks.to_coco(mask, width, height)), bits)


def test_coco_equals_the_reference_implementation():
    reference = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(3)
    for shape in ((1, 1), (7, 5), (120, 160), (480, 640)):
        bits = rng.random(shape) < 0.4
        bits[0, 0] = True
        bits[shape[0] // 3 :, : shape[1] // 2] = False
        code = masks.to_coco(masks.crop(bits), shape[1], shape[0])
        assert code["counts"].encode() == reference.encode(np.asfortranarray(bits.astype(np.uint8)))["counts"]


@given(BITS, st.integers(0, 9), st.integers(0, 9))
def test_crop_is_tight_and_comes_back(bits, x, y):
    mask = masks.crop(bits, x, y)
    if mask is None:
        assert not bits.any()
        return
    whole = np.zeros((y + bits.shape[0], x + bits.shape[1]), bool)
    whole[y:, x:] = bits
    assert np.array_equal(mask.full(whole.shape[1], whole.shape[0]), whole)
    assert mask.bits.any(0)[[0, -1]].all() and mask.bits.any(1)[[0, -1]].all()
    assert mask.area == np.count_nonzero(bits)


@given(BITS)
def test_components_equal_flood_filling(bits):
    labels, areas = masks.components(bits)
    expected = _flood(bits)
    assert np.array_equal(labels, expected)
    assert areas.tolist() == np.bincount(expected.ravel())[1:].tolist()


def _flood(bits):
    labels = np.zeros(bits.shape, int)
    for start in zip(*np.nonzero(bits), strict=True):
        if labels[start]:
            continue
        label, queue = labels.max() + 1, [start]
        labels[start] = label
        while queue:
            y, x = queue.pop()
            for v in range(max(0, y - 1), min(bits.shape[0], y + 2)):
                for u in range(max(0, x - 1), min(bits.shape[1], x + 2)):
                    if bits[v, u] and not labels[v, u]:
                        labels[v, u] = label
                        queue.append((v, u))
    return labels


def test_components_of_a_long_spiral():
    bits = np.zeros((61, 61), bool)
    y = x = 0
    length, step = 60, 0
    bits[0, 0] = True
    for turn in range(60):
        dy, dx = ((0, 1), (1, 0), (0, -1), (-1, 0))[turn % 4]
        for _ in range(length - step):
            y, x = y + dy, x + dx
            bits[y, x] = True
        step += 2 if turn % 2 else 0
        if length - step <= 1:
            break
    assert len(masks.components(bits)[1]) == 1


@given(BITS, BITS)
def test_iou_equals_the_whole_masks(a, b):
    first, second = masks.crop(a, 2, 1), masks.crop(b, 0, 3)
    if first is None or second is None:
        return
    u, v = first.full(20, 20), second.full(20, 20)
    assert masks.iou(first, second) == np.count_nonzero(u & v) / np.count_nonzero(u | v)


def test_main_part_drops_crumbs_and_keeps_halves():
    bits = np.zeros((20, 40), bool)
    bits[2:12, 2:12] = True
    bits[2:12, 15:20] = True
    bits[15:17, 30:32] = True
    part = masks.main_part(masks.crop(bits, 5, 5))
    assert part.roi == (7, 7, 18, 10) and part.area == 150


def test_from_logits_of_nothing_is_none():
    assert masks.from_logits(np.full((72, 96), -1.0, np.float32), Letterbox(640, 480)) is None
    # Positive in the padding only: below a 640x160 image the frame is grey.
    logits = np.full((72, 96), -1.0, np.float32)
    logits[40:50, 10:20] = 3
    assert masks.from_logits(logits, Letterbox(640, 160)) is None


def _blob(*rectangles, value=6.0):
    out = np.full((72, 96), -6.0, np.float32)
    for y0, y1, x0, x1 in rectangles:
        out[y0:y1, x0:x1] = value
    return out


def _bits(parts):
    return [p > 0 for p in parts]


def test_split_by_proposals_covers_the_union_once():
    union = _blob((10, 30, 10, 50))
    proposals = np.stack([_blob((10, 30, 10, 30)), _blob((10, 30, 30, 50)), _blob((9, 31, 9, 31), value=4), _blob((40, 60, 10, 30))])
    parts = _bits(masks.split_union(union, proposals, np.array([0.9, 0.8, 0.7, 0.95]), 72 * 96))
    assert len(parts) == 2
    assert np.array_equal(parts[0] | parts[1], union > 0) and not (parts[0] & parts[1]).any()
    assert np.array_equal(parts[0], proposals[0] > 0)


def test_split_keeps_a_part_that_no_proposal_explains():
    # The third part is smaller than 0.3 % of the image and is nobody's.
    union = _blob((10, 30, 10, 30), (40, 60, 60, 80), (3, 6, 80, 83))
    parts = _bits(masks.split_union(union, np.stack([_blob((12, 29, 12, 29))]), np.array([0.9]), 72 * 96))
    assert len(parts) == 2
    # The rim around the smaller proposal belongs to its instance.
    assert np.array_equal(parts[0], _blob((10, 30, 10, 30)) > 0)
    assert np.array_equal(parts[1], _blob((40, 60, 60, 80)) > 0)


def test_split_finds_a_thing_that_touches_another():
    union = _blob((10, 30, 10, 50))
    parts = _bits(masks.split_union(union, np.stack([_blob((10, 30, 10, 30))]), np.array([0.9]), 72 * 96))
    assert [np.count_nonzero(p) for p in parts] == [400, 400]


def test_split_without_proposals_uses_parts_and_keeps_even_the_smallest_when_alone():
    none = np.zeros((0, 72, 96), np.float32)
    union = _blob((10, 20, 10, 20), (40, 50, 60, 70), (60, 61, 5, 7))
    assert len(masks.split_union(union, none, np.zeros(0), 72 * 96)) == 2
    assert len(masks.split_union(_blob((60, 61, 5, 7)), none, np.zeros(0), 72 * 96)) == 1
    assert masks.split_union(_blob(), none, np.zeros(0), 72 * 96) == []


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_split_is_always_disjoint_and_inside(seed):
    rng = np.random.default_rng(seed)
    low = rng.normal(-0.5, 3, (13, 9, 12))
    maps = np.kron(low, np.ones((8, 8))).astype(np.float32)
    parts = _bits(masks.split_union(maps[0], maps[1:], rng.random(12), 72 * 96))
    total = np.sum(parts, 0) if parts else np.zeros((72, 96))
    assert total.max() <= 1 and not (total.astype(bool) & ~(maps[0] > 0)).any()
    assert bool(parts) == bool((maps[0] > 0).any())


def test_confidence_is_the_mean_probability_inside():
    logits = np.array([[-9.0, 0.0, np.log(3.0)]], np.float32)
    assert masks.confidence(logits) == pytest.approx(0.75)
    assert masks.confidence(np.full((2, 2), -1.0)) == 0.0


def test_postprocessing_of_a_camera_image_takes_milliseconds():
    letterbox = Letterbox(640, 480)
    logits = _blob((20, 50, 30, 70)) + np.random.default_rng(0).normal(0, 1, (72, 96)).astype(np.float32)

    def once():
        start = time.perf_counter()
        mask = masks.main_part(masks.from_logits(logits, letterbox))
        masks.run_lengths(mask.bits)
        return time.perf_counter() - start

    assert isinstance(masks.from_logits(logits, letterbox), Mask)
    assert min(once() for _ in range(20)) < 0.02
