"""Published weights in PixelLLM: the reference's trees at their real sizes, SAM, EVA-02 and Flan-T5."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pixel_perception.models.checkpoints import Source, load, open_source, plan
from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.flax_names import REFERENCE
from pixel_perception.models.pixelllm.hub_names import EVA02, FLAN_T5, SAM
from pixel_perception.models.pixelllm.model import PixelLLM
from pixel_perception.models.tensor_files import CheckpointError

SHAPES = Path(__file__).parent.parent / "golden" / "pixelllm_shapes.npz"


def stored_shapes(name):
    """Names and shapes of a parameter tree (from the reference implementation, as in test_pixelllm_golden)."""
    with np.load(SHAPES) as stored:
        return {name: tuple(shape) for name, shape in json.loads(str(stored[name])).items()}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PixelLLM(PixelLLMConfig.tiny(detector=True)).eval()


@pytest.mark.parametrize("tree, config", [
    ("t5_refseg", replace(PixelLLMConfig.pixelllm_t5xl(), detector=None)),
    ("t5_densecap", replace(PixelLLMConfig.pixelllm_t5xl(), location=None, masks=None)),
    ("bert_refseg", replace(PixelLLMConfig.pixelllm_small(), detector=None)),
])
def test_published_sizes_have_their_places(tree, config):
    with torch.device("meta"):
        model = PixelLLM(config)
    rows = plan(model, Source({name: torch.empty(shape, device="meta") for name, shape in stored_shapes(tree).items()}, REFERENCE))
    assert [str(row) for row in rows if not row.ok] == []
    assert {row.ours for row in rows if row.status == "fresh"} == {
        name for name in model.state_dict() if name.startswith("prompt_encoder.mask_branch.")}


def test_every_misfit_is_reported_by_both_names(model):
    shapes = stored_shapes("tiny")
    shapes["git_backbone/cls_token"] = (1, 1, 31)
    shapes["git_backbone/surprise"] = (2,)
    del shapes["prompt_adapter/output_hypernetworks_mlps.7/layers.0/bias"], shapes["sam_backbone/pos_embed"]
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load(model, Source({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, REFERENCE))
    text = str(error.value)
    assert "4 tensors do not fit" in text
    assert "shape: git_backbone/cls_token (1, 1, 31) -> semantic.cls (1, 1, 32)" in text
    assert "extra: git_backbone/surprise" in text
    assert "missing: - -> prompt_features.heads_bias" in text.replace("  ", " ") and "rows [7]" in text
    assert "-> spatial.position" in text
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_sam_from_the_hub_gives_sams_masks(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    vision = {"hidden_size": 32, "output_channels": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 112, "patch_size": 16, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 128,
              "layer_norm_eps": 1e-6}
    theirs = transformers.SamModel(transformers.SamConfig(
        vision_config=vision, prompt_encoder_config={"image_size": 112, "patch_size": 16})).eval()
    for name, x in theirs.named_parameters():
        if "rel_pos" in name or name.endswith("pos_embed"):
            torch.nn.init.normal_(x, std=0.1)
    save_file({name: x.contiguous().clone() for name, x in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    ours = PixelLLM(PixelLLMConfig.tiny()).eval()
    source = open_source(str(tmp_path), PixelLLM)
    rows = load(ours, source, whole=False)
    assert source.layout is SAM
    assert sum(row.status == "load" for row in rows) > 100
    image, box = torch.randn(1, 3, 112, 112), torch.tensor([[[10.0, 20.0, 70.0, 90.0]]])
    with torch.no_grad():
        # Theirs shifts boxes by half a pixel too, but scales by its own frame of the same size.
        expected = theirs(pixel_values=image, input_boxes=box, multimask_output=False)
        features = ours.encode(torch.zeros(1, 3, 112, 112))
        features.spatial = ours.spatial(image)
        masks, quality = ours.masks(features, box)
    assert torch.allclose(masks, expected.pred_masks[:, :, 0], atol=1e-4)
    assert torch.allclose(quality, expected.iou_scores[..., 0], atol=1e-5)


def test_flan_t5_from_the_hub_gives_its_logits(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=96, d_model=48, d_kv=16, d_ff=64, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, decoder_start_token_id=0)).eval()
    save_file({name: x.contiguous().clone() for name, x in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    ours = PixelLLM(PixelLLMConfig.tiny()).eval()
    source = open_source(str(tmp_path), PixelLLM)
    rows = load(ours, source, whole=False)
    assert source.layout is FLAN_T5
    assert {row.ours.rsplit(".", 1)[1] for row in rows if row.status == "fresh"} == {"lora_down", "lora_up"}
    visual, context, tokens = torch.randn(1, 5, 48), torch.tensor([[7, 30, 1]]), torch.tensor([[0, 9, 50, 3]])
    with torch.no_grad():
        prefix = torch.cat([visual, theirs.shared(context)], 1)
        expected = theirs(inputs_embeds=prefix, decoder_input_ids=tokens).logits
        logits, _, _ = ours.language.step(tokens, ours.language.encode(visual, context))
    assert torch.allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("names", [
    {"gate": "fc1_g", "up": "fc1_x", "norm": "norm", "down": "fc2", "bias": "attn.{}_proj.bias", "prefix": ""},
    {"gate": "w1", "up": "w2", "norm": "ffn_ln", "down": "w3", "bias": "attn.{}_bias", "prefix": "visual.trunk."},
])
def test_eva02_under_either_publishers_names(model, names):
    layers = {"norm1": "norm1", "norm2": "norm2", "attention.query": "attn.q_proj", "attention.key": "attn.k_proj",
              "attention.value": "attn.v_proj", "attention.out": "attn.proj", "mlp.gate": f"mlp.{names['gate']}",
              "mlp.up": f"mlp.{names['up']}", "mlp.norm": f"mlp.{names['norm']}", "mlp.down": f"mlp.{names['down']}"}
    published = {}
    for name, x in model.semantic.state_dict().items():
        if name.startswith("blocks."):
            _, i, rest = name.split(".", 2)
            layer, ending = rest.rsplit(".", 1)
            theirs = f"{layers[layer]}.{ending}"
            if rest in ("attention.query.bias", "attention.value.bias"):
                theirs = names["bias"].format(rest.split(".")[1][0])
            name = f"blocks.{i}.{theirs}"
        name = name.replace("patch.", "patch_embed.proj.").replace("cls", "cls_token").replace("position", "pos_embed")
        published[names["prefix"] + name] = torch.randn_like(x)
    other = PixelLLM(model.config)
    load(other, Source(published | {names["prefix"] + "head.weight": torch.zeros(5, 32)}, EVA02), whole=False)
    assert torch.equal(other.semantic.blocks[1].mlp.gate.bias, published[f"{names['prefix']}blocks.1.mlp.{names['gate']}.bias"])
    assert torch.equal(other.semantic.cls, published[names["prefix"] + "cls_token"])


def hub_model(kind, config):
    """Tensors without values of a model of the hub."""
    with torch.device("meta"):
        return dict(kind(config).state_dict())


def test_training_starts_from_published_parts_at_their_real_sizes():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model, small = PixelLLM(PixelLLMConfig.pixelllm_t5xl()), PixelLLM(PixelLLMConfig.pixelllm_small())
    tower = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "global_attn_indexes": [7, 15, 23, 31],
             "mlp_dim": 5120}  # fmt: skip
    sam = Source(hub_model(transformers.SamModel, transformers.SamConfig(vision_config=tower)), SAM)
    t5 = Source(hub_model(transformers.T5ForConditionalGeneration, transformers.T5Config(
        vocab_size=32128, d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False)), FLAN_T5)  # fmt: skip
    rows = plan(model, sam, t5)
    bad = [row for row in rows if not row.ok]
    assert bad and all(row.ours.startswith("semantic.") and row.note == "a source may be EVA-02" for row in bad)
    new = {"prompt_features", "visual_projection", "location_head", "mask_adapter", "detector"}
    assert {row.ours.split(".")[0] for row in rows if row.status == "fresh"} == {*new, "language"}
    assert all("lora" in row.ours for row in rows if row.status == "fresh" and row.ours.startswith("language."))
    fresh = {row.ours.split(".")[0] for row in plan(small, sam) if row.status == "fresh"}
    assert fresh == {*new, "language"}
    assert all(row.status == "extra" for row in plan(small, sam, t5) if row.published.startswith("encoder.block."))


def test_tensors_that_come_twice_are_extra(model):
    twice = Source({"shared.weight": torch.zeros(96, 48)}, FLAN_T5)
    rows = [row for row in plan(model, twice, twice, whole=False) if row.published]
    assert [row.status for row in rows] == ["load", "extra"] and rows[1].note == "shared.weight filled it"
