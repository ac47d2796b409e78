"""Cosines of what two backends compute."""

import numpy as np
import pytest

from pixel_perception.runtime.agreement import cosine


def test_one_vector():
    one = np.array([1.0, 2.0], np.float32)
    assert cosine(one, 3 * one) == pytest.approx(1) and cosine(one, -one) == pytest.approx(-1)
    assert cosine(0 * one, 0 * one) == 1 and cosine(0 * one, one) == 0
    assert cosine(one, one * np.nan) == cosine(one * np.inf, one * np.inf) == 0


def test_rows():
    a = np.array([[1, 0], [1, 1], [0, 0], [np.inf, 0]], np.float16)
    b = np.array([[0, 2], [1, 0], [0, 0], [1, 0]], np.float16)
    np.testing.assert_allclose(cosine(a, b), [0, 0.5**0.5, 1, 0])
