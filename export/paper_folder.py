"""A PixelLLM on disk (a model folder) as a folder of graphs, each compared with torch before any is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from tqdm import tqdm

from pixel_perception.bundle import MANIFEST
from pixel_perception.errors import PerceptionError
from pixel_perception.evaluation.networks import difference
from pixel_perception.export.bundle import graph_spec
from pixel_perception.export.graph_folder import GRAPHS, write_list
from pixel_perception.export.parity import GATES
from pixel_perception.export.pixelllm_graphs import merge_lora, pixelllm_parts
from pixel_perception.models.configurations import configuration, from_dict, to_dict
from pixel_perception.models.folder import describe, load
from pixel_perception.models.tokenizer_files import FILES
from pixel_perception.writing import replacing

TOLERANCE = 1e-4
"""Largest difference of an output from torch, as a part of its largest magnitude (at least 1)."""


def expect_configuration(name: str, folder: Path) -> None:
    """Raises PerceptionError INVALID_BUNDLE where a model folder holds another network than that of a configuration's name;
    the errors of `models.configurations` and `models.folder`."""
    if different := difference(to_dict(configuration(name)), describe(folder)["configuration"]):
        raise PerceptionError("INVALID_BUNDLE", f"{folder}: expected {name}, found another network: {different}.")


def expect_own(out: Path) -> None:
    """Raises PerceptionError INVALID_BUNDLE where a folder that is to be written holds anything but a bundle or exported graphs."""
    own = out.is_dir() and ((out / MANIFEST).is_file() or (out / GRAPHS).is_file() or not any(out.iterdir()))
    if out.exists() and not own:
        raise PerceptionError("INVALID_BUNDLE", f"{out}: expected no folder, an empty one or one with {MANIFEST} or {GRAPHS}, found other "
                                                "files.")  # fmt: skip


def export_graphs(name: str, source: Path, out: Path) -> None:
    """Write the graphs of the model folder `source` with `graphs.json`, in fp32 and in one step.

    Raises PerceptionError INVALID_BUNDLE where a graph differs from torch by more than `TOLERANCE` or where `out` holds something
    else, and WritingError where it cannot be written; then nothing is left behind and what was at `out` stays.
    """
    expect_own(out)
    config = from_dict(describe(source)["configuration"], str(source))
    model = load(source, torch.float32)
    merge_lora(model)
    with replacing(out) as work, torch.random.fork_rng():
        torch.manual_seed(0)
        graphs, compared = {}, {}
        for part, exported in tqdm(pixelllm_parts(model).items(), desc="graphs", unit="graph"):
            path = work / f"{part}.onnx"
            graphs[part] = graph_spec(path, exported.export(path), "fp32")
            compared[part] = exported.differences(path)
            expect_close(out, part, compared[part])
        for file in FILES:
            if (source / file).is_file():
                shutil.copyfile(source / file, work / file)
        write_list(work, name=name, configuration=to_dict(config), graphs=graphs, compared=compared, left_out={})


def expect_close(out: Path, graph: str, figures: dict[str, float], cosines: bool = False) -> None:
    """Raises PerceptionError INVALID_BUNDLE, by the folder `out` that is not written then, where an output of a graph differs from torch
    by more than `TOLERANCE`, or where `figures` are cosines has less than the gate of parity."""
    least = GATES["hidden_cosine"]
    for output, figure in figures.items():
        if not (figure >= least if cosines else figure <= TOLERANCE):  # so put that a NaN fails
            wanted = f"a cosine with torch of at least {least}" if cosines else f"a difference from torch of at most {TOLERANCE}"
            raise PerceptionError("INVALID_BUNDLE", f"{out}: not written: {graph}: {output}: expected {wanted}, found {figure:.3g}.")
