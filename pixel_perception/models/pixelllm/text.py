"""PixelLLM's text: captions, expressions and text prompts as ids, and where in the text each id comes from."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from pixel_perception.models import tokenizer_files
from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.t5 import T5Config
from pixel_perception.models.tokenizer_files import TokenizerError, open_tokenizer, token_id


class PixelLLMText:
    """Text to token ids and back, for Flan-T5 (SentencePiece) and for the small text decoder (BERT's vocabulary).

    Rows are padded with `pad`.
    """

    pad = 0

    def __init__(self, tokenizer: Tokenizer, config: PixelLLMConfig, folder: str | Path = "the tokenizer"):
        """As `open`, with a tokenizer in memory; `folder` is what errors call it."""
        t5, most = isinstance(config.language, T5Config), config.language.vocabulary
        size = tokenizer.get_vocab_size()
        # T5's table has rows to spare (32128 for 32100 tokens), BERT's has not.
        if size > most or (size < most and not t5):
            raise TokenizerError(f"{folder}: expected a tokenizer of {most} tokens as the network has, found {size}")
        for name, wanted in zip(("<pad>", "</s>") if t5 else ("[CLS]", "[SEP]"), (config.begin, config.end), strict=True):
            if (found := token_id(tokenizer, name, folder)) != wanted:
                raise TokenizerError(f"{folder}: expected {name!r} to have the id {wanted}, found {found}")
        self.tokenizer, self.config = tokenizer, config

    @classmethod
    def open(cls, folder: str | Path, config: PixelLLMConfig) -> "PixelLLMText":
        """The tokenizer of a local folder (see `tokenizer_files.open_tokenizer`).

        Raises TokenizerError when there is none, or when its size or the ids of its first and last token are not the network's.
        """
        return cls(open_tokenizer(folder), config, folder)

    def pieces(self, text: str) -> list[tuple[int, int, int]]:
        """The text's tokens as (id, first byte, end byte) of its UTF-8 form, without the spaces before a word."""
        return tokenizer_files.pieces(self.tokenizer, text)

    def tokens(self, text: str, most: int) -> list[int]:
        """Decoder text: begin, pieces, end; at most `most` ids, the end always among them."""
        return [self.config.begin, *self._ids(text)[: max(most - 2, 0)], self.config.end]

    def context(self, text: str, most: int) -> list[int]:
        """A text prompt: pieces, end; at most `most` ids (8, for referring 40 in the release)."""
        return [*self._ids(text)[: max(most - 1, 0)], self.config.end]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids from `begin` to the first `end`."""
        ids = list(ids)
        ids = ids[: ids.index(self.config.end)] if self.config.end in ids else ids
        return self.tokenizer.decode([i for i in ids if i not in (self.config.begin, self.pad)], skip_special_tokens=True).strip()

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids
