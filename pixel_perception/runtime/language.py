"""The token loop: an image read once, any number of questions after it, answers with codebook groups in one step each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pixel_perception.bundle import Bundle
from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.drafting import Ahead
from pixel_perception.runtime.session import Backend, Past, Step
from pixel_perception.runtime.text import Stream, Vocabulary

WORTH_SHARING = 4
"""From so many rows on, the words that all of them ask are read once, in a step of their own."""


class Cancel(Protocol):
    """Anything like threading.Event."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class Group:
    """One target of an answer: a codebook run and the words before it."""

    states: np.ndarray
    """(levels * tokens per level, hidden) float32: the hidden states that make the target's queries."""
    quantity: str
    label: str
    span: tuple[int, int]
    score: float = 0.0
    """How sure the language model is that the target is there, in 0..1; 0 where the pixel decoder tells it."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """One question about an image."""

    question: str
    region: np.ndarray | None
    """(3, hidden) float32: visual tokens of the box that is to be captioned. A caption has no groups: one ends it."""
    most: int
    """How many tokens may be fed."""
    about: str = ""
    """The user's own words in it."""
    told: str = ""
    """An expression that is to be found, for a model that says such words again to place them."""


@dataclass(eq=False)
class Answer:
    """An answer, growing while it is generated."""

    stream: Stream = field(default_factory=Stream)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    """[begin, end) bytes of each text token that was fed."""
    states: list[np.ndarray] = field(default_factory=list)
    """(hidden,) float32: the state after each of them."""
    probabilities: list[float] = field(default_factory=list)
    """Of every choice, the end included; of captions only."""
    finish_reason: str = ""

    @property
    def confidence(self) -> float:
        """Mean probability of the choices; 0 where there was none."""
        return float(np.mean(self.probabilities)) if self.probabilities else 0.0


@dataclass(frozen=True, eq=False)
class Choice:
    """What an answer goes on with."""

    run: tuple[int, ...]
    """A token, or a whole codebook run."""
    probability: float
    """Of its first token, where that is asked for."""
    state: np.ndarray
    """(hidden,): the state that it was chosen from."""


class Speaker(Protocol):
    """What answers about an image in words: a `Language`, or an encoder with a decoder (sequence.py)."""

    def prefix(self, visual: np.ndarray, valid: np.ndarray | None = None) -> Any:
        """What is read of an image before all questions about it; see `Language.prefix`."""

    def converse(self, prefix: Any, prompts: Sequence[Prompt], answers: Sequence[Answer],
                 cancel: Cancel | None = None) -> Iterator[tuple[int, str | Group]]:
        """See `Language.converse`."""


