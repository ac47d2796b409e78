"""The language graph against transformers' own Llama, and the cases that the token loop relies on."""

import numpy as np
import onnxruntime
import pytest
import torch
from llama_on_the_spot import random_llama, weights_of

from pixel_perception.errors import PerceptionError
from pixel_perception.export.base_weights import DecoderShape
from pixel_perception.export.language_graph import dequantize_int8, language_graph, merge_lora, quantize_int8

SHAPE = DecoderShape(layers=3, hidden=96, intermediate=128, heads=6, kv_heads=2, head_dim=32, vocabulary=200,
                     rms_epsilon=1e-5, rope_base=1e5, positions=64)  # fmt: skip


@pytest.fixture(scope="module")
def llama():
    return random_llama(SHAPE)


class Decoder:
    def __init__(self, model):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.names = [o.name for o in self.session.get_outputs()]
        self.caches = [i.name for i in self.session.get_inputs() if i.name.startswith("past")]

    def __call__(self, embeds, past=None, positions=None, seen=None, asked=None):
        """embeds (1, S, hidden); `seen` (S, P + S) bool. Returns logits (asked, vocabulary), states (1, S, hidden), key/values."""
        empty = np.zeros((1, SHAPE.kv_heads, 0, SHAPE.head_dim), np.float32)
        past = [empty] * len(self.caches) if past is None else past
        before, count = past[0].shape[2], embeds.shape[1]
        feeds = {"inputs_embeds": embeds, **dict(zip(self.caches, past, strict=True))} | lengths(before, count, positions, seen, asked)
        out = self.session.run(self.names, feeds)
        return out[0][0], out[1], out[2:]


def lengths(before, count, positions=None, seen=None, asked=None):
    """What the graph is told about `count` positions after `before`."""
    seen = np.ones((count, before + count), bool) if seen is None else seen
    positions = np.arange(before, before + count) if positions is None else positions
    bias = np.where(seen, np.float32(0), np.finfo(np.float32).min)
    return {"position_ids": positions[None], "attention_bias": bias[None, None], "asked": np.array(asked or [count - 1])}


@pytest.fixture(scope="module")
def exact(llama):
    return Decoder(language_graph(SHAPE, weights_of(llama), "fp32"))


@pytest.fixture(scope="module")
def quantised(llama):
    return Decoder(language_graph(SHAPE, weights_of(llama), "int8"))


