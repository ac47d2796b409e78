"""The token loop: an image read once, any number of questions after it, answers with codebook groups in one step each.

Prompt: begin, visual prefix, | begin, question, (region tokens), newline | answer. What stands before the first bar is read once
per frame and shared by all questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pixel_perception.bundle import Bundle
from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.session import Backend, Past, Step
from pixel_perception.runtime.text import Stream, Vocabulary


class Cancel(Protocol):
    """Anything like threading.Event."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class Group:
    """One target of an answer: a codebook run and the words before it."""

    states: np.ndarray
    """(levels * tokens per level, hidden) float32: hidden states at the run."""
    quantity: str
    label: str
    span: tuple[int, int]


@dataclass(eq=False)
class Answer:
    """An answer, growing while it is generated."""

    stream: Stream = field(default_factory=Stream)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    """[begin, end) bytes of each text token that was fed."""
    states: list[np.ndarray] = field(default_factory=list)
    """(hidden,) float32: the state after each of them."""
    probabilities: list[float] = field(default_factory=list)
    """Of every choice, the end included; only where they were asked for."""
    finish_reason: str = ""

    @property
    def confidence(self) -> float:
        """Mean probability of the choices; 0 where there was none."""
        return float(np.mean(self.probabilities)) if self.probabilities else 0.0


