"""A PixelLLM on disk (a model folder) as a bundle that is served: every graph is compared with torch, then whole answers about images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from pixel_perception.bundle import Bundle, Codebook, Detector, ImageSpec, Manifest, Templates, Thresholds, Tokens
from pixel_perception.evaluation.networks import PROMPTS
from pixel_perception.export.bundle import NOT_COMPARED, finish, graph_spec
from pixel_perception.export.expected import expect_close, expect_own
from pixel_perception.export.parity import accepted, compare
from pixel_perception.export.pixelllm_graphs import merge_lora, pixelllm_parts
from pixel_perception.export.pixelllm_parity import measure
from pixel_perception.export.pixellm_parity import Asked
from pixel_perception.export.rounding import BITS, rounded
from pixel_perception.models.configurations import from_dict, to_dict
from pixel_perception.models.folder import describe, load
from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.text import PixelLLMText
from pixel_perception.types import Task
from pixel_perception.writing import replacing

TEMPLATES = Templates(caption_region=PROMPTS["region"], narrate=PROMPTS["narrate"], segment=PROMPTS["refer"])


def export_pixelllm(name: str, source: Path, out: Path, precision: str = "int8", samples: Sequence[Asked] = (), accept_drift: str = "",
                    licence: str = "not stated", version: str = "1", provenance: dict | None = None) -> Bundle:
    """Write the bundle of the model folder `source` in one step, and open it.

    precision: that of the language model's matrices (int8, int4 or fp32); all else is fp32. `samples`: pictures and names of what is
    to be found in them; torch and the bundle find and narrate. Without them only the graphs are compared, on random inputs. Raises
    PerceptionError INVALID_BUNDLE where a graph or the answers differ from torch by more than the gates (unless `accept_drift` says
    why that is accepted for answers), where `out` holds something else, and WritingError where it cannot be written; then nothing
    is left behind and what was at `out` stays.
    """
    expect_own(out)
    described = describe(source)
    config: PixelLLMConfig = from_dict(described["configuration"], str(source))
    text, model = PixelLLMText.open(source, config), load(source, torch.float32)
    merge_lora(model)
    with replacing(out) as work, torch.random.fork_rng():
        torch.manual_seed(0)
        graphs, compared = {}, {}
        for part, exported in tqdm(pixelllm_parts(model).items(), desc="graphs", unit="graph"):
            path = work / f"{part}.onnx"
            graphs[part] = graph_spec(path, exported.export(path), "fp32")
            compared[part] = exported.differences(path)
            expect_close(out, part, compared[part])
            if part.startswith("language") and precision in BITS:
                graphs[part] = graph_spec(path, rounded(path, precision), precision)
                compared[part] = exported.cosines(path)
                expect_close(out, part, compared[part], cosines=True)
        text.tokenizer.save(str(work / "tokenizer.json"))
        provenance = {"configuration": to_dict(config), "sources": described["sources"]} | (provenance or {})
        manifest = _manifest(config, name=name, version=version, licence=licence, graphs=graphs, provenance=provenance)
        figures = NOT_COMPARED | {"graphs": compared}
        finish(work, manifest, figures)
        if samples:
            figures |= compare(model, Bundle.listed(work), samples, measure=measure)
            finish(work, manifest, figures, accepted(figures, out, accept_drift))
    return Bundle.open(out)


def tasks(config: PixelLLMConfig) -> tuple[str, ...]:
    """What a PixelLLM with these parts can be asked."""
    needs = {Task.CAPTION_DENSE: [config.detector], Task.REFER: [config.location], Task.SEGMENT: [config.location, config.masks]}
    return tuple(task.value for task in Task if task is not Task.AUTO and None not in needs.get(task, ()))


def _manifest(config: PixelLLMConfig, **known) -> Manifest:
    side, found = config.image_size, config.detector
    sizes = (found.before_nms[1], found.proposal_overlap, found.after_nms[1], found.overlap, found.detections) if found else ()
    can = tasks(config)
    return Manifest(
        family="pixelllm", tasks=can, auto=next(task for task in ("SEGMENT", "REFER", "ANSWER") if task in can), files={},
        context=config.words, image=ImageSpec(side, side), templates=TEMPLATES,
        tokens=Tokens(config.begin, config.end, None, (), None), codebook=Codebook(0, 0), detector=Detector(*sizes),
        thresholds=Thresholds(presence=0.0, proposal=found.score if found else 0.0, mask=0.0),
        predicting=bool(config.location and config.location.predicting), **known,
    )  # fmt: skip
