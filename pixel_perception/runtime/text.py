"""Text and token ids: the question's tokens, the answer's bytes as they come, labels of targets and words with their places."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from pixel_perception.bundle import Bundle
from pixel_perception.errors import PerceptionError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_AROUND = re.compile(r"^[\s,;.]*(?:and\b[\s,;.]*)?|[\s,;.]+$")


def normalised(question: str) -> str:
    """A question as training, export and runtime all write it: lower case, spaces joined, without closing marks."""
    return " ".join(question.lower().split()).rstrip(".!? ")


def open_tokenizer(path: Path) -> Tokenizer:
    """A bundle's tokenizer, for which what looks like a control token in a user's text is just text. Raises PerceptionError
    INVALID_BUNDLE naming the file."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise PerceptionError("INVALID_BUNDLE", f"{path}: expected a tokenizer of the tokenizers library, found: {error}") from error
    tokenizer.encode_special_tokens = True
    return tokenizer


class Vocabulary:
    """The bundle's tokenizer and embedding table."""

    def __init__(self, bundle: Bundle, spell: Callable[[str], bytes]) -> None:
        """`spell`: the bytes of a token's name, `byte_level` or `sentencepiece`. Raises PerceptionError INVALID_BUNDLE naming the
        file that is not as expected."""
        self._tokenizer = open_tokenizer(bundle.file("tokenizer.json"))
        self._special = set(self._tokenizer.get_added_tokens_decoder())
        self._spell = spell
        (self.embeddings,) = _tensors(bundle.file("language.safetensors"), "embeddings")
        """(vocabulary, hidden) float16 on disk, added rows last; rows are read as they are needed."""

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, and nothing that the text does not say."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """(n, hidden) float32."""
        return self.embeddings[np.asarray(ids, np.int64)].astype(np.float32)

    def spelling(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for; none for control tokens."""
        name = None if token in self._special else self._tokenizer.id_to_token(token)
        return b"" if name is None else self._spell(name)


class CompactVocabulary(Vocabulary):
    """That of the compact model, with the words of lists."""

    def __init__(self, bundle: Bundle) -> None:
        """See `Vocabulary`."""
        super().__init__(bundle, byte_level)
        # What stands between the names of a list, in questions.
        self.comma, *_ = self.ids(",")
        self.joints = {self.comma, *self._single(" and")}
        self.articles = {*self._single(" the"), *self._single(" a"), *self._single(" an")}
        self.codebook_output = np.array(*_tensors(bundle.file("language.safetensors"), "codebook_output"), np.float32)
        """(2, hidden): output columns of the first codebook token and of ALL."""

    def question(self, text: str) -> list[int]:
        """Ids of a question as in training: `normalised`, after one space."""
        return self.ids(" " + normalised(text))

    def _single(self, word: str) -> list[int]:
        """A word's id, where it is one token."""
        ids = self.ids(word)
        return ids if len(ids) == 1 else []


def byte_level(name: str) -> bytes:
    """The bytes of a byte-level token's name, without what is none."""
    return bytes(_BYTES[c] for c in name if c in _BYTES)


def sentencepiece(name: str) -> bytes:
    """The bytes of a SentencePiece token's name, as LLaMA's are: <0x0A> is a byte, and U+2581 a space."""
    return bytes([int(name[3:5], 16)]) if _BYTE.fullmatch(name) else name.replace("\u2581", " ").encode()


def _byte_values() -> dict[str, int]:
    """Character of byte-level BPE: byte (Radford et al. 2019, encoder.py): printable bytes stand for themselves, the others, in
    order, for the characters from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_values()


def _tensors(path: Path, *names: str) -> list[np.ndarray]:
    """Tensors of a safetensors file as read-only memory maps: the table is large and a question needs a few rows of it."""
    kinds = {"F16": np.float16, "F32": np.float32}
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        found = {name: np.memmap(path, kinds[entry["dtype"]], "r", 8 + size + entry["data_offsets"][0], tuple(entry["shape"]))
                 for name, entry in header.items() if name != "__metadata__"}  # fmt: skip
        return [found[name] for name in names]
    except (OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise PerceptionError("INVALID_BUNDLE", f"{path}: expected safetensors with {', '.join(names)} in F16 or F32, "
                                                f"found: {error!r}") from error


class Stream:
    """Text that grows token by token. Bytes of an unfinished character wait for the rest of it."""

    def __init__(self) -> None:
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._label_begin = 0
        self._starts = True
        self.interruptions: list[int] = []
        """Characters before each."""

    def add(self, piece: bytes) -> str:
        """What `piece` adds to the text: the answer starts without a space, and goes on after an interruption with one."""
        new = self._decoder.decode(piece)
        if self._starts:
            new = new.lstrip()
            self._starts = not new
            if new and self.text and not (self.text[-1].isspace() or new[0] in ".,;:!?)"):
                new = " " + new
        self.text += new
        return new

    def interrupt(self) -> None:
        """Something stands here that is no text, and around which spaces were swallowed."""
        self._starts = True
        self.interruptions.append(len(self.text))

    def __len__(self) -> int:
        """UTF-8 bytes so far."""
        return len(self.text.encode())

    def label(self) -> tuple[str, tuple[int, int]]:
        """The words since the last label without commas, spaces and "and" around them, and their [begin, end) in bytes."""
        raw = self.text[self._label_begin :]
        label = _AROUND.sub("", raw)
        begin = self._label_begin + raw.find(label)
        self._label_begin = len(self.text)
        return label, (len(self.text[:begin].encode()), len(self.text[: begin + len(label)].encode()))


def words(text: str, tokens: Sequence[tuple[int, int]]) -> list[tuple[int, int, list[int]]]:
    """Words of a text made by tokens with [begin, end) bytes each: (begin, end, indices of the tokens that overlap it).

    Words are runs of letters, digits, hyphens and apostrophes; one that no token made is left out.
    """
    out = []
    for match in re.finditer(r"\w[\w'-]*", text):
        begin, end = len(text[: match.start()].encode()), len(text[: match.end()].encode())
        inside = [i for i, (b, e) in enumerate(tokens) if b < end and e > begin]
        if inside:
            out.append((begin, end, inside))
    return out
