"""`pixel-perception checkpoint`: tiny checkpoints of every published layout, written here, become model folders or sentences."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file
from tokenizers_on_the_spot import llama, write_sentencepiece, write_tokenizer
from tokenizers_on_the_spot import t5 as t5_tokenizer

from pixel_perception.cli import main
from pixel_perception.evaluation.networks import open_network
from pixel_perception.models import folder
from pixel_perception.models.configurations import configuration
from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.models.pixelllm.text import PixelLLMText
from pixel_perception.models.pixellm.text import PixelLMText

CONFIG = configuration("pixellm-tiny")
INNER = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
CROSS = {"self_attention": "self_attn", "token_to_image": "cross_attn_token_to_image", "image_to_token": "cross_attn_image_to_token"}
OURS = {
    "language.": "model.", "word_head.weight": "lm_head.weight", "neck.": "model.image_feature_neck.",
    "decoder.positions.0.frequencies": "model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    "decoder.positions.1.frequencies": "model.mask_decoder.pe1.positional_encoding_gaussian_matrix",
    "decoder.no_mask": "model.prompt_encoder.no_mask_embed.weight", "decoder.level_code": "model.mask_decoder.level_embed.weight",
    "decoder.head.quality_token": "model.mask_decoder.iou_token.weight",
    "decoder.head.mask_tokens": "model.mask_decoder.mask_tokens.weight",
    "decoder.head.hypernetworks.": "model.mask_decoder.output_hypernetworks_mlps.",
    "decoder.head.quality.": "model.mask_decoder.iou_prediction_head.", "decoder.upscale.": "model.mask_decoder.output_upscaling.",
    "decoder.widen.0.": "model.mask_decoder.upsample_2x.", "decoder.transformers.": "model.mask_decoder.transformer.",
    "vision.class_token": "vision_model.embeddings.class_embedding", "vision.patches.": "vision_model.embeddings.patch_embedding.",
    "vision.positions": "vision_model.embeddings.position_embedding.weight", "vision.norm.": "vision_model.pre_layrnorm.",
    "vision.blocks.": "vision_model.encoder.layers.",
}  # fmt: skip
"""Beginnings of our names and of the release's; the rest follows below."""


def their_name(name):
    """The release's name of ours, written from the other side than the reader's rules."""
    for part, theirs in (("to_text", "mm_projector"), ("to_decoder", "out_mm_projector"), ("to_target", "text_hidden_fcs.0")):
        if name.startswith(part + "."):
            _, _, layer, ending = name.split(".")
            return f"model.{theirs}.{2 * int(layer)}.{ending}"
    start = max((start for start in OURS if name.startswith(start)), key=len)
    theirs, rest = OURS[start], name.removeprefix(start)
    if start == "vision.blocks.":
        for a, b in (("attention.", "self_attn."), ("mlp.layers.0", "mlp.fc1"), ("mlp.layers.1", "mlp.fc2"), ("norm", "layer_norm")):
            rest = rest.replace(a, b)
    if start == "decoder.transformers.":
        for a, b in (("blocks.", "layers."), ("mlp.layers.0", "mlp.lin1"), ("mlp.layers.1", "mlp.lin2"), *CROSS.items(),
                     ("final_attention", "final_attn_token_to_image"), ("final_norm", "norm_final_attn")):  # fmt: skip
            rest = rest.replace(a, b)
    if start.startswith(("vision.blocks.", "decoder.transformers.")):
        rest = ".".join(INNER.get(part, part) for part in rest.split("."))
    return theirs + rest


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PerceptionModel.of(CONFIG).eval()


@pytest.fixture(scope="module")
def published(model):
    """The release's tensors of a tiny model: (all but the tower, the tower)."""
    ours = {name: x for name, x in model.state_dict().items() if name not in ("fusion.weights", "decoder.scale_weights")}
    state = {their_name(name): x.clone() for name, x in ours.items()}
    state["model.prompt_encoder.no_mask_embed.weight"] = state["model.prompt_encoder.no_mask_embed.weight"][None]
    state["model.prompt_encoder.not_a_point_embed.weight"] = torch.zeros(1, 32)
    tower = {name: state.pop(name) for name in list(state) if name.startswith("vision_model.")}
    return state, tower | {"text_model.final_layer_norm.bias": torch.zeros(3), "vision_model.post_layernorm.weight": torch.zeros(32)}