class Language(ABC):
    """A bundle's language model that is a decoder alone. Its methods may be called from several threads at once.

    Each family of models has its own: how a prompt is laid out, which tokens may follow, and what a codebook run says.
    """

    def __init__(self, bundle: Bundle, backend: Backend, vocabulary: Vocabulary) -> None:
        """Raises PerceptionError INVALID_BUNDLE."""
        manifest = bundle.manifest
        self.vocabulary = vocabulary
        self.decoder = backend.decoder(bundle.graph("language_model"))
        self._tokens, self._context = manifest.tokens, manifest.context
        # The run's later tokens follow from its first: it is fed whole, in one step.
        run = self._tokens.segments
        self._runs = {run[0]: tuple(run)}
        rows, hidden = self.vocabulary.embeddings.shape
        if hidden != self.decoder.hidden or rows <= run[-1]:
            raise PerceptionError("INVALID_BUNDLE", f"{bundle.file('language.safetensors')}: expected embeddings of {self.decoder.hidden} "
                                  f"columns and more than {run[-1]} rows, found {rows} x {hidden}.")

    @abstractmethod
    def prefix(self, visual: np.ndarray, valid: np.ndarray | None = None) -> Past:
        """Read what stands before all questions about an image: its tokens (n, hidden) float32, those that are `valid` (n,) bool."""

    @abstractmethod
    def _question(self, text: str) -> list[int]:
        """Ids of a question, behind which the answer begins. The tokens of a region come before the last of them."""

    @abstractmethod
    def _choose(self, logits: np.ndarray, state: np.ndarray, probability: bool) -> tuple[int, float]:
        """The most likely next token, the lowest id where equal, and its probability (0 unless asked for)."""

    @abstractmethod
    def _group(self, prompt: Prompt, answer: Answer, choice: Choice, states: np.ndarray) -> Group:
        """What a run says; `states` (len(choice.run), hidden) are those after each of its tokens."""

    def _ahead(self, prompt: Prompt) -> Ahead | None:
        """What reads the answer to one question, where more than a choice at a time can be read."""
        return None

    def answer(self, prefix: Past, question: str, region: np.ndarray | None, most: int, answer: Answer,
               cancel: Cancel | None = None) -> Iterator[str | Group]:
        """`converse` with one question."""
        return (event for _, event in self.converse(prefix, [Prompt(question, region, most)], [answer], cancel))

    def converse(self, prefix: Past, prompts: Sequence[Prompt], answers: Sequence[Answer],
                 cancel: Cancel | None = None) -> Iterator[tuple[int, str | Group]]:
        """Answer questions about one image together, greedily: yields (question, piece) for the text as it grows and for every
        group once its states are known.

        Every step feeds each unfinished answer what it has chosen, a token or a whole codebook run; a single answer also what
        it will probably choose next (drafting.py). `answers` (new ones) are filled meanwhile and have their `finish_reason`
        when the generator ends. Raises PerceptionError INVALID_QUERY where a question is longer than the context.
        """
        step, left = self._ask(prefix, prompts), [prompt.most for prompt in prompts]
        nothing = np.zeros((0, self.decoder.hidden), np.float32)
        ahead = self._ahead(prompts[0]) if len(prompts) == 1 else None
        while True:
            if cancel is not None and cancel.is_set():
                for answer in answers:
                    answer.finish_reason = answer.finish_reason or "cancelled"
                return
            chosen: dict[int, Choice] = {}
            for i, answer in enumerate(answers):
                if answer.finish_reason:
                    continue
                choice = self._advance(answer, prompts[i], step.logits[i], step.states[i][-1], left[i], step.past.lengths[i])
                if choice:
                    left[i] -= len(choice.run)
                    chosen[i] = choice
                    begin = len(answer.stream)
                    if len(choice.run) == 1:
                        piece = answer.stream.add(self.vocabulary.spelling(choice.run[0]))
                        answer.tokens.append((begin, len(answer.stream)))
                        yield i, piece
            if not chosen:
                return
            if ahead:
                room = min(left[0] + len(chosen[0].run), self._context - step.past.lengths[0])
                step = ahead.read(chosen[0].run, step.past, room)
            else:
                parts = [self.vocabulary.embed(chosen[i].run) if i in chosen else nothing for i in range(len(answers))]
                step = self.decoder.read(parts, step.past)
            for i, choice in chosen.items():
                if len(choice.run) == 1:
                    answers[i].states.append(step.states[i][0])
                else:
                    yield i, self._group(prompts[i], answers[i], choice, step.states[i])

    def _advance(self, answer: Answer, prompt: Prompt, logits: np.ndarray, state: np.ndarray, left: int, length: int) -> Choice | None:
        """What an answer of `length` positions goes on with: a token, a run, or nothing, and then it has its finish reason."""
        caption = prompt.region is not None
        token, probability = self._choose(logits, state, caption)
        if caption:
            answer.probabilities.append(probability)
        run = self._runs.get(token, (token,))
        if token == self._tokens.end or (caption and len(run) > 1):
            answer.finish_reason = "stop"
        elif len(run) > left:  # a group that would not fit is not begun
            answer.finish_reason = "length"
        elif length + len(run) > self._context:
            answer.finish_reason = "context"
        return None if answer.finish_reason else Choice(run, probability, state)

    def _ask(self, prefix: Past, prompts: Sequence[Prompt]) -> Step:
        questions = {prompt.question: self._question(prompt.question) for prompt in prompts}
        last = {question: self.vocabulary.embed(ids[-1:]) for question, ids in questions.items()}
        after = [last[p.question] if p.region is None else np.concatenate((p.region, last[p.question])) for p in prompts]
        # There must be room for a group at least.
        room = self._context - prefix.lengths[0] - 1 - len(self._tokens.segments)
        longest = max(len(questions[p.question]) - 1 + len(a) for p, a in zip(prompts, after, strict=True))
        if longest > room:
            raise PerceptionError("INVALID_QUERY", f"text: expected at most {room} tokens, found {longest}; use fewer words.")
        before = {question: self.vocabulary.embed(ids[:-1]) for question, ids in questions.items()}
        if len(questions) == 1 and len(prompts) >= WORTH_SHARING:
            return self.decoder.read(after, self.decoder.read(list(before.values()), prefix).past)
        return self.decoder.read([np.concatenate((before[p.question], a)) for p, a in zip(prompts, after, strict=True)], prefix)
