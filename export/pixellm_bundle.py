"""A PixelLM on disk (a model folder) as a bundle that is served: every graph is compared with torch, then whole answers about images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.numpy import save_file
from torch import nn
from tqdm import tqdm

from pixel_perception.bundle import Bundle, Codebook, ImageSpec, Manifest, Templates, Thresholds, Tokens
from pixel_perception.errors import PerceptionError
from pixel_perception.evaluation.networks import PHRASE, SENTENCE
from pixel_perception.export.bundle import NOT_COMPARED, finish, graph_spec
from pixel_perception.export.expected import expect_close, expect_own
from pixel_perception.export.llama_folder import LlamaFolder, add_language, decoder_shape
from pixel_perception.export.paper_graphs import apart, pixellm_parts
from pixel_perception.export.parity import accepted, compare
from pixel_perception.export.pixellm_parity import Asked, measure
from pixel_perception.models.configurations import from_dict, to_dict
from pixel_perception.models.folder import describe, load
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.models.pixellm.text import ASSISTANT, SYSTEM, USER, PixelLMText
from pixel_perception.runtime.agreement import cosine
from pixel_perception.writing import replacing

TASKS = ("SEGMENT", "REFER", "NARRATE", "ANSWER")
TEMPLATES = Templates(caption_region="", narrate="Please describe this image.", segment=PHRASE, answer=SENTENCE,
                      system=f"{SYSTEM} {USER}", turn=f"{{}} {ASSISTANT}")  # fmt: skip
POSITIONS = 48
"""Length of the text that a LLaMA graph is compared on."""
HEAD = 8
"""Channels that the attention of a LLaMA graph counts in."""


def export_pixellm(name: str, source: Path, out: Path, precision: str = "int8", samples: Sequence[Asked] = (), accept_drift: str = "",
                   licence: str = "not stated", version: str = "1", provenance: dict | None = None) -> Bundle:
    """Write the bundle of the model folder `source` in one step, and open it.

    precision: that of the LLaMA's matrices; all else is fp32. `samples`: questions about images that torch and the bundle answer;
    without them only the graphs are compared, on random inputs. Raises PerceptionError INVALID_BUNDLE where a graph or the
    answers differ from torch by more than the gates (unless `accept_drift` says why that is accepted for answers), where `out`
    holds something else, and WritingError where it cannot be written; then nothing is left behind and what was at `out` stays.
    """
    expect_own(out)
    described = describe(source)
    config: PixelLMConfig = from_dict(described["configuration"], where=str(source))
    if (width := config.language.dim // config.language.heads) % HEAD:
        raise PerceptionError("INVALID_BUNDLE", f"{source}: expected attention heads of a multiple of {HEAD} channels, which graphs need, "
                                                f"found {width}.")  # fmt: skip
    text = PixelLMText.open(source, config)
    model = load(source)
    language, head, model.language, model.word_head = model.language, model.word_head, None, None
    model.float()  # the LLaMA stays in its own precision, half the size of fp32
    with replacing(out) as work, torch.random.fork_rng():
        torch.manual_seed(0)
        graphs, compared = {}, {}
        _add_llama(config, source, work, precision, graphs)
        compared["language_model"] = _llama_compared(language, head, work / "language_model.onnx", precision)
        expect_close(out, "language_model", compared["language_model"], cosines=precision != "fp32")
        for part, exported in tqdm(pixellm_parts(model).items(), desc="graphs", unit="graph"):
            path = work / f"{part}.onnx"
            graphs[part] = graph_spec(path, exported.export(path), "fp32")
            compared[part] = exported.differences(path)
            expect_close(out, part, compared[part])
        (work / "tokenizer.json").write_text(_plain_text(text), encoding="utf-8")
        book, side = config.codebook, config.vision.side
        manifest = Manifest(
            name=name, version=version, licence=licence, tasks=TASKS, graphs=graphs, files={}, family="pixellm",
            context=config.language.context, image=ImageSpec(side, side), templates=TEMPLATES,
            tokens=Tokens(text.begin, text.end, None, tuple(book.ids), None, text.marks),
            codebook=Codebook(book.levels, book.tokens), thresholds=Thresholds(presence=0.0, proposal=0.0, mask=0.0),
            provenance={"configuration": to_dict(config), "sources": described["sources"]} | (provenance or {}),
        )  # fmt: skip
        figures = NOT_COMPARED | {"graphs": compared}
        finish(work, manifest, figures)
        if samples:
            model.language, model.word_head = language, head
            figures |= compare(model, Bundle.listed(work), samples, measure=measure)
            finish(work, manifest, figures, accepted(figures, out, accept_drift))
    return Bundle.open(out)


def _plain_text(text: PixelLMText) -> str:
    """`tokenizer.json` in which every added token is a control token: typed by a user it is mere text."""
    stored = json.loads(text.tokenizer.to_str())
    stored["added_tokens"] = [token | {"special": True} for token in stored["added_tokens"]]
    return json.dumps(stored, ensure_ascii=False)


def _add_llama(config: PixelLMConfig, source: Path, work: Path, precision: str, graphs: dict) -> None:
    """`language_model` and, in `language.safetensors`, the table of embeddings (vocabulary, hidden) fp16 that it is fed from."""
    shape = decoder_shape(config.language.llama().to_dict(), str(source), config.language.context)
    weights = LlamaFolder(source, shape, "language", "word_head")
    graphs["language_model"] = graph_spec(work / "language_model.onnx", add_language(weights, work, precision), precision)
    save_file({"embeddings": weights["embeddings"].astype(np.float16)}, work / "language.safetensors")


def _llama_compared(language: nn.Module, head: nn.Module, path: Path, precision: str) -> dict[str, float]:
    """How a LLaMA graph compares with its torch model on random tokens: largest differences (fp32) or least cosines by output."""
    if precision == "fp32":
        language, head = language.float(), head.float()
    ids = torch.randint(0, language.config.vocab_size, (1, POSITIONS))
    with torch.inference_mode():
        embedded = language.embed_tokens(ids)
        states = language(inputs_embeds=embedded).last_hidden_state
        theirs = {"logits": head(states), "hidden_states": states}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    places = np.arange(POSITIONS)
    feeds = {"inputs_embeds": embedded.float().numpy(), "position_ids": places[None], "asked": places,
             "attention_bias": np.zeros((1, 1, POSITIONS, POSITIONS), np.float32)}  # fmt: skip
    feeds |= {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in session.get_inputs() if i.name.startswith("past")}
    ours = dict(zip(theirs, session.run(list(theirs), feeds), strict=True))
    if precision == "fp32":
        return {name: apart(ours[name], theirs[name].numpy()) for name in theirs}
    return {name: float(cosine(ours[name][0], theirs[name][0].float().numpy()).min()) for name in theirs}
