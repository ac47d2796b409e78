"""Multi-target reasoning segmentation (MUSE): predicted and true masks matched one to one, scored without and with a judge.

PixelLM (section 4.3) scores an answer in four steps. Predicted masks are matched to true ones by IoU, and what is left over on
either side is held against nothing; the description of the matched object is written into the answer at the place of its mask;
a language model, the judge, says from 1 to 10 how well each description suits its place, 0 for what is left over; judge x IoU
is the score of a mask, gIoU and cIoU are taken over it. The paper's judge is a closed model and its prompt was not published,
so figures of two judges do not compare. Hence both: scores that need no judge, and those of any judge (judge.py), with prompt
and verdicts saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pixel_perception.evaluation import metrics

if TYPE_CHECKING:
    from pixel_perception.evaluation.judge import Judge

SLOT = "{seg}"
"""Stands for one mask in the text of an answer, as in the data set's own `text_answers`."""
RELEASE_POINTS = 12544
"""Points at which the release compares two masks (112 x 112, as in the set prediction of Mask2Former)."""
HIT = 0.5
"""A true mask counts as found when its IoU is above this."""


@dataclass(frozen=True)
class Pair:
    """A predicted mask against a true one, by index; None for "nothing"."""

    predicted: int | None
    true: int | None
    intersection: int
    """Pixels."""
    union: int
    """Pixels."""

    @property
    def matched(self) -> bool:
        """Whether both sides are there."""
        return self.predicted is not None and self.true is not None

    @property
    def iou(self) -> float:
        """0 for a mask without a partner, even an empty one: who announces an object and draws none is not right. 1 for an
        answer without masks where none were wanted."""
        if (self.predicted is None) != (self.true is None):
            return 0.0
        return self.intersection / self.union if self.union else 1.0


def match(
    predicted: Sequence[np.ndarray], true: Sequence[np.ndarray], rule: str = "iou", points: int | None = None, seed: int = 0
) -> list[Pair]:
    """Match the masks of one answer: matched pairs first, then true masks without a partner, then predicted ones.

    Args:
        predicted: bool masks (H, W), or logits whose positive pixels are the mask.
        true: bool masks (H, W) of the same image.
        rule: "iou" maximises the sum of IoU, as in the paper; "release" minimises mean binary cross-entropy plus DICE of the
            logits, as in the published code.
        points: compare at that many random pixels instead of all. The release uses `RELEASE_POINTS`, differently at every call;
            here `seed` fixes them. Scores are always those of all pixels.
        seed: of the points.

    Returns:
        As many pairs as the larger side has masks; one pair of nothing with nothing when both are empty.

    Raises:
        ValueError: for masks of different sizes, an unknown rule, or "release" without logits.
    """
    if rule not in ("iou", "release"):
        raise ValueError(f'rule: expected "iou" or "release", found {rule!r}')
    shapes = {np.shape(mask) for mask in (*predicted, *true)}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"masks of one answer must have one size (H, W), found {sorted(shapes)}")
    if not predicted and not true:
        return [Pair(None, None, 0, 0)]
    size = int(np.prod(shapes.pop()))
    drawn, meant = _rows([np.asarray(p) > 0 for p in predicted], size), _rows(true, size)
    shared = drawn @ meant.T
    areas, true_areas = drawn.sum(1), meant.sum(1)
    if rule == "release":
        if any(np.asarray(p).dtype.kind != "f" for p in predicted):
            raise ValueError('rule "release" compares logits, found masks that are already decided')
        gain = -_release_cost(*_at(points, seed, _rows(predicted, size), meant))
    else:
        gain = _iou(*_at(points, seed, drawn, meant), nothing=1.0 if points is None else 0.0)
    pairs = metrics.assign(gain)
    both = [Pair(i, j, int(shared[i, j]), int(areas[i] + true_areas[j] - shared[i, j])) for i, j in pairs]
    missed = [Pair(None, j, 0, int(a)) for j, a in enumerate(true_areas) if j not in {j for _, j in pairs}]
    extra = [Pair(i, None, 0, int(a)) for i, a in enumerate(areas) if i not in {i for i, _ in pairs}]
    return both + missed + extra


def _rows(masks: Sequence[np.ndarray], size: int) -> np.ndarray:
    """(n, size) float64, one mask per row; float64 counts pixels exactly and multiplies fast."""
    return np.array([np.asarray(mask).ravel() for mask in masks], np.float64).reshape(len(masks), size)


def _at(points: int | None, seed: int, *rows: np.ndarray) -> list[np.ndarray]:
    """The same random columns of all rows, or the rows as they are."""
    if points is None:
        return list(rows)
    columns = np.random.default_rng(seed).integers(0, rows[0].shape[1], points)
    return [row[:, columns] for row in rows]


def _iou(a: np.ndarray, b: np.ndarray, nothing: float) -> np.ndarray:
    """(A, B) IoU of 0/1 rows (A, n) and (B, n); `nothing` where both are empty (at points, two masks that were both missed)."""
    shared = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1)[None] - shared
    return np.divide(shared, union, out=np.full_like(shared, nothing), where=union > 0)