def embeds(length, seed=0):
    return np.random.default_rng(seed).normal(size=(1, length, SHAPE.hidden)).astype(np.float32)


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_equals_transformers(llama, exact, quantised):
    x = embeds(23)
    with torch.no_grad():
        hidden = llama(inputs_embeds=torch.from_numpy(x)).last_hidden_state
        logits = hidden[:, -1] @ llama.embed_tokens.weight.T
    ours, states, _ = exact(x)
    np.testing.assert_allclose(states, hidden.numpy(), rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(ours, logits.numpy(), rtol=1e-3, atol=1e-3)
    _, states, _ = quantised(x)
    assert cosine(states, hidden.numpy()).min() > 0.99


@pytest.mark.parametrize("precision", ["exact", "quantised"])
def test_cached_decoding_equals_one_pass(request, precision):
    decoder, x = request.getfixturevalue(precision), embeds(20)
    logits, states, _ = decoder(x)
    past, seen = None, []
    for i in range(x.shape[1]):
        last, state, past = decoder(x[:, i : i + 1], past)
        seen.append(state)
    seen = np.concatenate(seen, 1)
    if precision == "exact":
        np.testing.assert_allclose(seen, states, rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(last, logits, rtol=1e-3, atol=1e-3)
    assert cosine(seen, states).min() > 0.999


@pytest.mark.parametrize("length", [4, 5])
def test_codebook_run_in_one_step_equals_token_by_token(exact, length):
    x = embeds(30, seed=3)
    _, _, start = exact(x[:, :-length])
    logits, together, past = exact(x[:, -length:], start)
    one, single = [], start
    for i in range(-length, 0):
        last, state, single = exact(x[:, [i]], single)
        one.append(state)
    np.testing.assert_allclose(together, np.concatenate(one, 1), rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(logits, last, rtol=1e-3, atol=1e-3)
    for a, b in zip(past, single, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4)
    # What comes later in the run must not reach what came before.
    changed = x[:, -length:].copy()
    changed[:, -1] += 1
    np.testing.assert_allclose(exact(changed, start)[1][:, :-1], together[:, :-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["exact", "quantised"])
def test_packed_rows_equal_each_alone(request, precision):
    """Three rows of different lengths after one prefix, packed into one sequence, and then one more step of each."""
    decoder, counts = request.getfixturevalue(precision), (4, 1, 5)
    x, parts, following = embeds(10, seed=5), [embeds(c, seed=6 + c) for c in counts], embeds(3, seed=20)
    _, _, prefix = decoder(x)
    owner = np.repeat(np.arange(3), counts)
    seen = np.concatenate([np.ones((10, 10), bool), owner[:, None] == owner], 1)
    positions = 10 + np.concatenate([np.arange(c) for c in counts])
    last = list(np.cumsum(counts) - 1)
    logits, states, past = decoder(np.concatenate(parts, 1), prefix, positions, seen, last)
    seen = np.concatenate([np.ones((3, 10), bool), np.arange(3)[:, None] == owner, np.eye(3, dtype=bool)], 1)
    after, _, _ = decoder(following, past, 10 + np.array(counts), seen, [0, 1, 2])
    for row, part in enumerate(parts):
        alone, state, own = decoder(part, prefix)
        own_after, _, _ = decoder(following[:, [row]], own)
        wanted = np.concatenate([state[0], alone, own_after], None)
        found = np.concatenate([states[0, owner == row], logits[[row]], after[[row]]], None)
        if precision == "exact":
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
        assert cosine(found, wanted) > 0.999


def test_preallocated_key_values(exact):
    """Past and present may be one buffer as long as the longest sequence; the bias alone says how much of it counts."""
    x, capacity = embeds(9, seed=9), 32
    buffers = {
        name: np.zeros((1, SHAPE.kv_heads, capacity, SHAPE.head_dim), np.float32) for name in exact.caches
    }
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(b) for name, b in buffers.items()}

    def step(part, total):
        binding = exact.session.io_binding()
        binding.bind_cpu_input("inputs_embeds", part)
        for name, value in lengths(total - part.shape[1], part.shape[1]).items():
            binding.bind_cpu_input(name, value)
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        binding.bind_output("logits")
        binding.bind_output("hidden_states")
        exact.session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[-1]

    states = np.concatenate([step(x[:, :5], 5), step(x[:, 5:6], 6), step(x[:, 6:9], 9)], 1)
    np.testing.assert_allclose(states, exact(x)[1], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("inputs", "block"), [(96, 32), (128, 64)])
def test_quantisation_is_within_half_a_step(inputs, block):
    matrix = np.random.default_rng(0).normal(size=(40, inputs)).astype(np.float32)
    matrix[3] = 0
    values, scales = quantize_int8(matrix, block)
    assert values.shape == (40, inputs // block, block)
    step = np.repeat(scales, block, axis=1)
    assert (np.abs(dequantize_int8(values, scales) - matrix) <= 0.5001 * step).all()
    assert (dequantize_int8(values, scales)[3] == 0).all()
    with pytest.raises(PerceptionError, match="has 100 inputs; expected a multiple of 32"):
        quantize_int8(np.zeros((2, 100), np.float32))


def test_lora_is_merged(llama):
    rng = np.random.default_rng(0)
    pair = {"lora.1.q.A": rng.normal(size=(4, 96)), "lora.1.q.B": rng.normal(size=(192, 4))}
    weights = weights_of(llama)
    merged = merge_lora(weights, pair, 2.0)
    x = rng.normal(size=96)
    wanted = weights["layers.1.q"] @ x + 2 * (pair["lora.1.q.B"] @ (pair["lora.1.q.A"] @ x))
    np.testing.assert_allclose(merged["layers.1.q"] @ x, wanted, rtol=1e-4, atol=1e-4)
    assert all(merged[name] is weights[name] for name in weights if name != "layers.1.q")


@pytest.mark.parametrize("change", ["drop", "shape", "layer"])
def test_lora_that_does_not_fit(llama, change):
    pair = {"lora.1.q.A": np.zeros((4, 96)), "lora.1.q.B": np.zeros((192, 4))}
    if change == "drop":
        del pair["lora.1.q.B"]
    elif change == "shape":
        pair["lora.1.q.B"] = np.zeros((100, 4))
    else:
        pair = {name.replace(".1.", ".9."): t for name, t in pair.items()}
    with pytest.raises(PerceptionError, match=r"lora\.[19]\.q: A and B have shapes"):
        merge_lora(weights_of(llama), pair, 2.0)


def test_unknown_precision(llama):
    with pytest.raises(PerceptionError, match="'int3'; expected one of int8, int4, fp32"):
        language_graph(SHAPE, weights_of(llama), "int3")
