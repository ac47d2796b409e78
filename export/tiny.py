"""A bundle of a few hundred kilobytes that answers simple questions about coloured shapes, made without training.

It has every graph, name and shape rule of a real bundle (narrower, with a vocabulary of its own) and needs numpy, onnx and
tokenizers only. Its weights are set by hand so that tests can tell right answers from wrong ones: a "mug" is anything
red, a "banana" anything yellow, and nothing is a "unicorn". The small decoder-only transformer keeps one flag per
attention head ("the question holds the word 'and'") and chooses the next token from the last one and the flags:

    "the red mug"                   red mug <group>
    "the banana"                    yellow banana <group>
    "the mug and the banana"        red mug <group>, yellow banana <group>
    "all mugs", "all bananas"       the same with ALL before the group
    "the unicorn"                   red mug <group>, but presence is low
    "describe" (with a box)         red mug
    "describe the scene"            red mug <group>, yellow banana <group>
    "mugs forever"                  red mug <group>, yellow banana <group>, yellow banana <group>, ... without end
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pixel_perception.bundle import Bundle, Templates, Tokens
from pixel_perception.export.base_weights import DecoderShape
from pixel_perception.export.bundle import NOT_COMPARED, TASKS, write_bundle
from pixel_perception.export.language_graph import language_graph
from pixel_perception.export.tiny_vision import COLOURS, tiny_vision
from pixel_perception.export.tokenizer import byte_level_tokenizer

HIDDEN = 64
FLAGS = {
    "mug": ("mug", "mugs"), "banana": ("banana", "bananas"), "all": ("all", "mugs", "bananas"),
    "two": ("and", "scene", "forever"), "describe": ("describe",), "scene": ("scene",),
    "done": (), "forever": ("forever",), "unicorn": ("unicorn",),
}  # fmt: skip
"""Flag -> words that raise it. "done" is raised by the last piece of the banana that was answered."""
CONSTANT, SEEN, STATE, CHAIN, OTHER = 0, 1, 10, 20, COLOURS
"""Axes of the hidden space: a constant, flags of the token itself, flags of everything so far, one axis for each token that
an answer is made of, and the rest (other tokens, and what visual tokens say)."""
ANSWER = ("Ċ", "Ġred", "Ġmug", "Ġyellow", "Ġban", "ana", ",")
RUN = ("SEG0", "SEG1", "SEG2", "SEG3", "ALL")


def write_tiny_bundle(folder: str | Path) -> Bundle:
    """Write the tiny bundle to `folder` and open it. Deterministic; takes well under a second."""
    tokens, merges = _vocabulary()
    size = len(tokens)
    ids = {token: i for i, token in enumerate((*tokens, *RUN))}
    shape = DecoderShape(
        layers=2,
        hidden=HIDDEN,
        intermediate=64,
        heads=9,
        kv_heads=3,
        head_dim=32,
        vocabulary=size,
        rms_epsilon=1e-5,
        rope_base=1e5,
        positions=1024,
    )
    embeddings, output = _embeddings(ids), _output(ids)
    weights = _decoder(shape) | {"embeddings": embeddings[:size], "output": output[:size]}
    graphs = {
        name: (model, "fp32")
        for name, model in tiny_vision(
            HIDDEN, STATE + list(FLAGS).index("done"), STATE + list(FLAGS).index("unicorn")
        ).items()
    }
    graphs["language_model"] = (language_graph(shape, weights), "int8")
    return write_bundle(
        folder, graphs, embeddings, output[[ids["SEG0"], ids["ALL"]]],
        byte_level_tokenizer(tokens, merges, special=(0, 1, 2)).to_str(), NOT_COMPARED,
        name="tiny", version="1", licence="Apache-2.0", context=shape.positions,
        tasks=TASKS,
        tokens=Tokens(begin=1, end=2, newline=ids["Ċ"], segments=tuple(range(size, size + 4)), all=size + 4),
        templates=Templates(), provenance={"training": "none: weights set by hand"},
    )  # fmt: skip


def _vocabulary() -> tuple[list[str], list[str]]:
    """Control tokens, the 256 byte symbols, then words spelt out by merges; "ana" has no merge, so nobody can type it."""
    words = sorted({word for words in FLAGS.values() for word in words} | {"the", "red", "yellow", "find"})
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_byte_symbols()]
    merges = []
    for word in words:
        for end in range(1, len(word) + 1):
            left, right = "Ġ" + word[: end - 1], word[end - 1]
            if left + right not in tokens:
                tokens.append(left + right)
                merges.append(f"{left} {right}")
    tokens += [token for token in ANSWER if token not in tokens]
    return tokens, merges


def _byte_symbols() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE (Radford et al. 2019), by byte value."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def _embeddings(ids: dict[str, int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    table = np.zeros((len(ids), HIDDEN), np.float32)
    table[:, OTHER:] = rng.normal(size=(len(ids), HIDDEN - OTHER)) / np.sqrt(HIDDEN - OTHER)
    table[:, CONSTANT] = 1
    for flag, words in enumerate(FLAGS.values()):
        for word in words:
            table[ids["Ġ" + word], SEEN + flag] = 1
    for axis, token in enumerate(ANSWER + RUN):
        table[ids[token], OTHER:] = 0
        table[ids[token], CHAIN + axis] = 1
    table[ids["ana"], SEEN + list(FLAGS).index("done")] = 1
    return table


def _output(ids: dict[str, int]) -> np.ndarray:
    """Output columns. The usual successor of a token scores 4; another one scores 3.5 and wins by its flags, whose sum
    stays below 4 wherever that other one must not appear."""
    table = np.zeros((len(ids), HIDDEN), np.float32)
    table[:, CONSTANT] = -1

    def follow(last: str, following: str, weight: float) -> None:
        table[ids[following], CHAIN + (ANSWER + RUN).index(last)] += weight

    def prefer(token: str, flag: str, weight: float) -> None:
        table[ids[token], STATE + list(FLAGS).index(flag)] += weight

    end = "<|im_end|>"
    for last, following in (
        ("Ċ", "Ġred"),
        ("Ġred", "Ġmug"),
        ("Ġyellow", "Ġban"),
        ("Ġban", "ana"),
        (",", "Ġyellow"),
        ("Ġmug", "SEG0"),
        ("ana", "SEG0"),
        ("SEG3", end),
    ):
        follow(last, following, 4)
    for last, following in (
        ("Ċ", "Ġyellow"),
        ("Ġmug", "ALL"),
        ("ana", "ALL"),
        ("Ġmug", end),
        ("ana", end),
        ("SEG3", ","),
    ):
        follow(last, following, 3.5)
    for token, flag, weight in (
        ("Ġred", "mug", 1),
        ("Ġyellow", "banana", 1),
        ("ALL", "all", 1),
        (end, "describe", 1),
        (end, "scene", -1),
        (",", "two", 1),
        (",", "done", -1),
        (",", "forever", 1.5),
    ):
        prefer(token, flag, weight)
    return table


def _decoder(shape: DecoderShape) -> dict[str, np.ndarray]:
    """Layer 0 raises flags, one per head; everything else is small noise, so that no part of the graph is idle."""
    rng = np.random.default_rng(1)
    width, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {
        "q": (width, HIDDEN),
        "k": (kv, HIDDEN),
        "v": (kv, HIDDEN),
        "o": (HIDDEN, width),
        "gate": (shape.intermediate, HIDDEN),
        "up": (shape.intermediate, HIDDEN),
        "down": (HIDDEN, shape.intermediate),
    }
    weights = {"final_norm": np.ones(HIDDEN, np.float32)}
    for i in range(shape.layers):
        for part, size in sizes.items():
            weights[f"layers.{i}.{part}"] = rng.normal(scale=0.003, size=size).astype(np.float32)
        weights |= {
            f"layers.{i}.{norm}": np.ones(HIDDEN, np.float32) for norm in ("attention_norm", "mlp_norm")
        }
    for part in "qkvo":
        weights[f"layers.0.{part}"][:] = 0
    for flag in range(len(FLAGS)):
        head, group, slot = flag, flag // 3, flag % 3
        # The slowest rotary pairs: nearly constant over a thousand positions.
        axis = shape.head_dim // 2 - 1 - slot
        weights["layers.0.q"][head * shape.head_dim + axis, CONSTANT] = 2
        weights["layers.0.k"][group * shape.head_dim + axis, SEEN + flag] = 2
        weights["layers.0.v"][group * shape.head_dim + slot, SEEN + flag] = 1
        # A flagged token's normalised entry is about 4.6 (two or three entries of 1 in 64).
        weights["layers.0.o"][STATE + flag, head * shape.head_dim + slot] = 1 / 4.6
    return weights
