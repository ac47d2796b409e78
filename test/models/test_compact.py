"""The compact model on a tiny configuration: independence of targets, gradients, and training that learns."""

import torch
from transformers import LlamaConfig, LlamaModel

from pixel_perception.models.codebook import TokenFusion
from pixel_perception.models.compact import Compact
from pixel_perception.models.config import CodebookConfig, CompactConfig, ImageConfig, LanguageConfig, RegionConfig
from pixel_perception.models.image_encoder import Features
from pixel_perception.models.language import Language
from pixel_perception.models.pixel_decoder import PixelDecoder

TINY = CompactConfig(ImageConfig(96, 64, 32, 8, 1), CodebookConfig(), RegionConfig(proposals=4),
                     LanguageConfig(hidden=48, vocabulary=40, lora_rank=4))  # fmt: skip


def tiny_language() -> Language:
    torch.manual_seed(0)
    base = LlamaModel(LlamaConfig(vocab_size=40, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                                  num_key_value_heads=2, attn_implementation="sdpa"))  # fmt: skip
    return Language(base, TINY)


def frames(count=2):
    return torch.randint(0, 256, (count, 64, 96, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_shapes_follow_the_configuration():
    model = Compact(TINY)
    features = model.image_encoder(frames())
    assert [tuple(f.shape) for f in features] == [(2, 32, 4, 6), (2, 32, 8, 12), (2, 8, 16, 24)]
    boxes, scores = model.proposals(features.s8)
    assert boxes.shape == (2, 4, 4) and (scores[:, :-1] >= scores[:, 1:]).all()
    visual, queries, align = model.prompt_features(features, boxes)
    assert visual.shape == (2, 4, 3, 48) and queries.shape == (2, 4, 2, 32)
    assert torch.allclose(align.norm(dim=-1), torch.ones(2, 4, 3), atol=1e-5)
    decoded = model.pixel_decoder(features, queries)
    assert decoded.mask.shape == (2, 4, 16, 24) and decoded.presence.shape == (2, 4)


def test_targets_do_not_influence_each_other():
    torch.manual_seed(0)
    decoder = PixelDecoder(TINY.image).eval()
    features = Features(torch.randn(1, 32, 4, 6), torch.randn(1, 32, 8, 12), torch.randn(1, 8, 16, 24))
    queries = torch.randn(1, 3, 2, 32)
    together, alone = decoder(features, queries), decoder(features, queries[:, 1:2])
    assert torch.allclose(together.mask[:, 1:2], alone.mask, atol=1e-5)
    assert torch.allclose(together.presence[:, 1:2], alone.presence, atol=1e-5)


def test_fusion_starts_as_the_mean_of_each_scale():
    fusion = TokenFusion(48, 32, TINY.codebook)
    states = torch.randn(5, 4, 48)
    by_hand = torch.stack([fusion.project(states[:, :2]).mean(1), fusion.project(states[:, 2:]).mean(1)], 1)
    assert torch.allclose(fusion(states), by_hand, atol=1e-6)


def test_language_sees_added_tokens_and_trains_only_what_it_should():
    language = tiny_language()
    ids = torch.tensor([[3, 40, 44]])
    embedded = language.embed(ids)
    assert torch.equal(embedded[0, 1], language.added[0]) and torch.equal(embedded[0, 2], language.added[4])
    allowed = torch.ones(1, 3, 3, dtype=torch.bool).tril()
    states = language(embedded, torch.arange(3)[None], allowed)
    assert language.logits(states).shape == (1, 3, 42)
    language.logits(states).sum().backward()
    trained = {n for n, p in language.named_parameters() if p.grad is not None}
    assert trained and all("lora_" in n or n in ("added", "output") for n in trained)
    assert len(language.lora_state()) == 2 * 2 * len(TINY.language.lora_modules)


def test_rounds_behind_one_prefix_do_not_see_each_other():
    language = tiny_language()
    x = torch.randn(1, 9, 48)
    group = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 3, 4, 5]])
    allowed = torch.ones(9, 9, dtype=torch.bool).tril() & ((group[:, None] == 0) | (group[:, None] == group[:, :, None]))
    packed = language(x, positions, allowed)[:, 6:]
    alone = language(torch.cat([x[:, :3], x[:, 6:]], 1), torch.arange(6)[None], torch.ones(1, 6, 6, dtype=torch.bool).tril())[:, 3:]
    assert torch.allclose(packed, alone, atol=1e-5)
