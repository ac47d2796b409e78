"""Rounds are written as the runtime will read them, and the language stage learns from them, on tiny parts."""

import random

import pytest
import torch
from painted import HEIGHT, VOCABULARY, WIDTH, HashedPhrases, paint
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from pixel_perception.models.compact import Compact
from pixel_perception.models.config import CodebookConfig, CompactConfig, ImageConfig, LanguageConfig, RegionConfig
from pixel_perception.models.language import Language
from pixel_perception.simulation.instructions import Instruction
from pixel_perception.simulation.phrases import Phrase
from pixel_perception.training.language_stage import LanguageStage, collate
from pixel_perception.training.pixel_stage import PixelStage
from pixel_perception.training.rounds import IGNORE, REGION, RoundWriter
from pixel_perception.training.scenes import Scene

CONFIG = CompactConfig(ImageConfig(WIDTH, HEIGHT, 32, 8, 1), CodebookConfig(), RegionConfig(proposals=4),
                       LanguageConfig(hidden=32, vocabulary=300, lora_rank=4, newline_id=3))  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=4)}
    plain = Tokenizer(models.BPE(vocab={"<a>": 0, "<b>": 1, "<c>": 2, "<d>": 3} | alphabet, merges=[]))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain)


def test_a_round_holds_question_answer_and_groups(tokenizer):
    writer = RoundWriter(tokenizer, CONFIG)
    mug, cups = Phrase("red mug", "color", "one", (1,)), Phrase("cups", "all", "all", (2, 3))
    out = writer.write(Instruction("several", "list", "Find the red mug and all cups.", (mug, cups)))
    question = len(writer.text(" find the red mug and all cups")) + 2
    said = [t for t in out.labels if t != IGNORE]
    # What follows the answer's text is SEG0 (300) or ALL (301 in output numbering), and the end token last.
    assert said == [*writer.text(" red mug"), 300, *writer.text(", cups"), 301, CONFIG.language.end_id]
    assert out.labels[: question - 1] == [IGNORE] * (question - 1)
    assert [out.ids[at : at + 4] for at, _ in out.groups] == [CONFIG.codebook_ids] * 2
    assert out.ids[out.groups[1][0] - 1] == CONFIG.all_id and [t for _, t in out.groups] == [mug, cups]
    assert {label for _, label in out.words} == {1}  # "cups" means several: no one place
    assert len(out.ids) == len(out.labels)


def test_a_region_round_leaves_room_for_its_tokens(tokenizer):
    out = RoundWriter(tokenizer, CONFIG).write(Instruction("region", "region", "describe", (), 2, "red mug"))
    assert out.ids.count(REGION) == CONFIG.region.tokens and out.region == 2 and not out.groups
    assert out.ids[out.ids.index(REGION) + CONFIG.region.tokens] == CONFIG.language.newline_id


def test_the_stage_learns_and_leaves_the_base_alone(tokenizer, tmp_path):
    torch.manual_seed(0)
    records = paint(tmp_path, 2, views=2)
    base = LlamaModel(LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                                  num_key_value_heads=2))  # fmt: skip
    directions = nn.functional.normalize(torch.randn(9, 32), dim=-1)
    model = Compact(CONFIG)
    writer = RoundWriter(tokenizer, CONFIG)
    stage = LanguageStage(model, PixelStage(model, HashedPhrases.width, directions[:6], directions[6:]), writer)
    model.language = Language(base, CONFIG)
    frozen = {n: p.clone() for n, p in model.language.base.named_parameters() if not p.requires_grad}
    scenes, others = [Scene(records[0]), Scene(records[2])], [Scene(records[1]), Scene(records[3])]
    batch = collate(scenes, others, random.Random(0), VOCABULARY, writer, HashedPhrases(), (12, 16), 0.5)
    assert batch["other_judged"].any() and batch["other_there"][batch["other_judged"]].all()
    optimiser = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad], lr=3e-3)
    history = []
    for _ in range(12):
        losses = stage(batch)
        optimiser.zero_grad()
        losses["total"].backward()
        optimiser.step()
        history.append({k: v.item() for k, v in losses.items()})
    assert all(history[-1][k] < 0.9 * history[0][k] for k in ("mask", "elsewhere", "noun")), (history[0], history[-1])
    assert history[-1]["text"] < history[0]["text"]  # slowly: the frozen base is random
    assert all(torch.equal(p, frozen[n]) for n, p in model.language.base.named_parameters() if n in frozen)
    logits, there = stage.presence(batch)
    assert logits.shape == there.shape and there.any() and not there.all()
    pictures = stage(batch, look=True)
    assert len(pictures) == 2 and all(p.image.shape == p.target.shape == p.prediction.shape == (HEIGHT, WIDTH, 3) for p in pictures)
    assert all(p.asked and p.wanted for p in pictures) and any((p.target != p.image).any() for p in pictures)
