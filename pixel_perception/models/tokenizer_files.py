"""Tokenizers in local folders, whatever they were published as, and pieces of text with their places."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from pixel_perception.models.tensor_files import read_object

FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "added_tokens.json")
"""What a tokenizer can consist of: one of the first four, and tokens that were added to it."""


class TokenizerError(ValueError):
    """A tokenizer that is not there or does not belong to the network; the message names the folder."""


def open_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder: `tokenizer.json`, a SentencePiece model or BERT's `vocab.txt`, with `added_tokens.json`.

    Raises TokenizerError when there is none, or when an added token has another id than its file says.
    """
    folder = Path(folder)
    path = next((folder / name for name in FILES[:4] if (folder / name).is_file()), None)
    if path is None:
        raise TokenizerError(f"{folder}: expected a tokenizer ({', '.join(FILES[:4])}), found none")
    try:
        if path.suffix == ".json":
            tokenizer = Tokenizer.from_file(str(path))
        elif path.suffix == ".model":
            from pixel_perception.models.sentencepiece_files import open_sentencepiece

            tokenizer = open_sentencepiece(path)
        else:
            tokenizer = Tokenizer.from_str(BertWordPieceTokenizer(str(path), lowercase=True).to_str())
    except TokenizerError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"{path}: expected a tokenizer, found a file that cannot be read as one ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    added = folder / "added_tokens.json"
    if added.is_file():
        for token, index in sorted(read_object(added).items(), key=lambda item: item[1]):
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
            if tokenizer.token_to_id(token) != index:
                raise TokenizerError(f"{added}: expected id {tokenizer.token_to_id(token)} for {token!r}, found {index}")
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str, folder: str | Path) -> int:
    """The id of a token that must exist. Raises TokenizerError."""
    if (index := tokenizer.token_to_id(token)) is None:
        raise TokenizerError(f"{folder}: expected the token {token!r} in the tokenizer, found none")
    return index


def pieces(tokenizer: Tokenizer, text: str) -> list[tuple[int, int, int]]:
    """The text as (id, first byte, end byte) in its UTF-8 form, without the spaces around a word and without special tokens."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    bytes_before = [0]
    for character in text:
        bytes_before.append(bytes_before[-1] + len(character.encode()))
    found = []
    for index, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
        begin += len(text[begin:end]) - len(text[begin:end].lstrip())
        end = max(begin, begin + len(text[begin:end].rstrip()))
        found.append((index, bytes_before[begin], bytes_before[end]))
    return found
