"""Question and answer rounds as token sequences of the compact model."""

from __future__ import annotations

from dataclasses import dataclass, field

from pixel_perception.models.config import CompactConfig
from pixel_perception.runtime.text import normalised
from pixel_perception.simulation.instructions import Instruction
from pixel_perception.simulation.phrases import Phrase

IGNORE = -100
REGION = -1
"""Place of a visual token of the region prompt; it has no id."""


@dataclass
class Round:
    """Tokens of one question and its answer. `labels[i]` is what follows position i, in the output numbering."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    groups: list[tuple[int, Phrase]] = field(default_factory=list)
    """(position of SEG0, target)."""
    words: list[tuple[int, int]] = field(default_factory=list)
    """(position of a text token, label of the object that it names)."""
    region: int | None = None


class RoundWriter:
    """Writes instructions in the prompt format of the compact model."""

    def __init__(self, tokenizer, config: CompactConfig):
        self.tokenizer, self.config, self._known = tokenizer, config, {}

    def text(self, words: str) -> list[int]:
        """Token ids of a piece of text."""
        if words not in self._known:
            self._known[words] = self.tokenizer.encode(words, add_special_tokens=False)
        return self._known[words]

    def read(self, tokens: list[int]) -> str:
        """The text of tokens or labels, up to the end; a group as [seg] or [all]."""
        language, said = self.config.language, ""
        added = {language.vocabulary: " [seg]", language.vocabulary + 1: " [all]"}
        for token in tokens:
            if token == language.end_id:
                break
            said += self.tokenizer.decode([token]) if 0 <= token < language.vocabulary else added.get(token, "")
        return " ".join(said.split())

    def write(self, instruction: Instruction) -> Round:
        """The whole round, question and right answer."""
        language, out = self.config.language, Round(region=instruction.region)
        out.ids = [language.start_id, *self.text(" " + normalised(instruction.text))]
        if instruction.region is not None:
            out.ids += [REGION] * self.config.region.tokens
        out.ids.append(language.newline_id)
        out.labels = [IGNORE] * len(out.ids)
        if instruction.region is not None:
            self._say(out, " " + instruction.caption, instruction.region)
        for i, target in enumerate(instruction.targets):
            # A word has a place only where it means one object that is there.
            label = target.labels[0] if len(target.labels) == 1 else None
            self._say(out, (", " if i else " ") + target.text, label)
            self._group(out, target)
        out.labels[-1] = language.end_id
        return out

    def _say(self, out: Round, words: str, label: int | None) -> None:
        for token in self.text(words):
            out.labels[-1] = token
            out.ids.append(token)
            out.labels.append(IGNORE)
            if label is not None and self.tokenizer.decode([token]).strip(" ,"):
                out.words.append((len(out.ids) - 1, label))

    def _group(self, out: Round, target: Phrase) -> None:
        vocabulary, ids = self.config.language.vocabulary, self.config.codebook_ids
        out.labels[-1] = vocabulary + (target.quantity == "all")
        if target.quantity == "all":
            out.ids.append(self.config.all_id)
            out.labels.append(IGNORE)
        out.groups.append((len(out.ids), target))
        out.ids += ids
        out.labels += [IGNORE] * len(ids)