def write(folder, tensors, shards=1):
    folder.mkdir(exist_ok=True)
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    parts = [dict(list(tensors.items())[i::shards]) for i in range(shards)]
    for name, part in zip(names, parts, strict=True):
        save_file({k: v.contiguous() for k, v in part.items()}, folder / name)
    if shards > 1:
        index = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.fixture
def release(tmp_path, published):
    """A folder as PixelLM's (the weights in `hf_model`, sharded, SentencePiece) and one as OpenAI's CLIP."""
    (tmp_path / "release").mkdir()
    inner = write(tmp_path / "release" / "hf_model", published[0], shards=3)
    write_sentencepiece(inner, CONFIG)
    (inner / "config.json").write_text(json.dumps({"num_attention_heads": 4, "rms_norm_eps": 1e-5}))
    return str(tmp_path / "release"), str(write(tmp_path / "clip", published[1]))


def run(*arguments, code=0):
    assert main(["checkpoint", *map(str, arguments)]) == code


def same(a, b, but=()):
    return [name for name, x in a.state_dict().items() if not torch.equal(x, b.state_dict()[name]) and not name.startswith(but)] == []


def test_a_release_becomes_a_model_folder(release, model, tmp_path, capsys):
    out = tmp_path / "model"
    run("pixellm-tiny", *release, "--out", out, "--json")
    told = json.loads(capsys.readouterr().out)
    loaded = folder.load(out)
    assert same(loaded, model) and loaded.config.language.eps == 1e-5 and loaded.config.codebook == CONFIG.codebook
    assert PixelLMText.open(out, loaded.config).row([("?", "{seg}")])[0][-7:-1] == CONFIG.codebook.ids
    (first, second), stored = told["sources"], folder.describe(out)["sources"]
    assert (first["layout"], second["layout"], stored) == ("PixelLM's release", "OpenAI's CLIP", told["sources"])
    file = tmp_path / "clip" / "model-00001-of-00001.safetensors"
    assert second["files"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()} and len(first["files"]) == 3


