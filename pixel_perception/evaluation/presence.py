"""Does a model know what is not there? cgF1, calibration of presence, and false positives at a fixed recall.

cgF1 (SAM 3, SA-Co) judges a request for all of a kind, some of which name nothing in the picture, by two figures:

* pmF1, positive micro-F1: masks of all requests that have a target, matched one to one by IoU; a match of IoU >= t is a hit,
  everything else a miss or a false alarm. Mean over t = 0.50, 0.55 ... 0.95.
* MCC: Matthews correlation of "something was found" with "something is there", over all requests.

cgF1 = pmF1 x MCC. The reference adds 1e-4 and 1e-6 to denominators; here they are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pixel_perception.evaluation import metrics

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
RECALLS = (0.8, 0.9, 0.95)
"""Recalls at which false positives are reported."""


def matthews(tp: int, fp: int, fn: int, tn: int) -> float:
    """Matthews correlation of a decision, -1..1; 0 where a row or a column of the table is empty, as nothing correlates then."""
    margin = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(margin) if margin else 0.0


def cgf1(tables: Sequence[np.ndarray], thresholds: Sequence[float] = IOU_THRESHOLDS) -> dict[str, float | int | None]:
    """cgF1 of many requests.

    Args:
        tables: for each request the IoU (P, T) of its predicted masks (those above the model's own threshold) and the true
            ones; P or T may be 0, and the shape says so.
        thresholds: of IoU.

    Returns:
        n, positives, negatives; cgf1, pmf1, mcc; cgf1_50 and pmf1_50 at IoU 0.5; tp, fp, fn, tn of presence. pmf1 and cgf1 are
        None without a request that has a target.

    Raises:
        ValueError: for a table that is not two-dimensional.
    """
    presence = {"tp": 0, "fp": 0, "fn": 0, "tn": 0}
    hits = dict.fromkeys((*thresholds, 0.5), 0)
    predicted = true = 0
    for table in tables:
        table = np.asarray(table, np.float64)
        if table.ndim != 2:
            raise ValueError(f"a table of IoU is (predicted, true), found shape {table.shape}")
        found, there = table.shape
        presence[("tp" if there else "fp") if found else ("fn" if there else "tn")] += 1
        if there:  # masks of a request without a target count in MCC alone
            predicted, true = predicted + found, true + there
            matched = [table[i, j] for i, j in metrics.assign(table)]
            for t in hits:
                hits[t] += sum(iou >= t for iou in matched)
    f1 = {t: 2 * count / (predicted + true) for t, count in hits.items()} if true else {}
    mcc = matthews(**presence)
    pmf1 = metrics.mean(f1.get(t) for t in thresholds)
    return {
        "n": len(tables),
        "positives": presence["tp"] + presence["fn"],
        "negatives": presence["fp"] + presence["tn"],
        "cgf1": None if pmf1 is None else pmf1 * mcc,
        "pmf1": pmf1,
        "mcc": mcc,
        "cgf1_50": f1[0.5] * mcc if f1 else None,
        "pmf1_50": f1.get(0.5),
        **presence,
    }


def false_positives(scores: np.ndarray, present: np.ndarray, recall: float) -> dict[str, float] | None:
    """The cost of finding things: how many absent requests are answered when a given share of the present ones is.

    Args:
        scores: (n,) presence of each request, higher is surer.
        present: (n,) whether its target is there.
        recall: least share of present requests with a score at or above the threshold, over 0 to 1.

    Returns:
        threshold (the highest that reaches the recall), recall (what it reaches, at least the one asked for), rate (share of
        absent requests at or above it); None without both kinds of request.

    Raises:
        ValueError: for a recall outside (0, 1], or unequal lengths.
    """
    scores, present = _aligned(scores, present)
    if not 0 < recall <= 1:
        raise ValueError(f"recall: expected more than 0 and at most 1, found {recall}")
    there, gone = np.sort(scores[present])[::-1], scores[~present]
    if not len(there) or not len(gone):
        return None
    # 0.95 * 20 is 19.000000000000004 in floats: an exact count must not be rounded up to the next request.
    threshold = there[max(math.ceil(recall * len(there) - 1e-9), 1) - 1]
    return {"threshold": float(threshold), "recall": float((there >= threshold).mean()), "rate": float((gone >= threshold).mean())}


def reliability(probability: np.ndarray, present: np.ndarray, bins: int = 10) -> list[dict[str, float | int]]:
    """What a reliability diagram shows: for each of `bins` equal bins that is not empty n, mean probability, share present.

    The bins are those of `metrics.calibration_error`, which is the mean of |confidence - share| weighted by n.
    """
    probability, present = _aligned(probability, present)
    where = np.minimum((probability * bins).astype(int), bins - 1)
    return [
        {"n": int(np.sum(where == b)), "confidence": float(probability[where == b].mean()), "share": float(present[where == b].mean())}
        for b in np.unique(where)
    ]


def summarise(probability: np.ndarray, present: np.ndarray, bins: int = 10, recalls: Sequence[float] = RECALLS) -> dict:
    """Calibration and ranking of presence over requests.

    Args:
        probability: (n,) the model's probability, 0..1, that the target is there.
        present: (n,) whether it is.

    Returns:
        n, ece, brier (mean squared error of the probability), auc, reliability (see there), and at_recall: the rate of false
        positives for each recall, as text "0.95": {...}. None where there are no samples of a kind.

    Raises:
        ValueError: for a probability outside 0..1, or unequal lengths.
    """
    probability, present = _aligned(probability, present)
    if probability.size and not (probability.min() >= 0 and probability.max() <= 1):
        raise ValueError("probability: expected values from 0 to 1")
    return {
        "n": int(probability.size),
        "ece": metrics.calibration_error(probability, present, bins),
        "brier": float(np.mean((probability - present) ** 2)) if probability.size else None,
        "auc": metrics.ranking_auc(probability, present),
        "reliability": reliability(probability, present, bins),
        "at_recall": {f"{recall:g}": false_positives(probability, present, recall) for recall in recalls},
    }


def _aligned(scores: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays (n,), float64 and bool; ValueError where they do not go together."""
    scores, present = np.asarray(scores, np.float64), np.asarray(present, bool)
    if scores.ndim != 1 or scores.shape != present.shape:
        raise ValueError(f"expected two arrays (n,) of one length, found {scores.shape} and {present.shape}")
    return scores, present
