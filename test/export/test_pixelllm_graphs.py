"""PixelLLM's graphs against the torch model: same numbers, the same tokens from the very same decoding loops, the same objects."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pixel_perception.export.paper_folder import TOLERANCE
from pixel_perception.export.pixelllm_graphs import cache_names, language_parts, merge_lora, pixelllm_parts
from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.decoding import beam, greedy
from pixel_perception.models.pixelllm.memory import Memory
from pixel_perception.models.pixelllm.t5 import T5
from pixel_perception.models.pixelllm.text_decoder import TextDecoder


def loud(model):
    """In evaluation mode, with parameters that all count and answers that are not one word again and again."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(0, 0.2)
    return model.eval()


class Graphs:
    """Speaks a language model's verbs, so that `models.pixelllm.decoding` can drive its graphs."""

    def __init__(self, model, folder):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.differences, sessions = {}, []
        for name, part in language_parts(model).items():
            path = folder / f"{name}.onnx"
            part.export(path)
            self.differences |= part.differences(path)
            sessions.append(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
        self.encoder, self.decoder = sessions
        shapes = {value.name: value.shape for value in self.decoder.get_inputs()}
        self.layers, (_, self.heads, _, self.size) = model.config.layers, shapes["past.0.key"]

    def encode(self, visual, context):
        valid, *memory = self.encoder.run(None, {"visual": visual.numpy(), "context": context.numpy()})
        return Memory(pairs(memory), torch.from_numpy(valid))

    def step(self, tokens, memory, past=None):
        rows = len(tokens)
        past = past or [(torch.zeros(rows, self.heads, 0, self.size),) * 2] * self.layers
        feeds = {"tokens": tokens.numpy(), "valid": memory.valid.numpy(), "real": np.ones(tokens.shape, bool)}
        for stem, layers in (("memory", memory.layers), ("past", past)):
            names = cache_names(stem, self.layers)
            feeds |= {name: t.numpy() for name, t in zip(names, (t for pair in layers for t in pair), strict=True)}
        known = {value.name for value in self.decoder.get_inputs()}
        logits, states, *present = self.decoder.run(None, {name: value for name, value in feeds.items() if name in known})
        return torch.from_numpy(logits), torch.from_numpy(states), pairs(present)


def pairs(arrays):
    return [(torch.from_numpy(k), torch.from_numpy(v)) for k, v in zip(arrays[::2], arrays[1::2], strict=True)]


def prefix(rows, visual, seed=0):
    generator = torch.Generator().manual_seed(seed)
    context = torch.randint(2, 96, (rows, 6), generator=generator)
    context[0, 4:] = 0  # padding
    return torch.randn(rows, visual, 48, generator=generator), context


@pytest.mark.parametrize(("kind", "language"), [(T5, "t5"), (TextDecoder, "text_decoder")])
def test_language_graphs_say_the_same_tokens(kind, language, tmp_path):
    torch.manual_seed(0)
    model = loud(kind(PixelLLMConfig.tiny(language).language))
    graphs = Graphs(model, tmp_path)
    assert max(graphs.differences.values()) < TOLERANCE
    inputs = prefix(3, 8, seed=2)
    with torch.no_grad():
        wanted, score = greedy(model, model.encode(*inputs), 0, 1, 20)
        ours, our_score = greedy(graphs, graphs.encode(*inputs), 0, 1, 20)
        assert torch.equal(ours, wanted) and len(set(wanted[0].tolist())) > 3
        np.testing.assert_allclose(our_score, score, rtol=1e-3, atol=1e-4)
        wanted, _ = beam(model, model.encode(*inputs), 0, 1, 12)
        ours, _ = beam(graphs, graphs.encode(*inputs), 0, 1, 12)
        assert torch.equal(ours, wanted)
    shapes = {v.name: v.shape for v in (*graphs.decoder.get_inputs(), *graphs.decoder.get_outputs())}
    assert shapes["tokens"] == ["batch", "step"] and shapes["memory.1.value"][2] == "read" and shapes["past.0.key"][2] == "past"
    assert shapes["logits"] == ["batch", "step", 96]


def test_merged_adapters_compute_the_same():
    model, inputs = loud(T5(PixelLLMConfig.tiny("t5").language)), prefix(2, 5)
    with torch.no_grad():
        tokens = torch.randint(1, 96, (2, 5))
        wanted = model.step(tokens, model.encode(*inputs))[0]
        merge_lora(model)
        assert not [name for name, _ in model.named_parameters() if "lora" in name]
        np.testing.assert_allclose(model.step(tokens, model.encode(*inputs))[0], wanted, rtol=1e-3, atol=1e-3)


def test_parts_of_a_model(tmp_path):
    """`export` itself compares all parts; here those that trace fast, at the bounds of what they must notice."""
    torch.manual_seed(0)
    model = loud(PerceptionModel.of(PixelLLMConfig.tiny("t5", detector=True)))
    parts = pixelllm_parts(model)
    assert list(parts) == ["image_encoder", "prompt_feature_extractor", "proposals", "second_stage", "location_head", "mask_decoder",
                           "language_encoder", "language_decoder"]  # fmt: skip
    head, path = parts["location_head"], tmp_path / "location_head.onnx"
    head.export(path)
    assert path.stat().st_size < 200_000 and path.with_name(f"{path.name}.data").is_file()
    assert not any(np.prod(i.dims) > 1 << 12 and i.raw_data for i in onnx.load(path, load_external_data=False).graph.initializer)
    assert max(head.differences(path).values()) < TOLERANCE
    with torch.no_grad():
        model.location_head.mlp.layers[-1].bias[0] += 0.01
    assert head.differences(path)["points"] > TOLERANCE