def test_a_dry_run_tells_both_names_and_writes_nothing(release, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    run("pixellm-tiny", *release, "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{release[0]}: PixelLM's release, {lines[0].split(', ')[1]}"
    assert "load: model.norm.weight (64,) -> language.norm.weight (64,)" in lines
    assert "unused: vision_model.post_layernorm.weight (32,) -> -  (features are taken before it)" in lines
    assert any(line.startswith("fresh: -  -> fusion.weights (2, 3)") for line in lines) and lines[-1].endswith("; all fit")
    run("pixellm-tiny", *release, "--dry-run", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] and told["counts"]["load"] == sum(row["status"] == "load" for row in told["rows"]) > 200
    assert sorted(tmp_path.iterdir()) == before


def test_lora_beside_the_weights_is_merged(published, model, tmp_path):
    query = "model.layers.0.self_attn.q_proj"
    wrapper, tower = "base_model.model.", "model.vision_tower.vision_tower."
    state = {wrapper + name: x for name, x in published[0].items()}
    state |= {wrapper + tower + name: x for name, x in published[1].items() if name.startswith("vision_model.")}
    a, b = torch.randn(8, 64), torch.randn(64, 8)
    state[f"{wrapper}{query}.base_layer.weight"] = state.pop(f"{wrapper}{query}.weight")
    state |= {f"{wrapper}{query}.lora_{half}.default.weight": x for half, x in (("A", a), ("B", b))}
    write(tmp_path / "unmerged", state)
    run("pixellm-tiny", tmp_path / "unmerged", "--out", tmp_path / "model")
    loaded, name = folder.load(tmp_path / "model"), "language.layers.0.self_attn.q_proj.weight"
    assert same(loaded, model, name) and torch.allclose(loaded.state_dict()[name], model.state_dict()[name] + 2 * b @ a, atol=1e-4)


@pytest.mark.parametrize("projector", [{"weight": (64, 32), "bias": (64,)}, {"0.weight": (64, 32), "0.bias": (64,), "2.weight": (64, 64)}])
def test_a_llava_model_grows_a_codebook(projector, published, model, tmp_path, capsys):
    rows = 1000
    words = ("model.layers.", "model.norm.", "model.embed_tokens.", "lm_head.")
    state = {name: x for name, x in published[0].items() if name.startswith(words)}
    state |= {name: state[name][:rows] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    state |= {f"model.mm_projector.{name}": torch.zeros(shape) for name, shape in projector.items()}
    base, clip = write(tmp_path / "llava", state), write(tmp_path / "clip", published[1])
    plain = llama(rows + 1 + 2, 1)  # <im_start>, <im_end> and one codebook token end it
    stored = json.loads(plain.to_str())
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["id"] < rows]
    (base / "tokenizer.json").write_text(json.dumps(stored))
    run("pixellm-tiny", base, clip, "--dry-run")
    assert "(LLaVA's projector, linear or of two layers, has another shape than PixelLM's, which starts fresh)" in capsys.readouterr().out
    run("pixellm-tiny", base, clip, "--out", tmp_path / "model")
    loaded = folder.load(tmp_path / "model")
    text = PixelLMText.open(tmp_path / "model", loaded.config)
    assert loaded.config.codebook.first == rows and loaded.config.language.vocabulary == rows + 8 == text.tokenizer.get_vocab_size()
    words = loaded.language.embed_tokens.weight
    assert torch.equal(words[:rows], state["model.embed_tokens.weight"]) and 0.01 < words[rows:].std() < 1
    assert same(loaded.vision, model.vision) and same(loaded.language.layers, model.language.layers)
    assert all(x.isfinite().all() for x in loaded.parameters()) and (loaded.neck[1].weight == 1).all()
    assert open_network("pixellm-tiny", str(tmp_path / "model")).text.tokenizer.get_vocab_size() == rows + 8  # still of that name
    (base / "tokenizer.json").write_text(llama(rows + 5).to_str())
    run("pixellm-tiny", base, clip, "--dry-run", code=2)
    assert "expected a tokenizer of 1000 tokens as the embedding has, found 1005" in capsys.readouterr().err


def test_flan_t5_sam_and_eva02_start_pixelllm(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    config = configuration("pixelllm-tiny")
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=512, d_model=48, d_kv=16, d_ff=64, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu", tie_word_embeddings=False))
    vision = {"hidden_size": 32, "output_channels": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 112,
              "patch_size": 16, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 128}  # fmt: skip
    sam = transformers.SamModel(transformers.SamConfig(vision_config=vision, prompt_encoder_config={"image_size": 112, "patch_size": 16}))
    semantic = PerceptionModel.of(config).semantic
    eva = {"patch.": "patch_embed.proj.", "cls": "cls_token", "position": "pos_embed", "attention.query.bias": "attn.q_bias",
           "attention.value.bias": "attn.v_bias", "attention.query": "attn.q_proj", "attention.key": "attn.k_proj",
           "attention.value": "attn.v_proj", "attention.out": "attn.proj", "mlp.gate": "mlp.w1", "mlp.up": "mlp.w2",
           "mlp.norm": "mlp.ffn_ln", "mlp.down": "mlp.w3"}  # fmt: skip

    def eva_name(name):
        for ours, theirs in eva.items():
            name = name.replace(ours, theirs)
        return name

    folders = [write(tmp_path / name, {k: v.clone() for k, v in state.items()}) for name, state in (
        ("t5", t5.state_dict()), ("sam", sam.state_dict()), ("eva", {eva_name(k): v for k, v in semantic.state_dict().items()}))]
    (tmp_path / "t5" / "tokenizer.json").write_text(t5_tokenizer(512).to_str())
    (tmp_path / "eva" / "tokenizer.json").write_text("not ours")  # open_clip's lies beside its tower too
    run("pixelllm-tiny", *reversed(folders), "--out", tmp_path / "model", "--dtype", "bfloat16")
    loaded = folder.load(tmp_path / "model", torch.float32)
    assert torch.allclose(loaded.language.embedding.weight, t5.shared.weight, rtol=0.01)
    assert torch.allclose(loaded.semantic.blocks[1].mlp.down.weight, semantic.blocks[1].mlp.down.weight, rtol=0.01)
    assert PixelLLMText.open(tmp_path / "model", loaded.config) and all(x.isfinite().all() for x in loaded.parameters())
    capsys.readouterr()
    run("pixelllm-tiny", folders[0], folders[1], "--dry-run", code=2)
    told = capsys.readouterr()
    assert "missing: -  -> semantic.cls (1, 1, 32) (a source may be EVA-02)" in told.out and "do not fit pixelllm-tiny" in told.err


@pytest.mark.parametrize(("change", "expected"), [
    (lambda state: state.pop("model.norm.weight"), "missing: -  -> language.norm.weight (64,)"),
    (lambda state: state.update({"model.surprise": torch.zeros(2)}), "extra: model.surprise (2,) -> -"),
    (lambda state: state.update({"lm_head.weight": torch.zeros(9, 47)}), "shape: lm_head.weight (9, 47) -> word_head.weight (1024, 64)"),
    (lambda state: state.update({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(8, 64)}), "LoRA without its other factor"),
    (lambda state: state.update({"vision_model.embeddings.class_embedding": torch.zeros(32)}), "filled it"),
])  # fmt: skip
def test_what_does_not_fit_is_listed_and_nothing_is_written(change, expected, published, tmp_path, capsys):
    state = dict(published[0])
    change(state)
    broken, clip = write(tmp_path / "broken", state), write(tmp_path / "clip", published[1])
    run("pixellm-tiny", broken, clip, "--out", tmp_path / "model", code=2)
    told = capsys.readouterr()
    assert expected in told.out and "1 tensor of" in told.err and told.err.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_mistakes_are_one_sentence_each(release, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    save_file({"weight": torch.zeros(1)}, tmp_path / "other" / "model.safetensors")
    (tmp_path / "split").mkdir()
    write_tokenizer(tmp_path / "split", configuration("pixelllm-small-tiny"))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    for arguments, sentence in (
        (["pixellm-70b", release[0], "--dry-run"], "configuration: expected one of compact, "),
        (["compact", release[0], "--dry-run"], "compact: it has no published layout"),
        (["pixellm-tiny", "no/such-model", "--dry-run"], "no/such-model: expected a folder, or a repository that the hub gives"),
        (["pixellm-tiny", *release, "--out", tmp_path / "clip"], "expected no folder, an empty one or one with model.json, found other"),
        (["pixellm-tiny", "nowhere", "--dry-run"], "nowhere: expected a folder or a repository"),
        (["pixellm-tiny", tmp_path / "empty", "--dry-run"], "expected weights (*.safetensors or *.bin), found none"),
        (["pixellm-tiny", tmp_path / "torn", "--dry-run"], "expected safetensors, found a file that cannot be read as such"),
        (["pixellm-tiny", tmp_path / "other", "--dry-run"], "expected the tensors of PixelLM's release, a LLaVA model, OpenAI's CLIP,"),
        (["pixellm-tiny", tmp_path / "split", *release, "--dry-run"], "expected a tokenizer of 1024 tokens as the network has, found 512"),
    ):
        run(*arguments, code=2)
        told = capsys.readouterr().err
        assert sentence in told and told.count("\n") == 1, told
    with pytest.raises(SystemExit):
        run("pixellm-tiny", *release)
    assert "expected --out FOLDER or --dry-run, found neither" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["checkpoint", "--help"])
    help_text = capsys.readouterr().out
    assert all(name in help_text for name in ("pixellm-13b", "LLaVA", "SAM"))


def test_files_beside_the_weights_are_read_with_care(release, tmp_path, capsys):
    inner = tmp_path / "release" / "hf_model"
    for name, text, sentence in (
        ("config.json", '{"num_attention_heads": 40}', "num_attention_heads: expected 4 as the configuration has, found 40"),
        ("config.json", "[]", "config.json: expected a JSON object, found list"),
        ("added_tokens.json", "{", "added_tokens.json: expected JSON, found something else"),
        ("model.safetensors.index.json", '{"files": 1}', "expected a weight_map from tensors to files, found None"),
    ):
        before = (inner / name).read_text()
        (inner / name).write_text(text)
        run("pixellm-tiny", *release, "--dry-run", code=2)
        told = capsys.readouterr().err
        assert sentence in told and told.count("\n") == 1, told
        (inner / name).write_text(before)


def test_a_tokenizer_that_splits_the_codebook_stops_before_anything_is_read(release, tmp_path, capsys):
    added = tmp_path / "release" / "hf_model" / "added_tokens.json"
    known = json.loads(added.read_text())
    known["[SEG5]"], known["[SEG4]"] = known["[SEG4]"], known["[SEG5]"]
    added.write_text(json.dumps(known))
    run("pixellm-tiny", *release, "--dry-run", code=2)
    assert "splits the codebook" in capsys.readouterr().err
