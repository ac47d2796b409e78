"""Local bipartite matching: how well one trace of boxes follows another (Meng et al., 2021; PixelLLM section 5.2).

Two traces say where somebody looked while telling the same thing, at different speeds. Items are matched one to
one, each only to items at about the same relative time; the score is the mean distance of the matched boxes, lower
is better.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

SEGMENT = 20
"""Items of the shorter trace that are matched at once."""


def segment_score(short: np.ndarray, long: np.ndarray, k: int = 0) -> float:
    """Mean distance of the best local matching of ``short`` (p, 4) to ``long`` (m, 4), p <= m.

    Item i may be matched to j when (i - k) m / p <= j < (i + 1 + k) m / p. When no complete matching exists, item i
    is compared with item i, as in the reference.
    """
    p, m = len(short), len(long)
    distance = np.abs(short[:, None] - long[None]).mean(-1)
    i, j = np.arange(p)[:, None], np.arange(m)
    allowed = ((i - k) * m <= j * p) & (j * p < (i + 1 + k) * m)  # in integers: no edge is lost to rounding
    try:
        rows, columns = linear_sum_assignment(np.where(allowed, distance, np.inf))
    except ValueError:  # infeasible
        rows = columns = np.arange(p)
    return float(distance[rows, columns].sum() / p)


def lbm(predicted: np.ndarray, target: np.ndarray, k: int = 0) -> float:
    """Score of one trace against another: the mean over segments of the shorter one.

    Args:
        predicted, target: (N, 4) and (M, 4) as (x0, y0, x1, y1), fractions of the image.
        k: how many items to either side of its own time an item may be matched. The paper uses 0.

    Returns:
        The score, 0 for equal traces.

    Raises:
        ValueError: when a trace is empty or not (N, 4), or k is negative.
    """
    traces = [np.asarray(x, dtype=np.float64) for x in (predicted, target)]
    for trace in traces:
        if trace.ndim != 2 or trace.shape[1] != 4 or not len(trace):
            raise ValueError(f"a trace is a non-empty (N, 4) array of boxes, not {trace.shape}")
    if k < 0:
        raise ValueError(f"k must not be negative, got {k}")
    short, long = sorted(traces, key=len)
    p, m = len(short), len(long)
    scores = []
    for start in range(0, p, SEGMENT):
        end = min(start + SEGMENT, p)
        part = long[start * m // p : math.ceil(end * m / p)]
        scores.append(segment_score(short[start:end], part, k))
    return float(np.mean(scores))


def mean_lbm(pairs: Sequence[tuple[np.ndarray, np.ndarray]], k: int = 0) -> float:
    """Mean of ``lbm`` over (predicted, target) pairs; nan when there are none."""
    return float(np.mean([lbm(a, b, k) for a, b in pairs])) if pairs else math.nan
