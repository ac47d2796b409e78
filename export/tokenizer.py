"""The language model's tokenizer, rebuilt from the vocabulary and merges inside its GGUF file.

SmolLM2 uses byte-level BPE (Radford et al. 2019) with every digit split off on its own; GGUF calls that scheme "smollm".
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pixel_perception.errors import PerceptionError


def byte_level_tokenizer(tokens: Sequence[str], merges: Sequence[str], special: Sequence[int]) -> Tokenizer:
    """Byte-level BPE tokenizer that adds nothing of its own to a text.

    tokens: byte-level strings, index = id; merges: "left right" in order of rank; special: ids of control tokens, found
    verbatim in a text and skipped when decoding. Raises PerceptionError INVALID_BUNDLE when a merge is not made of two tokens.
    """
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if wrong := [merge for merge, pair in zip(merges, pairs, strict=True) if len(pair) != 2]:
        raise PerceptionError(
            "INVALID_BUNDLE", f"tokenizer merge {wrong[0]!r}: expected two tokens with one space between"
        )
    model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs, ignore_merges=False)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(tokens[i], special=True, normalized=False) for i in special])
    return tokenizer
