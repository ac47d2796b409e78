"""SentencePiece models (`tokenizer.model` of LLaMA, `spiece.model` of T5) as tokenizers of the `tokenizers` library.

Only the file format is read, so the SentencePiece library itself is not needed.
"""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.utils.sentencepiece_model_pb2_new import ModelProto

SPACE = "▁"
UNIGRAM, BPE = 1, 2
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6


def open_sentencepiece(path: str | Path) -> Tokenizer:
    """The same segmentation as SentencePiece gives. Raises ValueError for another kind of model than unigram and BPE."""
    proto = ModelProto.FromString(Path(path).read_bytes())
    kind, unknown = proto.trainer_spec.model_type, next((p.piece for p in proto.pieces if p.type == UNKNOWN), None)
    if kind == UNIGRAM:
        scores = [(p.piece, p.score) for p in proto.pieces]
        names = [name for name, _ in scores]
        model = models.Unigram(scores, unk_id=names.index(unknown) if unknown else None, byte_fallback=proto.trainer_spec.byte_fallback)
    elif kind == BPE:
        vocabulary = {p.piece: i for i, p in enumerate(proto.pieces)}
        model = models.BPE(vocabulary, _merges(proto, vocabulary), unk_token=unknown, fuse_unk=True,
                           byte_fallback=proto.trainer_spec.byte_fallback)  # fmt: skip
    else:
        raise ValueError(f"{path}: expected a unigram or BPE model, found kind {kind}")
    tokenizer = Tokenizer(model)
    rules, steps = proto.normalizer_spec, []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if kind == BPE:  # merges never cross a word anyway, so the text is one stretch
        steps += [normalizers.Prepend(SPACE)] if rules.add_dummy_prefix else []
        steps.append(normalizers.Replace(" ", SPACE))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always" if rules.add_dummy_prefix else "never")
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", left=int(rules.add_dummy_prefix), right=0)])  # fmt: skip
    for piece in proto.pieces:
        if piece.type in (UNKNOWN, CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(piece.piece, normalized=False, special=piece.type != USER_DEFINED)])
    return tokenizer


def _merges(proto: ModelProto, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the best piece first: SentencePiece stores only the pieces' scores."""
    found = []
    for index, piece in enumerate(proto.pieces):
        if piece.type in (UNKNOWN, CONTROL, BYTE):
            continue
        name = piece.piece
        pairs = ((name[:i], name[i:]) for i in range(1, len(name)))
        found += [(-piece.score, index, vocabulary[a], vocabulary[b], a, b) for a, b in pairs if a in vocabulary and b in vocabulary]
    return [(a, b) for *_, a, b in sorted(found)]
