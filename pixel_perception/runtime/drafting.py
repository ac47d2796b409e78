"""Reading ahead. An answer mostly repeats the question: "the mug and the lemon" becomes "mug[group], lemon[group]". So the rest of
the answer is guessed from the question as soon as its first word is known, and read in one step, which costs hardly more than one
token; what was guessed right is kept, and from the first wrong guess on the decoder goes token by token. The answer is the same
(Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023, with the question as the draft)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pixel_perception.runtime.session import Decoder, Past, Step
from pixel_perception.runtime.text import CompactVocabulary

Piece = tuple[int, ...]
"""What is fed at once: a token, or a whole codebook run."""


def draft(question: Sequence[int], first: int, group: Piece, vocabulary: CompactVocabulary) -> list[Piece]:
    """The answer to expect for a question (ids) when it begins with the token `first`: the question's words from there on, each
    name followed by its `group`, names joined by commas, without articles. Empty where the question has no such word."""
    if first not in question:
        return []
    pieces: list[Piece] = []
    between = False
    for token in question[list(question).index(first) :]:
        if token in vocabulary.joints:
            between = True
        elif not between:
            pieces.append((token,))
        elif token not in vocabulary.articles:
            pieces += [group, (vocabulary.comma,), (token,)]
            between = False
    return [*pieces, group]


class Ahead:
    """Reads the pieces of one row in the order in which they are chosen, several at once where they were expected."""

    def __init__(self, decoder: Decoder, vocabulary: CompactVocabulary, question: Sequence[int], group: Piece) -> None:
        """`question`: ids that the answer will probably repeat, as `draft` has it; may be empty."""
        self._decoder, self._vocabulary, self._question, self._group = decoder, vocabulary, question, group
        self._known: list[tuple[Piece, Step]] = []

    def read(self, piece: Piece, past: Past, room: int) -> Step:
        """What the decoder says after `piece`, which follows `past`; at most `room` positions may be read."""
        if self._known and self._known[0][0] == piece:
            return self._known.pop(0)[1]
        # Whatever else was read ahead was wrong, and so is its draft: there is one attempt, with the first piece.
        pieces = draft(self._question, piece[0], self._group, self._vocabulary) or [piece]
        self._question = ()
        ends = np.cumsum([len(p) for p in pieces])
        fits = max(1, int(np.searchsorted(ends, room, side="right")))
        pieces, ends = pieces[:fits], ends[:fits]
        tokens = [token for p in pieces for token in p]
        step = self._decoder.read([self._vocabulary.embed(tokens)], past, ends - 1)
        before = past.lengths[0]
        self._known = [(p, Step([logits], [step.states[0][end - len(p) : end]], step.past.first(before + int(end))))
                       for p, logits, end in zip(pieces, step.logits, ends, strict=True)]  # fmt: skip
        return self._known.pop(0)[1]
