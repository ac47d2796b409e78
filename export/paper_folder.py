"""A PixelLM or PixelLLM on disk (a model folder) as a folder of graphs, each compared with torch before any is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.numpy import save_file
from torch import nn
from tqdm import tqdm

from pixel_perception.errors import PerceptionError
from pixel_perception.evaluation.networks import difference
from pixel_perception.export.bundle import graph_spec
from pixel_perception.export.graph_folder import GRAPHS, write_list
from pixel_perception.export.llama_folder import LlamaFolder, add_language, decoder_shape
from pixel_perception.export.paper_graphs import apart, pixellm_parts
from pixel_perception.export.parity import GATES
from pixel_perception.export.pixelllm_graphs import merge_lora, pixelllm_parts
from pixel_perception.models.configurations import configuration, from_dict, to_dict
from pixel_perception.models.folder import describe, load
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.models.tokenizer_files import FILES
from pixel_perception.runtime.agreement import cosine
from pixel_perception.writing import replacing

TOLERANCE = 1e-4
"""Largest difference of an output from torch, as a part of its largest magnitude (at least 1)."""
POSITIONS = 48
"""Length of the text that a LLaMA graph is compared on."""
HEAD = 8
"""Channels that the attention of a LLaMA graph counts in."""


def expect_configuration(name: str, folder: Path) -> None:
    """Raises PerceptionError INVALID_BUNDLE where a model folder holds another network than that of a configuration's name;
    the errors of `models.configurations` and `models.folder`."""
    if different := difference(to_dict(configuration(name)), describe(folder)["configuration"]):
        raise PerceptionError("INVALID_BUNDLE", f"{folder}: expected {name}, found another network: {different}.")


def export_graphs(name: str, source: Path, out: Path, precision: str = "int8") -> None:
    """Write the graphs of the model folder `source` with `graphs.json`, in one step.

    precision: that of a LLaMA's matrices; all else is fp32. Raises PerceptionError INVALID_BUNDLE where a graph differs from torch
    by more than `TOLERANCE` (a quantised language model: has a lesser cosine than the gate of parity), where `out` holds
    something else, and WritingError where it cannot be written; then nothing is left behind and what was at `out` stays.
    """
    if out.exists() and not (out / GRAPHS).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise PerceptionError("INVALID_BUNDLE", f"{out}: expected no folder, an empty one or one with {GRAPHS}, found other files.")
    config = from_dict(describe(source)["configuration"], str(source))
    llama = isinstance(config, PixelLMConfig)
    model = load(source, None if llama else torch.float32)
    if llama:  # stays in its own precision, half the size of fp32
        language, model.language = model.language, None
        head, model.word_head = model.word_head, None
    model.float()
    merge_lora(model)
    with replacing(out) as work, torch.random.fork_rng():
        torch.manual_seed(0)
        graphs, compared, left_out = {}, {}, {}
        if llama and config.language.dim // config.language.heads % HEAD:
            left_out["language"] = f"its attention heads are not a multiple of {HEAD} wide"
        elif llama:
            _add_llama(config, source, work, precision, graphs)
            compared["language_model"] = llama_compared(language, head, work / "language_model.onnx", precision)
            _judge(out, "language_model", compared["language_model"], precision != "fp32")
        parts = pixellm_parts(model) if llama else pixelllm_parts(model)
        for part, exported in tqdm(parts.items(), desc="graphs", unit="graph"):
            path = work / f"{part}.onnx"
            graphs[part] = graph_spec(path, exported.export(path), "fp32")
            compared[part] = exported.differences(path)
            _judge(out, part, compared[part])
        for file in FILES:
            if (source / file).is_file():
                shutil.copyfile(source / file, work / file)
        write_list(work, name=name, configuration=to_dict(config), graphs=graphs, compared=compared, left_out=left_out)


def _add_llama(config: PixelLMConfig, source: Path, work: Path, precision: str, graphs: dict) -> None:
    """`language_model` and, in `language.safetensors`, the table of embeddings (vocabulary, hidden) fp16 that it is fed from."""
    shape = decoder_shape(config.language.llama().to_dict(), str(source), config.language.context)
    weights = LlamaFolder(source, shape, "language", "word_head")
    graphs["language_model"] = graph_spec(work / "language_model.onnx", add_language(weights, work, precision), precision)
    save_file({"embeddings": weights["embeddings"].astype(np.float16)}, work / "language.safetensors")


def llama_compared(language: nn.Module, head: nn.Module, path: Path, precision: str) -> dict[str, float]:
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
    measure = apart if precision == "fp32" else (lambda a, b: float(cosine(a, b).min()))
    return {name: measure(ours[name], theirs[name].float().numpy()) for name in theirs}


def _judge(out: Path, graph: str, figures: dict[str, float], cosines: bool = False) -> None:
    least = GATES["hidden_cosine"]
    for output, figure in figures.items():
        if not (figure >= least if cosines else figure <= TOLERANCE):  # so put that a NaN fails
            wanted = f"a cosine with torch of at least {least}" if cosines else f"a difference from torch of at most {TOLERANCE}"
            raise PerceptionError("INVALID_BUNDLE", f"{out}: not written: {graph}: {output}: expected {wanted}, found {figure:.3g}.")
