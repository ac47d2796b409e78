"""Published LLaMA checkpoints as graphs, against transformers: other shapes than the compact model's, any size, damaged folders."""

import json
import tracemalloc

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pixel_perception.errors import PerceptionError
from pixel_perception.export.language_graph import BLOCK, BLOCK_OUTPUT, dequantize_int4, quantize_int4
from pixel_perception.export.llama_folder import LlamaFolder, decoder_shape, graph_bytes, write_language

SEVEN = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 32, "vocab_size": 32000, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048}  # fmt: skip
THIRTEEN = SEVEN | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
                    "num_key_value_heads": 40}  # fmt: skip


def save(folder, dtype=torch.float32, **changes):
    """A checkpoint as it would be published, in several shards; returns the model in the precision that was saved."""
    torch.manual_seed(0)
    shape = {"vocab_size": 320, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 96, "tie_word_embeddings": False,
             "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}} | changes  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(0, 0.1)
    model.to(dtype).save_pretrained(folder, max_shard_size="200KB")
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)  # rotary angles as they are computed, in fp32


def run(path, x):
    """Logits of every position and states, (S, vocabulary) and (S, hidden), of embeddings x (S, hidden)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    count = len(x)
    feeds = {"inputs_embeds": x[None], "position_ids": np.arange(count)[None], "attention_bias": np.zeros((1, 1, count, count), np.float32),
             "asked": np.arange(count)}  # fmt: skip
    feeds |= {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in session.get_inputs() if i.name.startswith("past")}
    logits, states = session.run(["logits", "hidden_states"], feeds)
    return logits[0], states[0]


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({}, torch.float16),
        ({"num_key_value_heads": 1, "rms_norm_eps": 1e-5}, torch.bfloat16),
        ({"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, torch.float32),
        ({"head_dim": 64, "num_key_value_heads": 2}, torch.bfloat16),
    ],
    ids=["untied, as 7B", "one key/value head", "tied, other rope", "wide heads"],
)
def test_equals_transformers(tmp_path, changes, dtype):
    model = save(tmp_path / "model", dtype, **changes)
    weights = LlamaFolder(tmp_path / "model")
    assert ("output" in weights) != changes.get("tie_word_embeddings", False)
    ids = torch.randint(0, 320, (1, 33))
    with torch.no_grad():
        wanted = model(ids, output_hidden_states=True)
    x = weights["embeddings"][ids[0].numpy()]
    logits, states = run(write_language(weights, tmp_path / "fp32", "fp32"), x)
    np.testing.assert_allclose(states, wanted.hidden_states[-1][0], rtol=2e-3, atol=5e-4)
    np.testing.assert_allclose(logits, wanted.logits[0], rtol=2e-3, atol=2e-3)
    _, quantised = run(write_language(weights, tmp_path / "int8", "int8"), x)
    cosine = (quantised * states).sum(-1) / np.linalg.norm(quantised, axis=-1) / np.linalg.norm(states, axis=-1)
    assert cosine.min() > 0.99


class Rounded(LlamaFolder):
    """The same with every matrix as int4 stores it."""

    def __getitem__(self, name):
        value = super().__getitem__(name)
        if value.ndim < 2 or name == "embeddings":
            return value
        return dequantize_int4(*quantize_int4(value, BLOCK_OUTPUT if name == "output" else BLOCK))


def test_int4_computes_with_the_rounded_weights(tmp_path):
    save(tmp_path / "model", torch.float16)
    x = np.random.default_rng(0).normal(size=(20, 128)).astype(np.float32)
    logits, states = run(write_language(LlamaFolder(tmp_path / "model"), tmp_path / "int4", "int4"), x)
    wanted, wanted_states = run(write_language(Rounded(tmp_path / "model"), tmp_path / "fp32", "fp32"), x)
    for a, b in ((logits, wanted), (states, wanted_states)):
        assert ((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min() > 0.999


def test_int4_is_within_half_a_step():
    matrix = np.random.default_rng(0).normal(size=(40, 96)).astype(np.float32)
    matrix[3] = 0
    values, scales = quantize_int4(matrix)
    assert values.shape == (40, 3, 16) and (dequantize_int4(values, scales)[3] == 0).all()
    assert (np.abs(dequantize_int4(values, scales) - matrix) <= 0.5001 * np.repeat(scales, 32, axis=1)).all()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_writing_keeps_no_model_in_memory(tmp_path, precision):
    """Two gigabytes is what a graph without data beside it can hold, and memory is what a 7B model must not need."""
    save(tmp_path / "model", torch.float16, hidden_size=256, intermediate_size=704, num_hidden_layers=10)
    weights = LlamaFolder(tmp_path / "model")
    tracemalloc.start()
    path = write_language(weights, tmp_path / "out", precision)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    layer = 4 * 256 * (4 * 256 + 3 * 704)  # bytes in fp32
    assert peak < 3 * layer < 10 * layer / 3
    data = path.with_name(path.name + ".data")
    assert path.stat().st_size < 200_000 and data.stat().st_size > layer
    assert graph_bytes(weights.shape, precision) == pytest.approx(path.stat().st_size + data.stat().st_size, rel=0.1)


def test_sizes_of_large_models_before_anything_is_written():
    for config, precision, gigabytes in ((SEVEN, "int8", 7.4), (SEVEN, "int4", 4.1), (THIRTEEN, "int8", 14.5), (THIRTEEN, "int4", 8.1)):
        assert graph_bytes(decoder_shape(config), precision) / 1e9 == pytest.approx(gigabytes, rel=0.03)


def test_folders_that_are_not_as_expected(tmp_path):
    save(tmp_path / "model")
    with pytest.raises(PerceptionError, match="none/config.json: expected the configuration of a checkpoint"):
        LlamaFolder(tmp_path / "none")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    for change, sentence in (({"model_type": "gpt2"}, "model_type: expected llama, found 'gpt2'"),
                             ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type: expected default, found 'yarn'"),
                             ({"num_hidden_layers": 4}, "expected the tensor model.layers.3.self_attn.q_proj.weight")):  # fmt: skip
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(PerceptionError, match=sentence):
            LlamaFolder(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    shard = max((tmp_path / "model").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(PerceptionError, match=f"{shard.name}: expected safetensors of F32, F16 or BF16, found: .* up to byte"):
        LlamaFolder(tmp_path / "model")
    del config["hidden_size"]
    with pytest.raises(PerceptionError, match="config.json: expected the field 'hidden_size', found none"):
        decoder_shape(config)


def test_no_space(tmp_path, without_space):
    save(tmp_path / "model")
    sentence = without_space(300_000, lambda: write_language(LlamaFolder(tmp_path / "model"), tmp_path / "out"))
    assert "out: cannot be written" in sentence and sorted(p.name for p in tmp_path.iterdir()) == ["model"]