def _release_cost(logits: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(A, B) mean binary cross-entropy + DICE loss, both of weight one, of logits (A, n) and 0/1 rows (B, n)."""
    yes, no = np.logaddexp(0.0, -logits), np.logaddexp(0.0, logits)  # losses of a pixel that is meant, and of one that is not
    entropy = (yes @ true.T + no @ (1.0 - true).T) / logits.shape[1]
    share = np.exp(-yes)
    dice = 1.0 - (2.0 * share @ true.T + 1.0) / (share.sum(1)[:, None] + true.sum(1)[None] + 1.0)
    return entropy + dice


def annotate(text: str, pairs: Sequence[Pair], descriptions: Sequence[str]) -> tuple[str, list[int]]:
    """Write into an answer what its masks turned out to be: `the cat {seg}` becomes `the cat (1: a grey cat on a laptop)`.

    Args:
        text: the answer with one `{seg}` for each predicted mask, in their order.
        pairs: what `match` returned.
        descriptions: one for each true mask.

    Returns:
        The text, with `(nothing)` at masks without a partner, and for each number 1, 2, ... the index of its pair.

    Raises:
        ValueError: when the answer has not one slot for each predicted mask.
    """
    parts = text.split(SLOT)
    owners = {pair.predicted: k for k, pair in enumerate(pairs) if pair.predicted is not None}
    if len(parts) - 1 != len(owners):
        raise ValueError(f"text: expected {len(owners)} times {SLOT}, one for each mask, found {len(parts) - 1}")
    out, numbered = parts[0], []
    for i, part in enumerate(parts[1:]):
        pair = pairs[owners[i]]
        if pair.true is None:
            out += "(nothing)"
        else:
            numbered.append(owners[i])
            out += f"({len(numbered)}: {' '.join(descriptions[pair.true].split())})"
        out += part
    return out, numbered


def prompt(question: str, annotated: str, count: int) -> str:
    """What the judge is asked about one answer with `count` numbered descriptions. Our own words: the paper's are not public."""
    return (
        "A person asked an assistant a question about a photograph. In its answer the assistant pointed at objects. At each place "
        "where it pointed, brackets tell which object of the photograph it really pointed at, as somebody described it who knows "
        'the photograph; "(nothing)" means that it pointed at no real object.\n\n'
        f"Question: {question.strip()}\n"
        f"Answer: {annotated.strip()}\n\n"
        f"For each of the {count} numbered brackets, judge how well the object in the brackets fits what the answer says at that "
        "place and serves the question. Give a whole number from 1 (another object, or useless here) to 10 (exactly the object "
        "that the words mean, and right for the question). Judge each on its own; do not judge style.\n"
        f'Reply with JSON only: {{"scores": [{", ".join(["n"] * min(count, 3))}{", ..." if count > 3 else ""}]}} '
        f"with {count} numbers in the order of the brackets."
    )


def judged(judge: Judge, name: str, question: str, text: str, pairs: Sequence[Pair], descriptions: Sequence[str]) -> list[float]:
    """Ask the judge about one answer: a score 0..10 for each pair, 0 where there is no partner. `name` labels it in the file."""
    annotated, numbered = annotate(text, pairs, descriptions)
    scores = [0.0] * len(pairs)
    if numbered:
        for index, score in zip(numbered, judge.verdict(name, prompt(question, annotated, len(numbered)), len(numbered)), strict=True):
            scores[index] = score
    return scores


def summarise(answers: Sequence[Sequence[Pair]], scores: Sequence[Sequence[float]] | None = None) -> dict[str, float | int | None]:
    """Figures of a split, fractions of one.

    Args:
        answers: the pairs of each answer.
        scores: the judge's score 0..10 of each pair of each answer.

    Returns:
        n  answers; masks  pairs
        giou  mean IoU over pairs (every mask counts the same, as in the published code); ciou  sum of intersections over sum of
            unions; answer_giou  mean over answers of their mean IoU
        precision, recall, f1  a hit is a pair with IoU > 0.5
        count_error  mean |predicted - true| masks; count_exact  share of answers with the right number
        judged_giou, judged_ciou  the same with each pair's IoU, or intersection, weighted by score / 10; only with `scores`
        A figure that has nothing to stand on is None.

    Raises:
        ValueError: when scores and pairs do not go together.
    """
    pairs = [pair for answer in answers for pair in answer]
    union = sum(pair.union for pair in pairs)
    predicted, true = (sum(getattr(pair, side) is not None for pair in pairs) for side in ("predicted", "true"))
    hits = sum(pair.matched and pair.iou > HIT for pair in pairs)
    errors = [abs(sum((p.predicted is not None) - (p.true is not None) for p in answer)) for answer in answers]
    out = {
        "n": len(answers),
        "masks": len(pairs),
        "giou": metrics.mean(pair.iou for pair in pairs),
        "ciou": sum(pair.intersection for pair in pairs) / union if union else None,
        "answer_giou": metrics.mean(metrics.mean(pair.iou for pair in answer) for answer in answers),
        "precision": hits / predicted if predicted else None,
        "recall": hits / true if true else None,
        "f1": 2 * hits / (predicted + true) if predicted + true else None,
        "count_error": metrics.mean(errors),
        "count_exact": metrics.mean(float(error == 0) for error in errors),
    }
    if scores is None:
        return out
    return out | _judged_figures(answers, scores, union)


def _judged_figures(answers: Sequence[Sequence[Pair]], scores: Sequence[Sequence[float]], union: int) -> Mapping[str, float | None]:
    """gIoU and cIoU weighted by the judge."""
    if [len(answer) for answer in answers] != [len(row) for row in scores]:
        raise ValueError("scores: expected one for each pair of each answer")
    rows = [(pair, score / 10) for answer, row in zip(answers, scores, strict=True) for pair, score in zip(answer, row, strict=True)]
    if any(not 0 <= weight <= 1 for _, weight in rows):
        raise ValueError("scores: expected 0 to 10")
    return {
        "judged_giou": metrics.mean(weight * pair.iou for pair, weight in rows),
        "judged_ciou": sum(weight * pair.intersection for pair, weight in rows) / union if union else None,
    }
