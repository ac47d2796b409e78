"""PixelLLM's graphs against torch where `Perception` does not tell them apart: beams, the small text decoder, figures that must rise."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers_on_the_spot import tokenizer_for

from pixel_perception.bundle import Bundle, Codebook, Manifest, Tokens
from pixel_perception.export.bundle import graph_spec
from pixel_perception.export.expected import TOLERANCE
from pixel_perception.export.parity import GATES
from pixel_perception.export.pixelllm_graphs import cache_names, language_parts, merge_lora, pixelllm_parts
from pixel_perception.export.rounding import rounded
from pixel_perception.models import folder
from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.decoding import beam, greedy
from pixel_perception.models.pixelllm.memory import Memory
from pixel_perception.models.pixelllm.t5 import T5
from pixel_perception.models.pixelllm.text_decoder import TextDecoder
from pixel_perception.runtime.language import Answer, Group, Prompt
from pixel_perception.runtime.onnxruntime import OnnxRuntime
from pixel_perception.runtime.sequence import SequenceLanguage

BEGIN, END, WORDS = 2, 3, 14


def loud(model):
    """In evaluation mode, with parameters that all count and answers that are not one word again and again."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(0, 0.2)
    return model.eval()


class Graphs:
    """Speaks a language model's verbs, so that `models.pixelllm.decoding` can drive its graphs."""

    def __init__(self, place):
        self.encoder, self.decoder = (onnxruntime.InferenceSession(place / f"language_{half}.onnx", providers=["CPUExecutionProvider"])
                                      for half in ("encoder", "decoder"))  # fmt: skip
        shapes = {value.name: value.shape for value in self.decoder.get_inputs()}
        self.layers = sum(name.startswith("past.") for name in shapes) // 2
        _, self.heads, _, self.size = shapes["past.0.key"]

    def encode(self, visual, context):
        valid, *memory = self.encoder.run(None, {"visual": visual.numpy(), "context": context.numpy()})
        return Memory(pairs(memory), torch.from_numpy(valid))

    def step(self, tokens, memory, past=None):
        past = past or [(torch.zeros(len(tokens), self.heads, 0, self.size),) * 2] * self.layers
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
    context = torch.randint(4, 96, (rows, 6), generator=generator)
    context[0, 4:] = 0  # padding
    return torch.randn(rows, visual, 48, generator=generator), context


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The small text decoder, and its graphs with a tokenizer as what the runtime opens."""
    place, config = tmp_path_factory.mktemp("small"), PixelLLMConfig.tiny("text_decoder", vocabulary=160)
    model, graphs = loud(TextDecoder(config.language)), {}
    for name, part in language_parts(model).items():
        graphs[name] = graph_spec(place / f"{name}.onnx", part.export(place / f"{name}.onnx"), "fp32")
        assert max(part.differences(place / f"{name}.onnx").values()) < TOLERANCE
    tokenizer_for(config).save(str(place / "tokenizer.json"))
    known = {"context": WORDS, "tokens": Tokens(BEGIN, END, None, (), None), "codebook": Codebook(0, 0)}
    return model, Bundle(place, Manifest("small", "1", "none", (), graphs, {}, **known), "")


def test_decoding_loops_say_the_same_tokens(pixelllm_folder, pixelllm_bundle, small):
    whole = folder.load(pixelllm_folder)
    for model, place, begin, end in ((whole.language, pixelllm_bundle.folder, 0, 1), (small[0], small[1].folder, BEGIN, END)):
        graphs, inputs = Graphs(place), prefix(3, 8, seed=2)
        with torch.no_grad():
            for decode in (beam, greedy):
                wanted, score = decode(model, model.encode(*inputs), begin, end, WORDS)
                ours, our_score = decode(graphs, graphs.encode(*inputs), begin, end, WORDS)
                assert torch.equal(ours, wanted) and len(set(wanted.flatten().tolist())) > 3
                np.testing.assert_allclose(our_score, score, rtol=1e-3, atol=1e-4)


def test_small_text_decoder_writes_and_reads_as_in_torch(small):
    model, bundle = small
    language = SequenceLanguage(bundle, OnnxRuntime(threads=1))
    visual, _ = prefix(3, 8, seed=4)
    prompts = [Prompt("an object of", row.numpy(), 96) for row in visual[:2]]
    prompts.append(Prompt("where is the red mug", None, 96, "the red mug", "the red mug"))
    answers = [Answer() for _ in prompts]
    events = list(language.converse(visual[2].numpy(), prompts, answers))

    words = Tokenizer.from_file(str(bundle.file("tokenizer.json")))  # one that is trained anew has other words

    def ids(text):
        return words.encode(text, add_special_tokens=False).ids

    with torch.no_grad():
        tokens, score = greedy(model, model.encode(visual[:2], torch.tensor([[*ids("an object of")[:7], END]] * 2)), BEGIN, END, WORDS)
        for i, (row, answer) in enumerate(zip(tokens.tolist(), answers, strict=False)):
            written = row[1 : row.index(END, 1)]
            assert answer.stream.text == words.decode(written).strip()
            assert answer.stream.text == "".join(piece for r, piece in events if r == i) != ""
            assert len(answer.states) == len(answer.tokens) == len(written)
            logs = np.log(answer.probabilities[: len(answer.probabilities) - (answer.finish_reason == "context")])
            np.testing.assert_allclose(logs.sum() / len(written), score[i], atol=1e-4)
        context = torch.tensor([[*ids("where is the red mug"), END]])
        _, states = model(torch.tensor([[BEGIN, *ids("the red mug"), END]]), model.encode(visual[2:], context))
    (group,) = (event for _, event in events if isinstance(event, Group))
    np.testing.assert_allclose(group.states, states[0], atol=1e-4)
    assert group.label == answers[2].stream.text == "the red mug" and group.span == (0, 11)


def test_rounded_matrices_say_nearly_the_same(small, tmp_path):
    model, bundle = small
    shutil.copytree(bundle.folder, tmp_path / "rounded")
    graphs, parts = {}, language_parts(model)
    for name, part in parts.items():
        path = tmp_path / "rounded" / f"{name}.onnx"
        before = path.with_name(f"{path.name}.data").stat().st_size
        graphs[name] = graph_spec(path, rounded(path, "int8"), "int8")
        assert min(part.cosines(path).values()) > GATES["hidden_cosine"] and max(part.differences(path).values()) > TOLERANCE
        assert path.with_name(f"{path.name}.data").stat().st_size < 0.5 * before
        assert graphs[name].inputs == bundle.manifest.graphs[name].inputs
    language = SequenceLanguage(Bundle(tmp_path / "rounded", replace(bundle.manifest, graphs=graphs), ""), OnnxRuntime(threads=1))
    answer = Answer()
    list(language.converse(prefix(1, 8, seed=4)[0][0].numpy(), [Prompt("an object of", None, 96)], [answer]))
    assert answer.stream.text and answer.finish_reason


def test_merged_adapters_compute_the_same():
    model, inputs = loud(T5(PixelLLMConfig.tiny("t5").language)), prefix(2, 5)
    with torch.no_grad():
        tokens = torch.randint(1, 96, (2, 5))
        wanted = model.step(tokens, model.encode(*inputs))[0]
        merge_lora(model)
        assert not [name for name, _ in model.named_parameters() if "lora" in name]
        np.testing.assert_allclose(model.step(tokens, model.encode(*inputs))[0], wanted, rtol=1e-3, atol=1e-3)


def test_what_differs_is_noticed(pixelllm_folder, pixelllm_bundle):
    model, path = folder.load(pixelllm_folder), pixelllm_bundle.graph("location_head")
    assert list(pixelllm_parts(model)) == list(pixelllm_bundle.manifest.graphs)
    head = pixelllm_parts(model)["location_head"]
    assert path.stat().st_size < 200_000 and path.with_name(f"{path.name}.data").is_file()
    assert not any(np.prod(i.dims) > 1 << 12 and i.raw_data for i in onnx.load(path, load_external_data=False).graph.initializer)
    assert max(head.differences(path).values()) < TOLERANCE
    with torch.no_grad():
        model.location_head.mlp.layers[-1].bias[0] += 0.01
    assert head.differences(path)["points"] > TOLERANCE
    shapes = {t.name: t.shape for g in pixelllm_bundle.manifest.graphs.values() for t in (*g.inputs, *g.outputs)}
    assert shapes["image"] == ("batch", 112, 112, 3) and shapes["refined"][1] == 4 and shapes["past.0.key"][2] == "past"
    assert shapes["logits"] == ("batch", "step", 128)
