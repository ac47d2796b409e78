"""Published PixelLM weights: the mapping, files of every kind, LoRA, and what does not fit."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pixel_perception.models.checkpoints import Source, load, open_source, plan
from pixel_perception.models.pixellm.clip_tower import resize_positions, resize_positions_as_published
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.models.pixellm.model import PixelLM
from pixel_perception.models.pixellm.names import CLIP, LLAVA, RELEASE
from pixel_perception.models.pixellm.published import codebook_first, config_from_shapes
from pixel_perception.models.tensor_files import CheckpointError, Folder

SHAPES = Path(__file__).parent.parent / "golden" / "pixellm_shapes.npz"
TOWER = "model.vision_tower.vision_tower."
QUERY = "model.layers.0.self_attn.q_proj"


def stored_shapes(name):
    """Names and shapes in the published layout (from the published code, as in test_pixellm_golden)."""
    with np.load(SHAPES) as stored:
        return {name: tuple(shape) for name, shape in json.loads(str(stored[name])).items()}


def meta(shapes):
    """Tensors without values."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in stored_shapes("tiny").items()}


@pytest.fixture(scope="module")
def config(tensors):
    return config_from_shapes({name: tuple(x.shape) for name, x in tensors.items()}, PixelLMConfig())


@pytest.fixture(scope="module")
def loaded(tensors, config):
    model = PixelLM(config)
    load(model, Source(tensors, RELEASE))
    return model.state_dict()


def same(model, state):
    return all(torch.allclose(value, state[name], atol=1e-6) for name, value in model.state_dict().items())


def test_sizes_are_read_from_shapes(config):
    assert (config.language.dim, config.language.layers, config.language.heads) == (48, 2, 4)
    assert (config.vision.dim, config.vision.layers, config.codebook.ids) == (32, 12, [56, 57, 58, 59, 60, 61])


def test_every_published_tensor_has_its_place(tensors, config):
    rows = plan(PixelLM(config), Source(tensors, RELEASE))
    assert all(row.ok for row in rows)
    assert {row.published for row in rows if row.published} == set(tensors)
    assert {row.ours for row in rows if row.status == "fresh"} == set(RELEASE.fresh)


def published(wider):
    """Names and shapes of the whole release: the stored list shows two layers of the 7B, with fewer keys than there are."""
    shapes = stored_shapes("published_7b")
    for name in [name for name in shapes if name.startswith("model.layers.0.")]:
        if name.endswith((".k_proj.weight", ".v_proj.weight")):
            shapes[name] = (4096, 4096)
        shapes |= {name.replace(".0.", f".{i}.", 1): shapes[name] for i in range(40 if wider else 32)}
    wide = {4096: 5120, 8192: 10240, 11008: 13824} if wider else {}
    return {name: tuple(wide.get(size, size) for size in shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("named", ["pixellm_7b", "pixellm_13b"])
def test_the_published_sizes_map_without_memory(named):
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = PixelLM(getattr(PixelLMConfig, named)())
        clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14))
    tower = {"vision_model." + name.removeprefix("vision_model."): x for name, x in clip.state_dict().items()}
    release = meta(published(named == "pixellm_13b"))
    rows = plan(model, Source(release, RELEASE), Source(tower, CLIP))
    assert [str(row) for row in rows if not row.ok] == []
    assert [row.ours for row in rows if row.status == "resize"] == ["vision.positions"]
    assert sum(row.status == "load" and row.ours.startswith("language.") for row in rows) == 2 + 9 * (40 if "13b" in named else 32)
    llava = {name: x for name, x in release.items() if "mask_decoder" not in name and name.startswith(("model.layers", "model.norm"))}
    width = model.config.language.dim
    llava |= meta({"model.embed_tokens.weight": (32000, width), "lm_head.weight": (32000, width),
                   "model.mm_projector.weight": (width, 1024), "model.mm_projector.bias": (width,)})  # fmt: skip
    rows = plan(model, Source(llava, LLAVA), Source(tower, CLIP))
    assert [str(row) for row in rows if not row.ok] == []
    assert {row.ours for row in rows if row.status == "grow"} == {"language.embed_tokens.weight", "word_head.weight"}
    assert all("LLaVA's projector" in row.note for row in rows if "mm_projector" in row.published)
    assert {row.ours.split(".")[0] for row in rows if row.status == "fresh"} == {
        "to_text", "to_decoder", "neck", "to_target", "fusion", "decoder"}


@pytest.mark.parametrize("named", ["pixellm_7b", "pixellm_13b"])
def test_named_sizes_are_the_published_ones(named):
    with torch.device("meta"):
        model = PixelLM(getattr(PixelLMConfig, named)())
    millions = model.millions()
    assert millions["decoder"] == pytest.approx(7.57, abs=0.01)
    if named == "pixellm_7b":
        assert millions["to_text"] == millions["to_decoder"] == pytest.approx(41.96, abs=0.01)
        assert millions["to_target"] == pytest.approx(17.83, abs=0.01)
        assert millions["neck"] == pytest.approx(1.64, abs=0.01)


