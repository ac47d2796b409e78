"""The plain-operator language graph against transformers' own Llama, against the fused graph, and against itself."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from llama_on_the_spot import random_llama, weights_of

from pixel_perception.errors import PerceptionError
from pixel_perception.export.base_weights import DecoderShape
from pixel_perception.export.fused_language import FusedLanguage
from pixel_perception.export.gpu_graph import gpu_graph
from pixel_perception.export.language_graph import language_graph
from pixel_perception.export.plain_graph import plain_graph, quantize

SHAPE = DecoderShape(layers=3, hidden=96, intermediate=128, heads=6, kv_heads=2, head_dim=32, vocabulary=200,
                     rms_epsilon=1e-5, rope_base=1e4, positions=64)  # fmt: skip
PLACES = 40


@pytest.fixture(scope="module")
def llama():
    return random_llama(SHAPE)


@pytest.fixture(scope="module")
def weights(llama):
    return weights_of(llama)


class Decoder:
    """The graph on ONNX Runtime, with key/value buffers of `PLACES` places that begin full of other numbers."""

    def __init__(self, model):
        onnx.checker.check_model(model, full_check=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # else it rounds activations to int8
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        inputs = {i.name: i for i in self.session.get_inputs()}
        self.type = np.float16 if "float16" in inputs["past_key_values.0.key"].type else np.float32
        self.past = {name: np.full((1, i.shape[1], PLACES, i.shape[3]), 3, self.type) for name, i in inputs.items()
                     if name.startswith("past_key_values")}  # fmt: skip
        self.length = 0

    def __call__(self, embeds, positions=None, visible=None, asked=None):
        """Returns logits (asked, vocabulary) and hidden states (1, S, hidden); remembers keys and values. `visible` (S, length + S)
        bool: what each may see; without it everything up to itself."""
        count, after = embeds.shape[1], self.length + embeds.shape[1]
        visible = np.tri(count, after, self.length, dtype=bool) if visible is None else visible
        bias = np.full((1, 1, count, PLACES + count), np.finfo(np.float32).min)
        bias[0, 0, :, : self.length][visible[:, : self.length]] = 0
        bias[0, 0, :, PLACES:][visible[:, self.length :]] = 0
        feeds = {"inputs_embeds": embeds, "position_ids": np.arange(self.length, after)[None] if positions is None else positions[None],
                 "attention_bias": bias, "asked": np.array([count - 1]) if asked is None else np.array(asked), **self.past}  # fmt: skip
        found = dict(zip([o.name for o in self.session.get_outputs()], self.session.run(None, feeds), strict=True))
        for name, buffer in self.past.items():
            buffer[:, :, self.length : after] = found[name.replace("past", "new")]
        self.length = after
        return found["logits"][0], found["hidden_states"]

    def steps(self, embeds, *sizes):
        """Read in pieces: the last logits and all hidden states."""
        states, begin = [], 0
        for size in sizes:
            logits, state = self(embeds[:, begin : begin + size])
            states.append(state)
            begin += size
        return logits, np.concatenate(states, 1)


def read_fused(model, x):
    """Logits (1, vocabulary) after the last position and hidden states of the fused graph, which has read nothing before."""
    session, count = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]), x.shape[1]
    feeds = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in session.get_inputs() if "key_values" in i.name}
    feeds |= {"inputs_embeds": x, "position_ids": np.arange(count)[None], "attention_bias": np.zeros((1, 1, count, count), np.float32),
              "asked": np.array([count - 1])}  # fmt: skip
    logits, states = session.run(["logits", "hidden_states"], feeds)
    return logits[:, 0], states


def embeds(length, seed=0):
    return np.random.default_rng(seed).normal(size=(1, length, SHAPE.hidden)).astype(np.float32)


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize("sizes", [(23,), (1,) * 23, (15, 1, 1, 4, 2)])
@pytest.mark.parametrize(("compute", "tolerance"), [(np.float32, 2e-5), (np.float16, 2e-2)])
def test_equals_transformers_however_it_is_read(llama, weights, sizes, compute, tolerance):
    x = embeds(23)
    with torch.no_grad():
        hidden = llama(inputs_embeds=torch.from_numpy(x)).last_hidden_state
        wanted = hidden[:, -1] @ llama.embed_tokens.weight.T
    logits, states = Decoder(plain_graph(SHAPE, weights, compute=compute)).steps(x, *sizes)
    np.testing.assert_allclose(states, hidden.numpy(), atol=tolerance)
    np.testing.assert_allclose(logits, wanted.numpy(), atol=tolerance)
    assert cosine(states, hidden.numpy()).min() > 0.99999


@pytest.mark.parametrize(("precision", "block", "least"), [("int8", 32, 0.999), ("int4", 32, 0.9)])
def test_quantised_graphs_compute_with_the_weights_that_they_store(weights, precision, block, least):
    most = {"int8": 127, "int4": 7}[precision]
    rounded = dict(weights)
    for name, weight in weights.items():
        if weight.ndim == 2 and name != "embeddings":
            values, scales = quantize(weight.T, block, most)
            rounded[name] = (values * np.repeat(scales.astype(np.float32), block, 0)).T
            step = np.repeat(scales.astype(np.float32), block, 0).T
            assert (np.abs(rounded[name] - weight) <= 0.57 * step).all()
    values, scales = quantize(weights["embeddings"].T, block, most)
    rounded["output"] = (values * np.repeat(scales.astype(np.float32), block, 0)).T
    x = embeds(20, seed=1)
    logits, states = Decoder(plain_graph(SHAPE, weights, precision, block, np.float32))(x)
    same, same_states = Decoder(plain_graph(SHAPE, rounded, compute=np.float32))(x)
    np.testing.assert_allclose(states, same_states, atol=2e-5)
    np.testing.assert_allclose(logits, same, atol=2e-5)
    _, exact = Decoder(plain_graph(SHAPE, weights, compute=np.float32))(x)
    assert cosine(states, exact).min() > least
    half, half_states = Decoder(plain_graph(SHAPE, weights, precision, block))(x)
    assert cosine(half_states, states).min() > 0.9999


def test_rows_that_are_packed_do_not_mix(weights):
    """Three rows of different lengths behind what they share, in one sequence, against each alone."""
    model = plain_graph(SHAPE, weights, compute=np.float32)
    shared, rows = embeds(7, seed=2), [embeds(count, seed=3 + count) for count in (4, 1, 2)]
    owner = np.repeat([0, 1, 2], [4, 1, 2])
    visible = np.concatenate((np.ones((7, 7), bool), (owner == owner[:, None]) & np.tri(7, dtype=bool)), 1)
    packed = Decoder(model)
    packed(shared)
    logits, states = packed(np.concatenate(rows, 1), np.array([7, 8, 9, 10, 7, 7, 8]), visible, [3, 4, 6])
    for row, (begin, end) in zip(rows, ((0, 4), (4, 5), (5, 7)), strict=True):
        decoder = Decoder(model)
        decoder(shared)
        alone, state = decoder(row)
        np.testing.assert_allclose(logits[{4: 0, 5: 1, 7: 2}[end]], alone[0], atol=2e-5)
        np.testing.assert_allclose(states[0, begin:end], state[0], atol=2e-5)


def test_large_activations_do_not_overflow_in_fp16(weights):
    """Squares of these embeddings are beyond fp16: the norms must be computed in fp32."""
    x = 3000 * embeds(8, seed=3)
    _, wanted = Decoder(plain_graph(SHAPE, weights, compute=np.float32))(x)
    _, states = Decoder(plain_graph(SHAPE, weights))(x)
    assert np.isfinite(states).all() and cosine(states, wanted).min() > 0.9999


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 1)])
def test_other_groupings_of_heads_equal_the_fused_graph(heads, kv_heads):
    """As many keys as queries (LLaMA 7B and 13B), and one for all."""
    shape = dataclasses.replace(SHAPE, layers=1, heads=heads, kv_heads=kv_heads, head_dim=16)
    rng = np.random.default_rng(6)
    sizes = {"q": (heads * 16, 96), "k": (kv_heads * 16, 96), "v": (kv_heads * 16, 96), "o": (96, heads * 16), "gate": (128, 96),
             "up": (128, 96), "down": (96, 128)}  # fmt: skip
    weights = {f"layers.0.{part}": rng.normal(0, 0.1, size).astype(np.float32) for part, size in sizes.items()}
    weights |= {name: np.ones(96, np.float32) for name in ("layers.0.attention_norm", "layers.0.mlp_norm", "final_norm")}
    weights["embeddings"] = rng.normal(size=(SHAPE.vocabulary, 96)).astype(np.float32)
    x = embeds(9)
    _, states = Decoder(plain_graph(shape, weights, compute=np.float32)).steps(x, 5, 1, 3)
    np.testing.assert_allclose(states, read_fused(language_graph(shape, weights, "fp32"), x)[1], atol=2e-5)


def test_untied_output(weights):
    output = np.random.default_rng(4).normal(size=(SHAPE.vocabulary, SHAPE.hidden)).astype(np.float32)
    logits, states = Decoder(plain_graph(SHAPE, weights | {"output": output}, compute=np.float32))(embeds(5))
    np.testing.assert_allclose(logits[0], states[0, -1] @ output.T, atol=1e-3)


@pytest.mark.parametrize("precision", ["int8", "int4", "fp32"])
def test_weights_come_back_from_the_fused_graph(weights, precision, tmp_path):
    fused = language_graph(SHAPE, weights, precision)
    found = FusedLanguage(fused, tmp_path)
    shape = found.shape
    assert set(found) == set(weights) - {"embeddings"} | {"output"}
    assert dataclasses.replace(shape, rms_epsilon=SHAPE.rms_epsilon) == SHAPE and shape.rms_epsilon == pytest.approx(SHAPE.rms_epsilon)
    for name in found:
        wanted = weights["embeddings" if name == "output" else name]
        np.testing.assert_allclose(found[name], wanted, atol={"fp32": 0, "int8": 3e-3, "int4": 0.06}[precision])
    onnx.save(fused, tmp_path / "language_model.onnx")
    x = embeds(12, seed=5)
    logits, states = read_fused(fused, x)
    model = gpu_graph(tmp_path / "language_model.onnx")
    ours, our_states = Decoder(model)(x)
    assert cosine(our_states, states).min() > (0.99999 if precision == "fp32" else 0.998)  # the others round activations too
    np.testing.assert_allclose(ours, logits, atol=0.02 if precision == "fp32" else 0.15)
    stored = {t.data_type for t in model.graph.initializer if t.name.endswith(".values")}
    assert stored == ({onnx.TensorProto.INT4} if precision == "int4" else set())


def test_what_cannot_be_built(weights, tmp_path):
    with pytest.raises(PerceptionError, match="expected one of int4, int8, fp16, found 'int3'"):
        plain_graph(SHAPE, weights, "int3")
    with pytest.raises(PerceptionError, match="96 inputs; expected a multiple of 64"):
        plain_graph(SHAPE, weights, "int4", 64)
    fused = language_graph(SHAPE, weights)
    del fused.graph.initializer[3]
    onnx.save(fused, tmp_path / "language_model.onnx")
    with pytest.raises(PerceptionError, match=r"language_model.onnx: expected a language graph of this package"):
        gpu_graph(tmp_path / "language_model.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(PerceptionError, match=r"broken.onnx: expected an ONNX graph"):
        gpu_graph(tmp_path / "broken.onnx")
