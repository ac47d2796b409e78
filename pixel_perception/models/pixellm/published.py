"""What PixelLM's published folders say about sizes and token ids, and what a LLaVA model has to grow by."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from pixel_perception.models.pixellm.clip_tower import ClipConfig
from pixel_perception.models.pixellm.codebook import CodebookConfig
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.models.pixellm.decoder import PixelDecoderConfig
from pixel_perception.models.pixellm.names import TOWER, plain_name
from pixel_perception.models.pixellm.text import MARKS, codebook_names
from pixel_perception.models.sam import TwoWayConfig
from pixel_perception.models.tensor_files import CheckpointError, read_object

EMBEDDING = "model.embed_tokens.weight"


def released(config: PixelLMConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> PixelLMConfig:
    """The configuration with the vocabulary and the codebook's ids that a release has; other sizes are checked with its tensors.

    Raises CheckpointError when its tokenizer splits the codebook, or it has another number of attention heads.
    """
    rows = next((shape[0] for name, shape in shapes.items() if plain_name(name) == EMBEDDING), config.language.vocabulary)
    first = codebook_first(folder, config.codebook.length)
    # The codebook is added to the vocabulary last but for the two marks around the image.
    first = rows - len(MARKS) - config.codebook.length if first is None else first
    return replace(config, language=replace(config.language, vocabulary=rows, **_language(config, folder)),
                   codebook=replace(config.codebook, first=first))  # fmt: skip


def grown(config: PixelLMConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path, tokenizer: Tokenizer) -> PixelLMConfig:
    """The configuration of a LLaVA model that learns to segment: its vocabulary, then the codebook and the marks it lacks.

    The tokenizer, LLaVA's own, gets the new tokens. Raises CheckpointError when it is not that of the embedding, or when the
    model has another number of attention heads.
    """
    rows = next((shape[0] for name, shape in shapes.items() if plain_name(name) == EMBEDDING), 0)
    if tokenizer.get_vocab_size() != rows:
        raise CheckpointError(f"{folder}: expected a tokenizer of {rows} tokens as the embedding has, found {tokenizer.get_vocab_size()}")
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in codebook_names(config.codebook.length)])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in MARKS if tokenizer.token_to_id(name) is None])
    return replace(config, language=replace(config.language, vocabulary=tokenizer.get_vocab_size(), **_language(config, folder)),
                   codebook=replace(config.codebook, first=rows))  # fmt: skip


def codebook_first(folder: Path, length: int) -> int | None:
    """The id of [SEG0] (or [SEG]) by the folder's tokenizer files, None when it has none.

    Raises CheckpointError when the codebook's ids are not one consecutive run.
    """
    known: dict[str, int] = {}
    if (path := folder / "tokenizer.json").is_file():
        known |= {x["content"]: x["id"] for x in read_object(path).get("added_tokens", [])}
    if (path := folder / "added_tokens.json").is_file():
        known |= read_object(path)
    names = codebook_names(length)
    if not known.keys() & set(names):
        return None
    ids = [known.get(name) for name in names]
    if ids[0] is None or ids != list(range(ids[0], ids[0] + length)):
        raise CheckpointError(f"the tokenizer in {folder} splits the codebook: {dict(zip(names, ids, strict=True))}")
    return ids[0]


def _language(config: PixelLMConfig, folder: Path) -> dict:
    path = folder / "config.json"
    stored = read_object(path) if path.is_file() else {}
    if (heads := stored.get("num_attention_heads", config.language.heads)) != config.language.heads:  # no shape tells it
        raise CheckpointError(f"{path}: num_attention_heads: expected {config.language.heads} as the configuration has, found {heads}")
    ours = {"rms_norm_eps": "eps", "max_position_embeddings": "context"}
    return {name: stored[key] for key, name in ours.items() if key in stored}


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], base: PixelLMConfig) -> PixelLMConfig:
    """A configuration with all sizes that published tensors tell; what shapes cannot tell is taken from `base`.

    Raises CheckpointError when the tensors are not those of a PixelLM.
    """
    shapes = {plain_name(name): tuple(shape) for name, shape in shapes.items()}
    try:
        vocabulary, dim = shapes[EMBEDDING]
        layer = "model.layers.0."
        heads = base.language.heads
        if frequencies := shapes.get(layer + "self_attn.rotary_emb.inv_freq"):
            heads = dim // (2 * frequencies[0])
        words = replace(
            base.language, vocabulary=vocabulary, dim=dim, heads=heads, layers=_count(shapes, r"model\.layers\.(\d+)\..*"),
            key_heads=shapes[layer + "self_attn.k_proj.weight"][0] * heads // dim,
            mlp=shapes[layer + "mlp.gate_proj.weight"][0],
        )
        levels, width = shapes["model.mask_decoder.level_embed.weight"]
        block = "model.mask_decoder.transformer.0.layers.0."
        transformer = TwoWayConfig(
            depth=_count(shapes, r"model\.mask_decoder\.transformer\.0\.layers\.(\d+)\..*"), dim=width,
            mlp=shapes[block + "mlp.lin1.weight"][0],
            down_rate=width // shapes[block + "cross_attn_token_to_image.q_proj.weight"][0],
        )
        decoder = PixelDecoderConfig(
            levels, shapes["model.mask_decoder.output_upscaling.0.weight"][1],
            shapes["model.mask_decoder.mask_tokens.weight"][0], transformer,
        )
    except KeyError as name:
        raise CheckpointError(f"not a PixelLM checkpoint: it has no tensor {name}") from None
    tokens = base.codebook.tokens
    # the codebook is added to the vocabulary last but for the two marks around the image
    book = CodebookConfig(vocabulary - 2 - levels * tokens, levels, tokens)
    return replace(base, language=words, decoder=decoder, codebook=book, vision=_vision(shapes, base.vision))


def _vision(shapes: Mapping[str, tuple[int, ...]], base: ClipConfig) -> ClipConfig:
    names = {re.sub("^" + TOWER, "", name): shape for name, shape in shapes.items() if re.match(TOWER, name)}
    if not names:
        return base
    dim, _, patch, _ = names["embeddings.patch_embedding.weight"]
    heads = base.heads if dim == base.dim else max(2, dim // 64)
    return replace(base, dim=dim, patch=patch, heads=heads, layers=_count(names, r"encoder\.layers\.(\d+)\..*"),
                   mlp=names["encoder.layers.0.mlp.fc1.weight"][0])


def _count(names: Iterable[str], pattern: str) -> int:
    return 1 + max(int(match[1]) for name in names if (match := re.fullmatch(pattern, name)))
