"""PixelLM as graphs, compared with torch at other sizes than they were traced with; folders of them; refusals."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

from pixel_perception.bundle_commands import bundle, check_files, check_graphs, inspect
from pixel_perception.errors import PerceptionError
from pixel_perception.export.graph_folder import GRAPHS, GraphFolder
from pixel_perception.export.paper_folder import TOLERANCE, expect_configuration, export_graphs
from pixel_perception.export.paper_graphs import apart
from pixel_perception.models import folder
from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.models.pixellm.config import PixelLMConfig


def build(config):
    """A network in which every parameter counts, also those that start at 0 or 1."""
    torch.manual_seed(0)
    model = PerceptionModel.of(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def shallow():
    """PixelLM with one block where the tiny one has two, and a language model of whole blocks of weights."""
    config = PixelLMConfig.tiny(vocabulary=96)
    decoder = replace(config.decoder, transformer=replace(config.decoder.transformer, depth=1))
    return replace(config, decoder=decoder, vision=replace(config.vision, layers=1, levels=(-1, -2)),
                   language=replace(config.language, dim=64, context=64))  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    place = tmp_path_factory.mktemp("paper")
    model = build(shallow())
    folder.save(model, place / "model")
    export_graphs("pixellm-tiny", place / "model", place / "graphs")
    return model, GraphFolder.listed(place / "graphs")


def test_pixellm_folder_is_whole_and_names_what_it_holds(exported, capsys):
    _, graphs = exported
    assert set(graphs.manifest.graphs) == {"image_encoder", "token_fusion", "pixel_decoder", "language_model"}
    assert not any(check_files(graphs).values()) and not any(check_graphs(graphs).values())
    shapes = {t.name: t.shape for g in graphs.manifest.graphs.values() for t in (*g.inputs, *g.outputs)}
    assert shapes["image"] == ("batch", 64, 64, 3) and shapes["mask_logits"] == ("targets", 32, 32)
    assert shapes["inputs_embeds"] == (1, "step", 64) and not graphs.manifest.left_out
    assert graphs.manifest.compared["pixel_decoder"]["mask_logits"] <= TOLERANCE
    assert graphs.manifest.compared["language_model"]["hidden_states"] >= 0.99
    table = load_file(graphs.folder / "language.safetensors")["embeddings"]
    np.testing.assert_allclose(table, exported[0].language.embed_tokens.weight.detach(), atol=1e-3)
    assert bundle(["verify", str(graphs.folder)]) == 0 and inspect([str(graphs.folder)]) == 0
    assert "no bundle: not served by Perception yet" in capsys.readouterr().out


def test_pixellm_graphs_see_what_the_network_sees(exported):
    """From a frame of bytes to masks, as `encode`, `fuse` and `masks` go, with the frame normalised by the graph."""
    from pixel_perception.models.pixellm.images import prepare

    model, graphs = exported
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)  # fits the frame without being resized
    pixels, fitted = prepare(image, 64)
    states = torch.randn(2, 6, 64)
    with torch.inference_mode():
        features = model.encode(pixels[None], [fitted])
        wanted = model.decoder(model.fusion(model.to_target(states)), features.maps).combined

    def run(name, **feeds):
        session = onnxruntime.InferenceSession(graphs.graph(name), providers=["CPUExecutionProvider"])
        return session.run(None, feeds)

    frame = np.pad(image, ((0, 16), (0, 0), (0, 0)), constant_values=99)
    tokens, valid, maps = run("image_encoder", image=frame[None], fitted=np.array([fitted]))
    assert apart(tokens, features.tokens.numpy()) < TOLERANCE and (valid == features.valid.numpy()).all()
    (fused,) = run("token_fusion", hidden_states=states.numpy())
    (masks,) = run("pixel_decoder", targets=fused, maps=maps, image_of_target=np.zeros(2, np.int64))
    assert apart(masks, wanted.numpy()) < TOLERANCE


def test_flipped_byte_is_found(exported, tmp_path):
    import shutil

    copy = shutil.copytree(exported[1].folder, tmp_path / "copy")
    data = copy / "pixel_decoder.onnx.data"
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    with pytest.raises(PerceptionError, match="pixel_decoder.onnx.data: expected SHA-256 .* damaged"):
        bundle(["verify", str(copy)])
    (copy / GRAPHS).write_text((copy / GRAPHS).read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(PerceptionError, match="graphs.json: expected format 1, found 9"):
        bundle(["verify", str(copy)])


def test_nothing_is_written_where_a_graph_differs(tmp_path):
    model = build(shallow())
    with torch.no_grad():
        model.language.norm.weight[3] = torch.nan
    folder.save(model, tmp_path / "model")
    with pytest.raises(PerceptionError, match="graphs: not written: language_model: logits: expected a difference from torch"):
        export_graphs("pixellm-tiny", tmp_path / "model", tmp_path / "graphs", "fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(PerceptionError, match="expected no folder, an empty one or one with graphs.json, found other files"):
        export_graphs("pixellm-tiny", tmp_path / "model", tmp_path / "model")
    with pytest.raises(PerceptionError, match="model: expected pixellm-7b, found another network: vision.dim: expected 1024, found 32"):
        expect_configuration("pixellm-7b", tmp_path / "model")
