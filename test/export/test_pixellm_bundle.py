"""What `export --config pixellm-*` writes: a bundle that the commands for bundles read, compared with torch; and what it refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from pixellm_on_the_spot import config, write_tokenizer
from safetensors.numpy import load_file

from pixel_perception.bundle_commands import bundle, check_files, check_graphs, inspect
from pixel_perception.commands import ask
from pixel_perception.errors import PerceptionError
from pixel_perception.export import parity
from pixel_perception.export.expected import TOLERANCE, expect_configuration
from pixel_perception.export.pixellm_bundle import _add_llama, _llama_compared, export_pixellm
from pixel_perception.models import folder
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.models.pixellm.model import PixelLM


def test_bundle_is_whole_and_says_what_it_holds(pixellm, capsys):
    written, manifest = pixellm.bundle, pixellm.bundle.manifest
    assert set(manifest.graphs) == {"image_encoder", "token_fusion", "pixel_decoder", "language_model"}
    assert not any(check_files(written).values()) and not any(check_graphs(written).values())
    shapes = {t.name: t.shape for g in manifest.graphs.values() for t in (*g.inputs, *g.outputs)}
    assert shapes["image"] == ("batch", 64, 64, 3) and shapes["mask_logits"] == ("targets", 32, 32)
    assert (manifest.family, manifest.licence, manifest.context, manifest.image.width) == ("pixellm", "Apache-2.0", 320, 64)
    assert manifest.tokens.segments == tuple(pixellm.model.config.codebook.ids)
    assert manifest.provenance["configuration"]["kind"] == "pixellm"
    table = load_file(written.file("language.safetensors"))["embeddings"]
    np.testing.assert_array_equal(table, pixellm.model.language.embed_tokens.weight.half().numpy())
    assert "pixel_decoder.onnx.data" in manifest.files and bundle(["verify", str(written.folder)]) == 0
    assert inspect([str(written.folder)]) == 0 and "tasks: SEGMENT, REFER, NARRATE, ANSWER" in capsys.readouterr().out


def test_parity_is_that_of_answers_about_images(pixellm, capsys):
    figures = pixellm.bundle.parity
    assert max(max(outputs.values()) for outputs in figures["graphs"].values()) <= TOLERANCE
    measured = figures["backends"]["onnxruntime-cpu"]
    assert measured["token_agreement"] == 1 and measured["hidden_cosine_min"] > 0.9999 and measured["mask_iou"] > 0.99
    assert figures["targets"] >= 3 and "Accepted: a test has few pictures" in pixellm.bundle.manifest.accepted_drift
    pictures = str(pixellm.folder.parent / "pictures")
    assert parity.main([str(pixellm.bundle.folder), "--run", str(pixellm.folder), "--images", pictures, "--prompts", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == 2


def test_a_comparison_finds_another_model(pixellm):
    """The word head of another network says something else."""
    from pixel_perception.export.pixellm_parity import measure, read_samples
    from pixel_perception.runtime.onnxruntime import OnnxRuntime

    other = folder.load(pixellm.folder)
    with torch.no_grad():
        other.word_head.weight.copy_(other.word_head.weight.flip(0))
        other.to_target.layers[-1].bias += 1
    found = measure(other, pixellm.bundle, OnnxRuntime(threads=1), read_samples(pixellm.folder.parent / "pictures", 4))
    assert found["token_agreement"] < 0.5 and found["mask_iou"] < 0.98 and found["hidden_cosine"] > 0.999


def test_ask_answers_from_the_bundle(pixellm, capsys):
    picture = next((pixellm.folder.parent / "pictures").iterdir())
    assert ask([str(picture), "the red box", "--task", "segment", "--bundle", str(pixellm.bundle.folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["text"] and result["targets"] and len(result["instances"][0]["box"]) == 4


def test_padding_is_not_looked_at(pixellm):
    session = onnxruntime.InferenceSession(pixellm.bundle.graph("image_encoder"), providers=["CPUExecutionProvider"])
    frame = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    other = frame.copy()
    other[:, 48:] = 99
    a, b = (session.run(None, {"image": image, "fitted": np.array([[48, 64]])}) for image in (frame, other))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)) and a[1].sum() == 12


def test_a_quantised_language_model_is_judged_by_cosines(pixellm, tmp_path):
    graphs = {}
    _add_llama(pixellm.model.config, pixellm.folder, tmp_path, "int8", graphs)
    found = _llama_compared(pixellm.model.language, pixellm.model.word_head, tmp_path / "language_model.onnx", "int8")
    assert graphs["language_model"].precision == "int8" and 0.99 < min(found.values()) < max(found.values()) < 1


def test_flipped_byte_is_found(pixellm, tmp_path):
    copy = shutil.copytree(pixellm.bundle.folder, tmp_path / "copy")
    data = copy / "pixel_decoder.onnx.data"
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    with pytest.raises(PerceptionError, match="pixel_decoder.onnx.data: expected SHA-256 .* damaged"):
        bundle(["verify", str(copy)])


def test_nothing_is_written_where_a_graph_differs(tmp_path):
    torch.manual_seed(0)
    model = PixelLM(config())
    with torch.no_grad():
        model.language.norm.weight[3] = torch.nan
    folder.save(model, tmp_path / "model", write_tokenizer(tmp_path / "tokenizer", model.config))
    with pytest.raises(PerceptionError, match="bundle: not written: language_model: logits: expected a difference from torch"):
        export_pixellm("pixellm-tiny", tmp_path / "model", tmp_path / "bundle", "fp32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "tokenizer"]
    with pytest.raises(PerceptionError, match="expected no folder, an empty one or one with manifest.json, found other files"):
        export_pixellm("pixellm-tiny", tmp_path / "model", tmp_path / "model")
    with pytest.raises(PerceptionError, match="model: expected pixellm-7b, found another network: vision.dim: expected 1024, found 32"):
        expect_configuration("pixellm-7b", tmp_path / "model")


def test_heads_that_no_graph_has(tmp_path):
    tiny = PixelLMConfig.tiny(vocabulary=320)
    narrow = replace(tiny, language=replace(tiny.language, dim=48))
    folder.save(PixelLM(narrow), tmp_path / "model", write_tokenizer(tmp_path / "tokenizer", narrow))
    with pytest.raises(PerceptionError, match="model: expected attention heads of a multiple of 8 channels, which graphs need, found 12"):
        export_pixellm("pixellm-tiny", tmp_path / "model", tmp_path / "bundle")
