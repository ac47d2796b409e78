"""Local bipartite matching against hand-computed cases, brute force and the reference's numbers."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from pixel_perception.evaluation.lbm import lbm, mean_lbm, segment_score

GOLDEN = Path(__file__).parents[1] / "golden" / "lbm.npz"
"""Four pairs of traces and their scores, as the metric's authors' code gave them (facebookresearch/connect-caption-and-trace)."""


def trace(*values):
    """A trace whose boxes have four equal coordinates, so that distances can be read off."""
    return np.repeat(np.array(values, dtype=float)[:, None], 4, axis=1)


def brute_force(short, long, k):
    p, m = len(short), len(long)
    best = math.inf
    for chosen in itertools.permutations(range(m), p):
        if all((i - k) * m / p <= j < (i + 1 + k) * m / p for i, j in enumerate(chosen)):
            best = min(best, sum(np.abs(short[i] - long[j]).mean() for i, j in enumerate(chosen)) / p)
    return best


def test_by_hand():
    assert lbm(trace(0.1, 0.5), trace(0.2, 0.9)) == pytest.approx((0.1 + 0.4) / 2)
    # With k = 1 each item may take the other's place.
    assert lbm(trace(0.1, 0.9), trace(0.9, 0.1), k=0) == pytest.approx(0.8)
    assert lbm(trace(0.1, 0.9), trace(0.9, 0.1), k=1) == pytest.approx(0.0)
    # Each of two items picks the better of its own half of four.
    assert lbm(trace(0.0, 1.0), trace(0.5, 0.1, 0.6, 0.7)) == pytest.approx((0.1 + 0.3) / 2)


def test_equal_traces_score_zero_and_order_of_arguments_does_not_matter():
    a, b = np.random.default_rng(0).random((23, 4)), np.random.default_rng(1).random((41, 4))
    assert lbm(a, a) == 0.0
    assert lbm(a, b, 1) == lbm(b, a, 1)


@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("p, m", [(1, 1), (3, 3), (3, 5), (4, 6), (2, 7)])
def test_equals_brute_force(p, m, k):
    random = np.random.default_rng(p * 10 + m)
    short, long = random.random((p, 4)), random.random((m, 4))
    assert segment_score(short, long, k) == pytest.approx(brute_force(short, long, k))


def test_long_traces_are_cut_into_segments():
    a, b = np.random.default_rng(2).random((30, 4)), np.random.default_rng(3).random((45, 4))
    parts = [segment_score(a[:20], b[:30]), segment_score(a[20:], b[30:])]
    assert lbm(a, b) == pytest.approx(np.mean(parts))


def test_more_freedom_never_scores_worse():
    a, b = np.random.default_rng(4).random((12, 4)), np.random.default_rng(5).random((17, 4))
    scores = [lbm(a, b, k) for k in range(4)]
    assert scores == sorted(scores, reverse=True)


def test_mean_over_samples():
    pairs = [(trace(0.0), trace(0.2)), (trace(0.0), trace(0.4))]
    assert mean_lbm(pairs) == pytest.approx(0.3)
    assert math.isnan(mean_lbm([]))


@pytest.mark.parametrize("bad", [np.zeros((0, 4)), np.zeros((3, 5)), np.zeros(4)])
def test_bad_traces_are_refused(bad):
    with pytest.raises(ValueError, match="trace"):
        lbm(bad, trace(0.5))


def test_negative_k_is_refused():
    with pytest.raises(ValueError, match="negative"):
        lbm(trace(0.5), trace(0.5), k=-1)


def test_against_the_reference():
    with np.load(GOLDEN) as arrays:
        names = [name for name in arrays.files if name.startswith("lbm")]
        assert len(names) == 8
        for name in names:
            i, k = name.removeprefix("lbm").split("_k")
            assert lbm(arrays[f"a{i}"], arrays[f"b{i}"], int(k)) == pytest.approx(float(arrays[name]), rel=1e-5)
