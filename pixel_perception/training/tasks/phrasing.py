"""From what a data set says to the questions and answers of a training step, in the patterns on which published weights rest.

PixelLM's appendix and its release: up to three questions about an image, each about up to three targets, drawn at random; short
questions name what to segment, long ones are sentences with a request for a mask behind them; an answer names its targets one
by one or all at once. All draws come from the generator that is handed in, so that the same seed writes the same lesson.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from pixel_perception.training.tasks.sample import SLOT, Round, Sample, Target

SHORT = (
    "Can you segment the {} in this image?",
    "Please segment the {} in this image.",
    "What is {} in this image? Please respond with segmentation mask.",
    "What is {} in this image? Please output segmentation mask.",
)
LONG = ("{} Please respond with segmentation mask.", "{} Please output segmentation mask.")
WHY = (
    "{} Please output segmentation mask and explain why.",
    "{} Please output segmentation mask and explain the reason.",
    "{} Please output segmentation mask and give some explanation.",
)
ONE = ("It is {}.", "Sure, {}.", "Sure, it is {}.", "Sure, the segmentation result is {}.", "{}.")
EACH = ("{name} is {seg}", "The segmentation result of {name} is {seg}", "{seg}")
TOGETHER = (
    *(f"{start}{{names}} are {{seg}}{end}." for start in ("", "Sure, ", "the segmentation result of ", "Sure, the segmentation result of ")
      for end in ("", ", separately")),
    "Sure, they are {seg}.", "They are {seg}.", "{seg}.",
)  # fmt: skip
SPARE_NAME = 0.1
"""How often a question of the data set's own is answered with another name than its target's best."""
EXPLAINED, ONLY_EXPLAINED = 0.45, 0.1
"""Shares of answers with an explanation behind the mask, and with nothing but one, where the data set explains."""


def converse(sample: Sample, rng: random.Random, questions: int = 3, targets: int = 3) -> tuple[Round, ...]:
    """The rounds to train on: all that the data set wrote itself, completed, and up to `questions` about its other targets.

    Every round comes back with question and answer; the answer holds one `SLOT` for each of the round's targets.
    """
    rounds = [_complete(r, rng) for r in sample.rounds]
    for group in deal(sample.targets, rng, questions, targets):
        rounds.append(_about(group, rng))
    return tuple(rounds)


def deal(targets: Sequence[Target], rng: random.Random, questions: int, most: int) -> list[list[Target]]:
    """Groups of 1 to `most` targets for up to `questions` questions: one each, then the rest wherever there is room."""
    drawn = rng.sample(list(targets), min(len(targets), questions * most))
    groups = [[target] for target in drawn[:questions]]
    for target in drawn[questions:]:
        rng.choice([group for group in groups if len(group) < most]).append(target)
    return groups


def join(pieces: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return pieces[0] if len(pieces) == 1 else f"{', '.join(pieces[:-1])} and {pieces[-1]}"


def _about(targets: Sequence[Target], rng: random.Random) -> Round:
    names = [rng.choice(target.names) for target in targets]
    question = rng.choice(SHORT).replace("{}", join(names).lower())
    return Round(question, _answer(names, rng), tuple(targets))


def _complete(given: Round, rng: random.Random) -> Round:
    if not given.targets:
        return given
    if not given.question:
        written = _about(given.targets, rng)
        return replace(given, question=written.question, answer=given.answer or written.answer)
    luck = rng.random() if given.explanation and not given.answer else 1.0
    if luck < ONLY_EXPLAINED:
        return Round(given.question, given.explanation)
    question = rng.choice(WHY if luck < ONLY_EXPLAINED + EXPLAINED else LONG).replace("{}", given.question)
    answer = given.answer or _reasoned(given.targets, rng)
    if luck < ONLY_EXPLAINED + EXPLAINED:
        answer = f"{answer} {given.explanation}"
    return replace(given, question=question, answer=answer)


def _reasoned(targets: Sequence[Target], rng: random.Random) -> str:
    """The answer to a question that does not name its targets: with their names, where the data set has any."""
    if not all(target.names for target in targets):
        return _answer([""] * len(targets), rng)
    names = [rng.choice(t.names[1:]) if len(t.names) > 1 and rng.random() < SPARE_NAME else t.names[0] for t in targets]
    return _answer(names, rng, named=True)


def _answer(names: Sequence[str], rng: random.Random, named: bool = False) -> str:
    """An answer about one target or several; with `named` one that says their names."""
    if len(names) == 1 and not named:
        return rng.choice(ONE).replace("{}", SLOT)
    slots = [SLOT] * len(names)
    if not all(names):
        return f"{join(slots)}."
    if len(names) == 1 or rng.random() < 0.5:
        pattern = rng.choice(EACH[:1] if named else EACH)
        return join([pattern.replace("{name}", name) for name in names]) + "."
    pattern = rng.choice([p for p in TOGETHER if "{names}" in p or not named])
    joined = ", ".join(names) if named else join(names)
    return pattern.replace("{seg}", join(slots)).replace("{names}", joined.lower())