class Language:
    """A bundle's language model. Its methods may be called from several threads at once."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """Raises PerceptionError INVALID_BUNDLE."""
        manifest = bundle.manifest
        self.vocabulary = Vocabulary(bundle)
        self._decoder = backend.decoder(bundle.graph("language_model"))
        self._tokens, self._context = manifest.tokens, manifest.context
        # The run's later tokens follow from its first: it is fed whole, in one step.
        run = self._tokens.segments
        self._runs = {run[0]: tuple(run), self._tokens.all: (self._tokens.all, *run)}
        rows, hidden = self.vocabulary.embeddings.shape
        if hidden != self._decoder.hidden or rows <= max(run[-1], self._tokens.all):
            raise PerceptionError("INVALID_BUNDLE", f"{bundle.file('language.safetensors')}: expected embeddings of {self._decoder.hidden} "
                                  f"columns and more than {max(run[-1], self._tokens.all)} rows, found {rows} x {hidden}.")

    def prefix(self, visual: np.ndarray) -> Past:
        """Read an image: its visual tokens (n, hidden) float32."""
        return self._decoder.read(np.concatenate((self.vocabulary.embed([self._tokens.begin]), visual))[None], None).past

    def answer(self, prefix: Past, question: str, region: np.ndarray | None, most: int, answer: Answer,
               cancel: Cancel | None = None, probabilities: bool = False) -> Iterator[str | Group]:
        """Generate greedily: yields the text as it grows and every group once its states are known.

        `region` (3, hidden) are the visual tokens of the box that is asked about; `most` is the number of tokens that may be
        fed. `answer` (a new one) is filled meanwhile and has its `finish_reason` when the generator ends. Raises PerceptionError
        INVALID_QUERY where the question is longer than the context.
        """
        step = self._ask(prefix, question, region)
        while True:
            if cancel is not None and cancel.is_set():
                answer.finish_reason = "cancelled"
                return
            token, probability = self._choose(step.logits[0], step.states[0, -1], probabilities)
            if probabilities:
                answer.probabilities.append(probability)
            if token == self._tokens.end:
                answer.finish_reason = "stop"
                return
            run = self._runs.get(token, (token,))
            # A group that would not fit is not begun.
            if len(run) > most or step.past.length + len(run) > self._context:
                answer.finish_reason = "length" if len(run) > most else "context"
                return
            most -= len(run)
            begin = len(answer.stream)
            if len(run) == 1:
                yield answer.stream.add(self.vocabulary.spelling(token))
            step = self._decoder.read(self.vocabulary.embed(run)[None], step.past)
            if len(run) == 1:
                answer.tokens.append((begin, len(answer.stream)))
                answer.states.append(step.states[0, 0])
            else:
                quantity = "all" if token == self._tokens.all else "one"
                label, span = answer.stream.label()
                yield Group(step.states[0, -len(self._tokens.segments) :], quantity, label, span)

    def captions(self, prefix: Past, question: str, regions: np.ndarray, most: int, cancel: Cancel | None = None) -> list[Answer]:
        """Caption regions (R, 3, hidden) together: R questions of one length are read one by one after the shared prefix, then
        decoded as one batch. A row that has ended is fed on and not looked at, as padding; groups end a caption.
        """
        answers = [Answer() for _ in regions]
        steps: list[Step] = []
        for region in regions:
            # A batch could read the questions only token by token; one after the other is as fast and exactly what one
            # region alone would read.
            if cancel is not None and cancel.is_set():
                break
            steps.append(self._ask(prefix, question, region))
        if not steps or len(steps) < len(answers):
            for answer in answers:
                answer.finish_reason = "cancelled"
            return answers
        step = Step(np.concatenate([s.logits for s in steps]), np.concatenate([s.states[:, -1:] for s in steps]),
                    self._decoder.stack([s.past for s in steps]))  # fmt: skip
        while True:
            chosen = self._advance(answers, step, most)
            running = [a for a in answers if not a.finish_reason]
            if running and cancel is not None and cancel.is_set():
                for answer in running:
                    answer.finish_reason = "cancelled"
            if all(a.finish_reason for a in answers):
                return answers
            begins = [len(a.stream) for a in answers]
            for answer, token in zip(answers, chosen, strict=True):
                if not answer.finish_reason:
                    answer.stream.add(self.vocabulary.spelling(token))
            step = self._decoder.read(self.vocabulary.embed(chosen)[:, None], step.past)
            most -= 1
            for answer, begin, state in zip(answers, begins, step.states[:, 0], strict=True):
                if not answer.finish_reason:
                    answer.tokens.append((begin, len(answer.stream)))
                    answer.states.append(state)

    def _advance(self, answers: list[Answer], step: Step, most: int) -> list[int]:
        """Choose the next token of every row; rows that end get their finish reason."""
        chosen = [self._tokens.newline] * len(answers)
        for i, answer in enumerate(answers):
            if answer.finish_reason:
                continue
            chosen[i], probability = self._choose(step.logits[i], step.states[i, -1], True)
            answer.probabilities.append(probability)
            if chosen[i] == self._tokens.end or chosen[i] in self._runs:
                answer.finish_reason = "stop"
            elif most < 1:
                answer.finish_reason = "length"
            elif step.past.length + 1 > self._context:
                answer.finish_reason = "context"
            if answer.finish_reason:
                chosen[i] = self._tokens.newline
        return chosen

    def _ask(self, prefix: Past, question: str, region: np.ndarray | None) -> Step:
        ids = [self._tokens.begin, *self.vocabulary.question(question)]
        parts = [self.vocabulary.embed(ids), *([] if region is None else [region]), self.vocabulary.embed([self._tokens.newline])]
        embeddings = np.concatenate(parts)
        # There must be room for a group at least.
        room = self._context - prefix.length - 1 - len(self._tokens.segments)
        if len(embeddings) > room:
            raise PerceptionError("INVALID_QUERY", f"text: expected at most {room} tokens, found {len(embeddings)}; use fewer words.")
        return self._decoder.read(embeddings[None], prefix)

    def _choose(self, logits: np.ndarray, state: np.ndarray, probability: bool) -> tuple[int, float]:
        """The most likely next token, base vocabulary first where equal, and its probability (0 unless asked for)."""
        first, everything = self.vocabulary.codebook_output @ state
        best = int(np.argmax(logits))
        token, top = best, float(logits[best])
        for other, value in ((self._tokens.segments[0], float(first)), (self._tokens.all, float(everything))):
            if value > top:
                token, top = other, value
        if not probability:
            return token, 0.0
        total = np.exp(logits - top).sum() + np.exp(first - top) + np.exp(everything - top)
        return token, float(1.0 / total)
