"""PixelLM's text: the conversation template of LLaVA-v1, the codebook in answers, and what of a row is learned.

Published weights rest on token ids, not on characters, so a row is put together from ids. The tokenizer that the release was
trained with swallows the spaces around every token that was added to it, the line break behind the image among them, and starts
each stretch of text between two of them like a new sentence. Both are repeated here, whatever a tokenizer of today would do.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from pixel_perception.models.losses import IGNORE
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.models.pixellm.model import IMAGE_SLOT
from pixel_perception.models.tokenizer_files import TokenizerError, open_tokenizer, token_id

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
USER, ASSISTANT = "USER:", "ASSISTANT:"
MARKS = ("<im_start>", "<im_end>")
"""What stands around the image; the tokenizer must know both."""
SEG = "{seg}"
"""Stands in an answer for the codebook run of one target."""


def codebook_names(length: int) -> list[str]:
    """What the published tokenizers call the tokens of a codebook."""
    return [f"[SEG{i}]" for i in range(length)] if length > 1 else ["[SEG]"]


class PixelLMText:
    """Questions and answers to token ids and back. Rows are padded with `pad`."""

    pad = 0

    def __init__(self, tokenizer: Tokenizer, config: PixelLMConfig, folder: str | Path = "the tokenizer"):
        """As `open`, with a tokenizer in memory; `folder` is what errors call it."""
        size, names = tokenizer.get_vocab_size(), codebook_names(config.codebook.length)
        if size != config.language.vocabulary:
            raise TokenizerError(f"{folder}: expected a tokenizer of {config.language.vocabulary} tokens as the network has, found {size}")
        ids = [token_id(tokenizer, name, folder) for name in names]
        if ids != config.codebook.ids:
            raise TokenizerError(f"{folder}: expected the codebook {names[0]}..{names[-1]} as the consecutive ids "
                                 f"{config.codebook.ids[0]} to {config.codebook.ids[-1]}, found {ids}")
        if (end := token_id(tokenizer, "</s>", folder)) != config.language.end:
            raise TokenizerError(f"{folder}: expected '</s>' to have the id {config.language.end} that ends an answer, found {end}")
        self.tokenizer, self.config, self.end = tokenizer, config, end
        self.begin = token_id(tokenizer, "<s>", folder)
        self.marks = tuple(token_id(tokenizer, mark, folder) for mark in MARKS)

    @classmethod
    def open(cls, folder: str | Path, config: PixelLMConfig) -> "PixelLMText":
        """The tokenizer of a local folder (see `tokenizer_files.open_tokenizer`).

        Raises TokenizerError when there is none, when its size is not that of the network, or when it splits the codebook.
        """
        return cls(open_tokenizer(folder), config, folder)

    def prompt(self, question: str, earlier: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Ids of a question about an image, up to "ASSISTANT:", with one IMAGE_SLOT; `earlier` are finished rounds before it."""
        ids: list[int] = []
        for asked, answered in earlier:
            ids += self._asked(asked, not ids) + self._answered(answered)
        return ids + self._asked(question, not ids)

    def row(self, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Ids and labels of a conversation about an image: (question, answer) in turn, each answer with its `{seg}` slots.

        Labels are IGNORE up to and including "ASSISTANT:" of each round; answers and the token that ends them are learned. A row
        longer than `config.longest` tokens, those of the image counted, loses its end, a codebook run as a whole or not at
        all: `config.codebook.find` tells how many targets are left.
        """
        ids: list[int] = []
        labels: list[int] = []
        for question, answer in turns:
            asked, answered = self._asked(question, not ids), self._answered(answer)
            ids += asked + answered
            labels += [IGNORE] * len(asked) + answered
        most, book = self.config.longest - self.config.pooled**2 + 1, self.config.codebook
        if len(ids) > most:
            while most and book.contains(ids[most]) and ids[most] != book.first:
                most -= 1
        return ids[:most], labels[:most]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer: a codebook run becomes `{seg}`; special tokens, image slots and broken runs are left out."""
        book, run, at = self.config.codebook, self.config.codebook.ids, 0
        ids, words, text = list(ids), [], ""
        while at <= len(ids):
            if at < len(ids) and ids[at] != IMAGE_SLOT and not book.contains(ids[at]):
                words.append(ids[at])
                at += 1
                continue
            text = _beside(text, self.tokenizer.decode(words, skip_special_tokens=True).strip())
            words = []
            if ids[at : at + len(run)] == run:
                text = _beside(text, SEG)
                at += len(run)
            else:
                at += 1
        return text

    def _asked(self, question: str, first: bool) -> list[int]:
        if not first:
            return self._encode(f"{USER} {question.strip()} {ASSISTANT}")
        start, end = self.marks
        return [self.begin, *self._encode(f"{SYSTEM} {USER}"), start, IMAGE_SLOT, end, *self._encode(f"{question.strip()} {ASSISTANT}")]

    def _answered(self, answer: str) -> list[int]:
        first, *rest = (self._encode(text.strip()) for text in answer.split(SEG))
        return first + [i for text in rest for i in (*self.config.codebook.ids, *text)] + [self.end]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids if text else []


def _beside(before: str, after: str) -> str:
    """Two stretches of an answer, with the space that the tokenizer swallowed."""
    return before + after if not before or not after or after[0] in ".,;:!?)" else f"{before} {after}"