def test_layout_of_the_published_7b_misses_only_the_tower():
    shapes = stored_shapes("published_7b")
    with torch.device("meta"):
        model = PixelLM(config_from_shapes(shapes, PixelLMConfig()))
    rows = [row for row in plan(model, Source(meta(shapes), RELEASE)) if not row.ok]
    assert rows and all(row.status == "missing" and row.ours.startswith("vision.") for row in rows)


def test_lora_beside_the_weights_is_merged(tensors, config, loaded):
    a, b = torch.randn(8, 48), torch.randn(48, 8)
    unmerged = {"base_model.model." + name: x for name, x in tensors.items()}
    base = "base_model.model." + QUERY
    unmerged[base + ".base_layer.weight"] = unmerged.pop(base + ".weight")
    unmerged |= {base + ".lora_A.default.weight": a, base + ".lora_B.default.weight": b}
    model = PixelLM(config)
    rows = load(model, Source(unmerged, RELEASE))
    assert sum(row.status == "merge LoRA" for row in rows) == 2
    name = "language.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(model.state_dict()[name], loaded[name] + 2 * b @ a, atol=1e-4)


def test_sharded_files_of_both_kinds_and_a_separate_tower(tmp_path, tensors, config, loaded):
    main, clip = tmp_path / "hf_model", tmp_path / "clip"
    main.mkdir(), clip.mkdir()
    parts = [{}, {}, {}]
    for name, x in tensors.items():
        if name.startswith(TOWER):
            parts[2][name.removeprefix(TOWER)] = x
        else:
            parts["decoder" in name][name] = x
    torch.save(parts[0], main / "pytorch_model-00001-of-00002.bin")
    torch.save(parts[1], main / "pytorch_model-00002-of-00002.bin")
    index = {name: f"pytorch_model-0000{1 + i}-of-00002.bin" for i in (0, 1) for name in parts[i]}
    (main / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    extra = {"text_model.final_layer_norm.bias": torch.zeros(4), "logit_scale": torch.zeros(())}
    save_file(parts[2] | extra, clip / "model.safetensors")
    sources = open_source(str(tmp_path), PixelLM), open_source(str(clip), PixelLM)
    assert [source.layout for source in sources] == [RELEASE, CLIP]
    model = PixelLM(config)
    load(model, *sources)
    assert same(model, loaded)
    for name in Folder(clip):
        assert torch.equal(Folder(clip)[name], (parts[2] | extra)[name])


def test_every_misfit_is_reported_by_both_names(tensors, config):
    broken = dict(tensors)
    del broken["model.norm.weight"]
    broken["model.surprise"] = torch.zeros(2)
    broken["lm_head.weight"] = torch.zeros(64, 47)
    model = PixelLM(config)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load(model, Source(broken, RELEASE))
    message = str(error.value)
    assert message.startswith("3 tensors")
    assert re.search(r"missing: -.*-> language\.norm\.weight \(48,\)", message)
    assert re.search(r"extra: model\.surprise \(2,\) -> -", message)
    assert re.search(r"shape: lm_head\.weight \(64, 47\) -> word_head\.weight \(64, 48\)", message)
    assert same(model, before)


def test_another_size_is_a_list_of_shapes(tensors):
    with pytest.raises(CheckpointError, match=r"\(256, 48, 1, 1\) -> neck\.0\.weight \(32, 64, 1, 1\)"):
        load(PixelLM(PixelLMConfig.tiny(3, 2)), Source(tensors, RELEASE))


def test_unusable_folders(tmp_path):
    with pytest.raises(CheckpointError, match="expected weights .*, found none"):
        Folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(CheckpointError, match="gone.safetensors"):
        Folder(tmp_path)
    with pytest.raises(CheckpointError, match="not a PixelLM checkpoint"):
        config_from_shapes({"weight": (1,)}, PixelLMConfig())


def test_copies_under_other_names_are_left_alone(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    save_file({"visual.trunk.a": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")
    assert list(Folder(tmp_path)) == ["a"]


def test_pickled_code_is_never_run(tmp_path):
    torch.save({"a": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="expected weights and nothing else"):
        Folder(tmp_path)


def test_a_tokenizer_that_splits_the_codebook_is_refused(tmp_path):
    assert codebook_first(tmp_path, 6) is None
    ids = {f"[SEG{i}]": 29871 for i in range(6)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
    with pytest.raises(CheckpointError, match="splits the codebook"):
        codebook_first(tmp_path, 6)


def test_position_tables():
    table = torch.arange(10.0)[:, None]
    assert torch.equal(resize_positions(table, 3), table)
    assert torch.equal(resize_positions_as_published(table, 3), table)
    larger = resize_positions(table, 6)
    assert larger.shape == (37, 1) and larger[0] == 0 and larger[1] == 1 and larger[-1] == 9
    slipped = resize_positions_as_published(table, 6)
    assert slipped[0] == 0 and slipped[1] != 1 and slipped[-2] == 8 and slipped[-1] == 9
    with pytest.raises(ValueError, match="square grid"):
        resize_positions(torch.zeros(12, 1), 3)
