"""The T5 graphs against the torch T5: same numbers, and the same tokens from the very same decoding loops."""

import numpy as np
import onnxruntime
import pytest
import torch

from pixel_perception.export.t5_graphs import cache_names, merge_lora, t5_graphs
from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.decoding import beam, greedy
from pixel_perception.models.pixelllm.t5 import T5, T5Memory


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = T5(PixelLLMConfig.tiny("t5").language).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(0, 0.2)
    return model


class Graphs:
    """Speaks the T5's verbs, so that `models.pixelllm.decoding` can drive it."""

    def __init__(self, model):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
            for graph in t5_graphs(model).values()
        )
        self.config = model.config

    def encode(self, visual, context):
        valid, *memory = self.encoder.run(None, {"visual": visual.numpy(), "context": context.numpy()})
        return T5Memory(pairs(memory), torch.from_numpy(valid))

    def step(self, tokens, memory, past=None):
        rows, sizes = len(tokens), (self.config.heads, 0, self.config.head_width)
        past = past or [(torch.zeros(rows, *sizes),) * 2] * self.config.layers
        feeds = {"tokens": tokens.numpy(), "valid": memory.valid.numpy()}
        for stem, layers in (("memory", memory.layers), ("past", past)):
            names = cache_names(stem, self.config.layers)
            feeds |= {name: t.numpy() for name, t in zip(names, (t for pair in layers for t in pair), strict=True)}
        logits, states, *present = self.decoder.run(None, feeds)
        return torch.from_numpy(logits), torch.from_numpy(states), pairs(present)


def pairs(arrays):
    return [(torch.from_numpy(k), torch.from_numpy(v)) for k, v in zip(arrays[::2], arrays[1::2], strict=True)]


@pytest.fixture(scope="module")
def graphs(model):
    return Graphs(model)


def prefix(rows, visual, seed=0):
    generator = torch.Generator().manual_seed(seed)
    context = torch.randint(2, 96, (rows, 6), generator=generator)
    context[0, 4:] = 0  # padding
    return torch.randn(rows, visual, 48, generator=generator), context


@pytest.mark.parametrize(("rows", "visual"), [(1, 1), (3, 32)])
def test_equals_torch(model, graphs, rows, visual):
    with torch.no_grad():
        wanted = model.encode(*prefix(rows, visual))
        ours = graphs.encode(*prefix(rows, visual))
        assert torch.equal(ours.valid, wanted.valid)
        for (key, value), (their_key, their_value) in zip(ours.layers, wanted.layers, strict=True):
            np.testing.assert_allclose(key, their_key, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(value, their_value, rtol=1e-3, atol=1e-4)
        tokens = torch.randint(1, 96, (rows, 7))
        logits, states, past = graphs.step(tokens[:, :3], ours)
        for i in range(3, 7):
            more, state, past = graphs.step(tokens[:, i : i + 1], ours, past)
            logits, states = torch.cat([logits, more], 1), torch.cat([states, state], 1)
        together, wanted_states, _ = model.step(tokens, wanted)
        np.testing.assert_allclose(states, wanted_states, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(logits, together, rtol=1e-3, atol=1e-3)


def test_cached_decoding_says_the_same_tokens(model, graphs):
    inputs = prefix(3, 8, seed=2)
    with torch.no_grad():
        wanted, score = greedy(model, model.encode(*inputs), 0, 1, 20)
        ours, our_score = greedy(graphs, graphs.encode(*inputs), 0, 1, 20)
        assert torch.equal(ours, wanted) and len(set(wanted[0].tolist())) > 3
        np.testing.assert_allclose(our_score, score, rtol=1e-3, atol=1e-4)
        wanted, _ = beam(model, model.encode(*inputs), 0, 1, 12)
        ours, _ = beam(graphs, graphs.encode(*inputs), 0, 1, 12)
        assert torch.equal(ours, wanted)


def test_interface(graphs):
    shapes = {v.name: v.shape for v in (*graphs.decoder.get_inputs(), *graphs.decoder.get_outputs())}
    assert shapes["tokens"] == ["batch", "step"] and shapes["memory.1.value"] == ["batch", 3, "read", 16]
    assert shapes["past.0.key"] == ["batch", 3, "past", 16] and shapes["logits"] == ["batch", "step", 96]


def test_merged_adapters_compute_the_same(model):
    merged, inputs = merge_lora(model), prefix(2, 5)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    with torch.no_grad():
        tokens = torch.randint(1, 96, (2, 5))
        wanted = model.step(tokens, model.encode(*inputs))[0]
        np.testing.assert_allclose(merged.step(tokens, merged.encode(*inputs))[0], wanted, rtol=1e-3, atol=1e-3)
