"""Small tokenizers of the published kinds, trained here on a few sentences; nothing is downloaded."""

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.implementations import BertWordPieceTokenizer

from pixel_perception.models.configurations import Config
from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.t5 import T5Config
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.models.pixellm.text import SYSTEM, codebook_names

SENTENCES = [
    SYSTEM, "USER: Can you segment the red mug in this image? ASSISTANT: Sure, it is.", "Please segment the green bowl in this image.",
    "What is the blue box, the left one, in this image? Please respond with segmentation mask.", "The segmentation result is here.",
    "a photo of two cups on the table", "where is the yellow can", "an object of ", "Provide a long caption: a man holds a white plate.",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,;:!?'\"()-",
]  # fmt: skip


def llama(size: int, codebook: int = 6) -> Tokenizer:
    """Of `size` tokens as LLaMA's: BPE with bytes for the unknown; <im_start>, <im_end> and the codebook end the vocabulary.

    Where there is no room for the bytes (400 tokens), it is lower case and knows no others.
    """
    room = size > 400
    special, added = ["<unk>", "<s>", "</s>"], ["<im_start>", "<im_end>", *codebook_names(codebook)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=room, fuse_unk=True))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps if room else [normalizers.Lowercase(), *steps])
    # The pre-tokenizer is only there for training: LLaMA's merges never cross a word.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if room else []
    trainer = trainers.BpeTrainer(vocab_size=size - len(added), special_tokens=special + bytes_, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    stored = json.loads(tokenizer.to_str())
    stored["pre_tokenizer"] = None
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["content"] in special]  # bytes are text
    return _filled(Tokenizer.from_str(json.dumps(stored)), size, added)


def t5(size: int) -> Tokenizer:
    """Of at most `size` tokens as Flan-T5's: a unigram model, <pad> 0, </s> 1, <unk> 2."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    stored = json.loads(tokenizer.to_str())
    # Pieces of one score come in another order each time; SentencePiece's scores have single precision.
    pieces = [(piece, float(np.float32(score))) for piece, score in stored["model"]["vocab"]]
    stored["model"]["vocab"] = pieces[:3] + sorted(pieces[3:], key=lambda item: (-item[1], item[0]))
    return Tokenizer.from_str(json.dumps(stored))


def bert(size: int) -> Tokenizer:
    """Of `size` tokens as BERT's: lower-case word pieces; [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3."""
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(SENTENCES, vocab_size=size, min_frequency=1, show_progress=False,
                                  special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"])  # fmt: skip
    return _filled(Tokenizer.from_str(tokenizer.to_str()), size, [])


def tokenizer_for(config: Config) -> Tokenizer:
    """A tokenizer that fits a (tiny) configuration of either paper."""
    if isinstance(config, PixelLMConfig):
        return llama(config.language.vocabulary, config.codebook.length)
    assert isinstance(config, PixelLLMConfig)
    return (t5 if isinstance(config.language, T5Config) else bert)(config.language.vocabulary)


def write_tokenizer(folder: Path, config: Config) -> Path:
    """The same as `tokenizer.json` in a folder, which is made; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_for(config).save(str(folder / "tokenizer.json"))
    return folder


def write_sentencepiece(folder: Path, config: Config) -> Path:
    """The same as published beside older checkpoints: `tokenizer.model` or `spiece.model`, and `added_tokens.json`."""
    from transformers.utils.sentencepiece_model_pb2_new import ModelProto

    stored = json.loads(tokenizer_for(config).to_str())
    special = {token["content"] for token in stored["added_tokens"] if token["special"]}
    bpe = stored["model"]["type"] == "BPE"
    vocabulary = stored["model"]["vocab"]
    scored = [(name, -float(i)) for name, i in sorted(vocabulary.items(), key=lambda x: x[1])] if bpe else vocabulary
    proto = ModelProto()
    proto.trainer_spec.model_type = 2 if bpe else 1
    proto.trainer_spec.byte_fallback = bpe
    proto.normalizer_spec.remove_extra_whitespaces = False
    for name, score in scored:
        kind = (2 if name == "<unk>" else 3) if name in special else 6 if name.startswith("<0x") else 1
        proto.pieces.add(piece=name, score=score, type=kind)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("tokenizer.model" if bpe else "spiece.model")).write_bytes(proto.SerializeToString())
    late = {token["content"]: token["id"] for token in stored["added_tokens"] if token["id"] >= len(scored)}
    (folder / "added_tokens.json").write_text(json.dumps(late))
    return folder


def _filled(tokenizer: Tokenizer, size: int, added: list[str]) -> Tokenizer:
    spare = size - len(added) - tokenizer.get_vocab_size()
    assert spare >= 0, f"{size} tokens are too few"
    tokenizer.add_tokens([AddedToken(f"<spare{i}>", normalized=False) for i in range(spare)])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer
