"""What a target is called, when an answer is a sentence of any kind: "It is [group].", "a mug and a bowl are [group] and [group]",
"you can cut it with the knife [group] on the board [group]"."""

from __future__ import annotations

import re
from collections.abc import Sequence

_JOINT = re.compile(r"[\s,;.:]*(?:and\b)?[\s,;.:]*")
_OPENING = re.compile(r"(?:sure\b[\s,!.]*)?(?:the segmentation results?\b\s*(?:of\b)?\s*)?", re.IGNORECASE)
_COPULA = re.compile(r"\b(is|are)\s*:?\s*$", re.IGNORECASE)
_PRONOUN = re.compile(r"(?:it|they|this|that|these|those|here|there|he|she)?", re.IGNORECASE)
_CLAUSE = re.compile(r"[.!?;:](?=\s)|,(?=\s)")
_DETERMINER = re.compile(r"\b(?:the|an?|this|that|these|those|its|their|his|her|your|my|one|two|three|both|some|another|each)\s+(?=\S)",
                         re.IGNORECASE)  # fmt: skip
_TIED = re.compile(r"\bof\s+$|\ban?\s[^,;]*\bwith\s+$", re.IGNORECASE)
"""Before an article that does not begin a name of its own: "the lid of the jar", "a mug with a handle"."""
_LIST = re.compile(r"\s*,\s*(?:and\s+)?|\s+and\s+", re.IGNORECASE)


def name_target(text: str, places: Sequence[int], about: str) -> tuple[str, tuple[int, int]]:
    """The label of the last target of an answer so far, and its [begin, end) in bytes of the text.

    `places`: where in the text (characters) its targets stand. Where the sentence has no name for it, the label is what was asked
    `about`, and the span is empty.
    """
    begin, following = _sentence(text, places)
    names = _names(text[begin : places[-1 - following]])
    if names:
        label, offset = names[min(following, len(names) - 1)]
        first = len(text[: begin + offset].encode())
        return label, (first, first + len(label.encode()))
    asked = " ".join(about.split()).rstrip(".!? ")
    parts = [asked] if about.rstrip().endswith("?") else _LIST.split(asked)
    here = len(text[: places[-1]].encode())
    return parts[min(following, len(parts) - 1)], (here, here)


def _sentence(text: str, places: Sequence[int]) -> tuple[int, int]:
    """Where the words before a target begin, and how many targets stand between them and it (a list of groups)."""
    ends = [0, *places]
    following = 0
    while following < len(places) - 1 and _JOINT.fullmatch(text[ends[-2 - following] : ends[-1 - following]]):
        following += 1
    return ends[-2 - following], following


def _names(said: str) -> list[tuple[str, int]]:
    """The names in the words before a group, each with its place."""
    begin = _JOINT.match(said).end()
    begin = _OPENING.match(said, begin).end()
    copula = _COPULA.search(said, begin)
    end = len(said[: copula.start() if copula else None].rstrip(" ,;:"))
    if not copula:
        begin = _noun_phrase(said, begin, end)
    else:
        begin = max([begin, *(m.end() for m in _CLAUSE.finditer(said, begin, end) if m[0] != ",")])
    while begin < end and said[begin].isspace():
        begin += 1
    if _PRONOUN.fullmatch(said[begin:end]):
        return []
    if not copula or copula[1].lower() == "is":
        return [(said[begin:end], begin)] if begin < end else []
    cuts = [(m.start(), m.end()) for m in _LIST.finditer(said, begin, end)]
    starts, stops = [begin, *(e for _, e in cuts)], [*(s for s, _ in cuts), end]
    return [(said[a:b], a) for a, b in zip(starts, stops, strict=True) if a < b]


def _noun_phrase(said: str, begin: int, end: int) -> int:
    """Where the last noun phrase before `end` begins: at its article, or behind the last comma."""
    begin = max([begin, *(m.end() for m in _CLAUSE.finditer(said, begin, end))])
    found = [m.start() for m in _DETERMINER.finditer(said, begin, end)]
    while len(found) > 1 and _TIED.search(said[found[-2] : found[-1]]):
        found.pop()
    return found[-1] if found else begin
