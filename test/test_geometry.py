import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixel_perception import masks
from pixel_perception.geometry import Letterbox

SIZES = st.tuples(st.integers(1, 2000), st.integers(1, 2000))


@given(SIZES)
def test_valid_part_fits_and_touches_the_frame(size):
    width, height = Letterbox(*size).valid
    assert 1 <= width <= 384 and 1 <= height <= 288
    assert width == 384 or height == 288


@given(SIZES, st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=5))
def test_points_and_boxes_come_back(size, fractions):
    letterbox = Letterbox(*size)
    boxes = np.array(fractions) * np.resize(size, 4)
    there = letterbox.to_network(boxes)
    assert there.dtype == np.float32 and there.min() >= 0 and there.max() <= 1
    assert np.allclose(letterbox.to_source(there), boxes, atol=1e-3)
    assert np.allclose(letterbox.to_source(there[:, :2]), boxes[:, :2], atol=1e-3)


def test_whole_box_is_the_image():
    letterbox = Letterbox(641, 311)
    assert np.allclose(letterbox.to_source(letterbox.whole), [0, 0, 641, 311])


def test_image_is_top_left_and_padded():
    frame = np.full((100, 400, 3), 255, np.uint8)
    out = Letterbox(400, 100).image(frame)
    assert out.shape == (288, 384, 3) and out.dtype == np.uint8
    assert (out[:96] == 255).all() and (out[96:] == 127).all()


def test_image_of_a_view_that_is_not_contiguous():
    frame = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    bgr = frame[:, :, ::-1]
    assert np.array_equal(Letterbox(640, 480).image(bgr), Letterbox(640, 480).image(bgr.copy()))


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(60, 900), st.integers(60, 900)), st.data())
def test_part_of_the_resized_logits_equals_the_whole(size, data):
    letterbox = Letterbox(*size)
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    logits = rng.normal(-3, 2, (72, 96)).astype(np.float32)
    x, y = data.draw(st.integers(0, size[0] - 2)), data.draw(st.integers(0, size[1] - 2))
    w, h = data.draw(st.integers(1, size[0] - x)), data.draw(st.integers(1, size[1] - y))
    whole = letterbox.resize_logits(logits)
    assert whole.shape == (size[1], size[0])
    part = letterbox.resize_logits(logits, (x, y, w, h))
    assert np.allclose(part, whole[y : y + h, x : x + w], atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(20, 900), st.integers(20, 900)), st.integers(0, 2**32 - 1))
def test_nothing_positive_lies_outside_the_covered_region(size, seed):
    letterbox = Letterbox(*size)
    rng = np.random.default_rng(seed)
    logits = np.full((72, 96), -1.0, np.float32)
    y, x = rng.integers(0, 72), rng.integers(0, 96)
    logits[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = 5
    whole = letterbox.resize_logits(logits)
    mask = masks.from_logits(logits, letterbox)
    full = np.zeros(whole.shape, bool) if mask is None else mask.full(*size)
    # Only pixels whose logit is zero up to rounding may differ between the two samplings.
    assert not ((full != (whole > 0)) & (np.abs(whole) > 1e-3)).any()
    if mask is not None:
        assert mask.bits.any(0)[[0, -1]].all() and mask.bits.any(1)[[0, -1]].all()


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(100, 1300), st.integers(100, 1300)), st.integers(0, 2**32 - 1))
def test_mask_comes_back_where_it_was(size, seed):
    """A rectangle seen by the network at stride 4 returns to its place in the source, to a fraction of a cell."""
    letterbox = Letterbox(*size)
    rng = np.random.default_rng(seed)
    sx, sy = (s / 4 for s in letterbox.scale)
    columns, rows = int(size[0] * sx), int(size[1] * sy)
    if columns < 8 or rows < 8:
        return
    x0, y0 = rng.integers(0, columns - 4), rng.integers(0, rows - 4)
    x1, y1 = rng.integers(x0 + 4, columns + 1), rng.integers(y0 + 4, rows + 1)
    logits = np.full((72, 96), -4.0, np.float32)
    logits[y0:y1, x0:x1] = 4.0
    full = masks.from_logits(logits, letterbox).full(*size)
    x, y = (np.arange(size[0]) + 0.5) * sx, (np.arange(size[1]) + 0.5) * sy
    surely_in = ((y > y0 + 0.5) & (y < y1 - 0.5))[:, None] & ((x > x0 + 0.5) & (x < x1 - 0.5))
    surely_out = ((y < y0 - 0.5) | (y > y1 + 0.5))[:, None] | ((x < x0 - 0.5) | (x > x1 + 0.5))
    assert full[surely_in].all() and not full[surely_out].any()
    # Of equal heights inside and outside the border lies on the edge of the cells.
    width, height = full.any(0).sum(), full.any(1).sum()
    assert width == pytest.approx((x1 - x0) / sx, abs=1.1) and height == pytest.approx((y1 - y0) / sy, abs=1.1)
