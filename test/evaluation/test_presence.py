"""Presence against cases worked out by hand."""

import numpy as np
import pytest

from pixel_perception.evaluation import metrics, presence


def test_matthews():
    assert presence.matthews(5, 0, 0, 5) == 1
    assert presence.matthews(0, 5, 5, 0) == -1
    assert presence.matthews(5, 5, 0, 0) == 0  # it always says yes
    # (6 * 3 - 1 * 2) / sqrt(7 * 8 * 4 * 5)
    assert presence.matthews(6, 1, 2, 3) == pytest.approx(16 / np.sqrt(1120))


def test_cgf1_by_hand():
    tables = [
        np.array([[0.9, 0.1], [0.2, 0.6], [0.3, 0.3]]),  # three found, two there: IoU 0.9 and 0.6
        np.zeros((0, 1)),  # one there, none found
        np.zeros((2, 0)),  # two found, none there
        np.zeros((0, 0)),
    ]
    out = presence.cgf1(tables)
    assert [out[k] for k in ("n", "positives", "negatives", "tp", "fp", "fn", "tn")] == [4, 2, 2, 1, 1, 1, 1]
    assert out["mcc"] == 0 and out["cgf1"] == 0
    # Positives only: 3 predicted, 3 true. Two hits at 0.5, 0.55, 0.6; one up to 0.9; none at 0.95.
    assert out["pmf1_50"] == pytest.approx(2 * 2 / 6)
    assert out["pmf1"] == pytest.approx((3 * 4 / 6 + 6 * 2 / 6) / 10)
    without = presence.cgf1([tables[0], tables[3]])
    assert without["mcc"] == 1
    # 3 predicted, 2 true.
    assert without["cgf1"] == without["pmf1"] == pytest.approx((3 * 4 / 5 + 6 * 2 / 5) / 10)
    assert without["cgf1_50"] == pytest.approx(4 / 5)


def test_cgf1_without_positives():
    out = presence.cgf1([np.zeros((0, 0)), np.zeros((1, 0))])
    assert out["cgf1"] is None and out["pmf1"] is None and out["mcc"] == 0
    with pytest.raises(ValueError, match="predicted, true"):
        presence.cgf1([np.zeros(3)])


SCORES = np.array([0.9, 0.8, 0.7, 0.3, 0.75, 0.2, 0.3, 0.1])
PRESENT = np.array([1, 1, 1, 1, 0, 0, 0, 0])


def test_false_positives_at_recall():
    assert presence.false_positives(SCORES, PRESENT, 0.5) == {"threshold": 0.8, "recall": 0.5, "rate": 0.0}
    assert presence.false_positives(SCORES, PRESENT, 0.6) == {"threshold": 0.7, "recall": 0.75, "rate": 0.25}
    assert presence.false_positives(SCORES, PRESENT, 1) == {"threshold": 0.3, "recall": 1.0, "rate": 0.5}  # a tie counts
    assert presence.false_positives(SCORES, np.ones(8), 0.5) is None
    with pytest.raises(ValueError, match="recall"):
        presence.false_positives(SCORES, PRESENT, 0)
    with pytest.raises(ValueError, match="one length"):
        presence.false_positives(SCORES, PRESENT[:3], 0.5)


def test_an_exact_recall_is_not_rounded_up():
    scores, present = np.arange(21, 0, -1) / 21, np.array([1] * 20 + [0])
    assert presence.false_positives(scores, present, 0.95)["recall"] == 0.95


def test_summary():
    out = presence.summarise(SCORES, PRESENT, bins=2, recalls=(0.75,))
    # Low bin: 0.3, 0.2, 0.3, 0.1, one of four present; high bin: 0.9, 0.8, 0.7, 0.75, three of four.
    assert [row["n"] for row in out["reliability"]] == [4, 4]
    assert [row["share"] for row in out["reliability"]] == [0.25, 0.75]
    assert [row["confidence"] for row in out["reliability"]] == pytest.approx([0.225, 0.7875])
    assert out["ece"] == pytest.approx((0.025 + 0.0375) / 2)
    assert out["brier"] == pytest.approx(np.mean((SCORES - PRESENT) ** 2))
    # 13 and a tie of 16 pairs are in order.
    assert out["auc"] == pytest.approx((4 + 4 + 3 + 2.5) / 16)
    assert out["at_recall"]["0.75"]["rate"] == 0.25


def test_reliability_is_what_ece_averages():
    rng = np.random.default_rng(0)
    probability, present = rng.random(200), rng.random(200) < 0.4
    rows = presence.reliability(probability, present)
    assert sum(r["n"] * abs(r["confidence"] - r["share"]) for r in rows) / 200 == pytest.approx(
        metrics.calibration_error(probability, present)
    )


def test_summary_of_nothing_and_of_bad_probabilities():
    out = presence.summarise([], [])
    assert out["ece"] is out["brier"] is out["auc"] is None and out["reliability"] == []
    with pytest.raises(ValueError, match="from 0 to 1"):
        presence.summarise([1.2], [1])
    with pytest.raises(ValueError, match="from 0 to 1"):
        presence.summarise([np.nan], [1])
