"""Overlays: what is drawn where, and that nothing outside of the image hurts."""

import numpy as np
import pytest

from pixel_perception import drawing
from pixel_perception.types import Instance, Mask, Region, Result, WordLocation

GRAY = np.full((120, 160, 3), 90, np.uint8)


def instance(x: int, y: int, w: int, h: int, label: str = "") -> Instance:
    mask = Mask((x, y, w, h), np.ones((h, w), bool))
    return Instance(label, 0.9, (x, y, x + w, y + h), mask, 0.9, (0, 0), 0, 1)


def test_mask_is_tinted_inside_and_outlined_at_its_edge():
    image = GRAY.copy()
    drawing.paint(image, np.ones((20, 30), bool), (50, 40), (200, 0, 0))
    assert tuple(image[50, 60]) == (145, 45, 45)  # half of 90 and half of the colour
    assert tuple(image[40, 60]) == tuple(image[59, 60]) == tuple(image[50, 50]) == tuple(image[50, 79]) == (200, 0, 0)
    assert (image[39] == 90).all() and (image[:, 80] == 90).all()


def test_mask_with_a_hole_leaves_the_hole():
    bits, image = np.ones((20, 20), bool), GRAY.copy()
    bits[8:12, 8:12] = False
    drawing.paint(image, bits, (0, 0), (200, 0, 0))
    assert (image[8:12, 8:12] == 90).all()
    assert tuple(image[7, 9]) == (200, 0, 0)


@pytest.mark.parametrize("corner", [(-10, -5), (150, 110), (155, -19), (-30, 60), (200, 10)])
def test_mask_over_the_border_is_clipped(corner):
    image, truth = GRAY.copy(), np.zeros((120, 160), bool)
    drawing.paint(image, np.ones((20, 30), bool), corner, (200, 0, 0))
    x, y = corner
    truth[max(0, y) : max(0, y + 20), max(0, x) : max(0, x + 30)] = True
    assert ((image != 90).any(-1) == truth).all()


def test_draw_keeps_shape_and_input():
    result = drawing.draw(GRAY, [instance(10, 60, 40, 30, "red mug"), instance(100, 60, 60, 60, "bowl")],
                          [Region((0, 0, 160, 120), "table", 1.0)], [WordLocation(0, 3, (10, 60, 50, 90))], "red mug")
    assert result.shape == GRAY.shape and result.dtype == np.uint8
    assert (GRAY == 90).all()
    first, second = result[75, 22], result[100, 130]
    assert tuple(first) != tuple(second), "two instances have two colours"


def test_box_on_the_far_border_is_visible():
    result = drawing.draw(GRAY, [instance(100, 60, 60, 60)])
    assert tuple(result[119, 120]) == tuple(result[90, 159]) == drawing.COLORS[0]


def test_overlay_adds_a_band_only_for_words():
    silent = Result("q", (160, 120), instances=(instance(10, 10, 5, 5),))
    assert drawing.overlay(GRAY, silent).shape == GRAY.shape
    spoken = Result("q", (160, 120), text="a mug, " * 30)
    tall = drawing.overlay(GRAY, spoken, "describe the scene")
    assert tall.shape[1:] == (160, 3) and tall.shape[0] > 220, "the band grows with the text"
    assert (tall[125:] < 90).any(), "the band has ink in it"


def test_words_that_lie_together_share_a_tag():
    words = [WordLocation(0, 3, (10, 10, 20, 20)), WordLocation(4, 7, (14, 8, 24, 22)), WordLocation(9, 13, (90, 10, 99, 20))]
    assert drawing.placed_words(words, "red mug, bowl", near=10) == [("red mug", 15, 15), ("bowl", 94.5, 15)]
    assert [said for said, _, _ in drawing.placed_words(words, "red mug, bowl", near=1)] == ["red", "mug", "bowl"]


def test_wrap_keeps_every_word_and_the_width():
    font = drawing._font(14)
    text = "the red mug left of the bowl and something to drink from"
    pieces = drawing.wrap(text, font, 100)
    assert " ".join(pieces) == text
    assert len(pieces) > 1 and all(font.getlength(piece) <= 100 for piece in pieces)


def test_contact_sheet_holds_every_picture():
    pictures = [np.full((50 + 10 * k, 200, 3), 10 * k, np.uint8) for k in range(5)]
    sheet = drawing.contact_sheet(pictures, 2, (100, 80))
    assert sheet.shape == (240, 200, 3)
    for k in range(5):
        assert abs(int(sheet[k // 2 * 80 + 8, k % 2 * 100 + 20, 0]) - 10 * k) < 3
