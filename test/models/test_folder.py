"""Model folders: what is saved comes back, nothing is left half-written, and what does not fit is named."""

import json
import shutil

import pytest
import torch
from tokenizers_on_the_spot import write_tokenizer
from transformers import LlamaConfig, LlamaModel

from pixel_perception.models import folder as folders
from pixel_perception.models.compact import Compact
from pixel_perception.models.config import CompactConfig, ImageConfig, LanguageConfig
from pixel_perception.models.configurations import configuration
from pixel_perception.models.folder import load, save
from pixel_perception.models.language import Language
from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.models.pixellm.text import PixelLMText
from pixel_perception.models.tensor_files import CheckpointError

TINY = CompactConfig(ImageConfig(96, 64, 32, 8, 1), language=LanguageConfig(hidden=48, vocabulary=40, lora_rank=4))


def compact_with_language():
    base = LlamaModel(LlamaConfig(vocab_size=40, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4))
    model = Compact(TINY)
    model.language = Language(base, TINY)
    return model


MODELS = {name: lambda name=name: PerceptionModel.of(configuration(name))
          for name in ("pixellm-tiny", "pixelllm-tiny", "pixelllm-small-tiny")}  # fmt: skip
MODELS |= {"compact": lambda: Compact(TINY), "compact with language": compact_with_language}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = PerceptionModel.of(configuration("pixellm-tiny"))
    tokenizer = write_tokenizer(tmp_path_factory.mktemp("tokenizer"), model.config)
    return model, save(model, tmp_path_factory.mktemp("saved") / "model", tokenizer, [{"file": "x", "sha256": "y"}], shard="300KB")


def same(a, b):
    theirs = b.state_dict()
    return a.state_dict().keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in a.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_comes_back(name, tmp_path):
    torch.manual_seed(1)
    model = MODELS[name]()
    again = load(save(model, tmp_path / "model"))
    assert type(again) is type(model) and again.config == model.config and same(model, again) and not again.training


def test_shards_tokenizer_and_sources_are_in_the_folder(saved):
    model, folder = saved
    assert len(list(folder.glob("model-*.safetensors"))) > 2 and (folder / "model.safetensors.index.json").is_file()
    assert folders.describe(folder)["sources"] == [{"file": "x", "sha256": "y"}]
    assert PixelLMText.open(folder, load(folder).config).prompt("?")
    half = load(folder, torch.bfloat16)
    assert {x.dtype for x in half.parameters()} == {torch.bfloat16} and torch.get_default_dtype() is torch.float32


def test_saving_again_replaces_weights_and_keeps_the_tokenizer(saved, tmp_path):
    folder = shutil.copytree(saved[1], tmp_path / "model")
    other = PerceptionModel.of(configuration("pixellm-tiny"))
    save(other, folder)
    assert same(load(folder), other) and (folder / "tokenizer.json").is_file() and (folder / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and not list(folder.glob("model-*"))


def test_a_failure_leaves_the_old_model_alone(saved, tmp_path, monkeypatch):
    folder = shutil.copytree(saved[1], tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr(folders, "to_dict", lambda config: {"unwritable": object()})
        with pytest.raises(TypeError):
            save(PerceptionModel.of(configuration("pixellm-tiny")), folder)
    assert same(load(folder), saved[0])


def test_folders_that_are_no_models_are_one_sentence(saved, tmp_path):
    model, folder = saved
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(CheckpointError, match="found other files"):
        save(model, tmp_path)
    with pytest.raises(CheckpointError, match="expected a model folder with model.json, found none"):
        load(tmp_path)
    (tmp_path / "model.json").write_text('{"format": 9}')
    with pytest.raises(CheckpointError, match="expected format 1"):
        load(tmp_path)
    wrong = shutil.copytree(folder, tmp_path / "wrong")
    described = json.loads((wrong / "model.json").read_text())
    described["configuration"]["language"]["mlp"] = 95
    (wrong / "model.json").write_text(json.dumps(described))
    name = r"language.layers.0.mlp.down_proj.weight"
    with pytest.raises(CheckpointError, match=rf"6 tensors do not fit:\nshape: {name} \(64, 96\) -> {name} \(64, 95\)"):
        load(wrong)


def test_adapters_must_be_merged_before(tmp_path):
    peft = pytest.importorskip("peft")
    model = PerceptionModel.of(configuration("pixellm-tiny"))
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj"]), model.language)
    with pytest.raises(CheckpointError, match="q_proj.* the first; adapters must be merged before"):
        save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
