"""`pixel-perception checkpoint`: published weights to a model folder, or only how they would map."""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from pixel_perception.cli import Parser
from pixel_perception.models import folder as folders
from pixel_perception.models.checkpoints import Source, load, open_source, plan
from pixel_perception.models.configurations import CONFIGURATIONS, Config, configuration
from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.models.pixelllm.config import PixelLLMConfig
from pixel_perception.models.pixelllm.text import PixelLLMText
from pixel_perception.models.pixellm.config import PixelLMConfig
from pixel_perception.models.pixellm.names import LLAVA, RELEASE
from pixel_perception.models.pixellm.published import grown, released
from pixel_perception.models.pixellm.text import PixelLMText
from pixel_perception.models.tensor_files import CheckpointError, Row
from pixel_perception.models.tokenizer_files import FILES, open_tokenizer

ABOUT = """Fill a configuration's network from published weights, and write our model folder.

Sources are folders, or repositories of the hub (owner/name, owner/name@revision):
  pixellm-7b, -13b   PixelLM's release (merged, or with LoRA beside the weights) and OpenAI's CLIP tower,
                     or a LLaVA model and the tower, to start training
  pixelllm-t5xl      SAM, EVA-02 and Flan-T5, to start training; or the reference's whole parameter tree
  pixelllm-small     SAM, EVA-02 and a folder with BERT's vocab.txt; or the reference's tree

Every tensor is accounted for by both names; one that is missing, extra or of another shape stops the command."""


def main(argv: Sequence[str]) -> int:
    """`pixel-perception checkpoint`."""
    parser = Parser("pixel-perception checkpoint", description=ABOUT)
    parser.add_argument("configuration", help=f"one of {', '.join(CONFIGURATIONS)}")
    parser.add_argument("source", nargs="+", help="folder or repository with published weights")
    parser.add_argument("--out", metavar="FOLDER", help="model folder to write")
    parser.add_argument("--dry-run", action="store_true", help="print how names and shapes map, read no values and write nothing")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="type of our weights; without it the first source's")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    arguments = parser.parse_args(argv)
    if not arguments.dry_run and not arguments.out:
        parser.error("expected --out FOLDER or --dry-run, found neither")
    if arguments.out:
        folders.expect_free(arguments.out)  # before minutes of reading

    config = configuration(arguments.configuration)
    with torch.device("meta"):
        kind = type(PerceptionModel.of(config))
    sources = [open_source(name, kind) for name in arguments.source]
    config, tokenizer = fitted(config, sources)
    with torch.device("meta"):
        model = PerceptionModel.of(config)
    rows = plan(model, *sources)
    bad = [row for row in rows if not row.ok]
    if arguments.dry_run or bad:
        report(rows if arguments.dry_run else bad, sources, arguments.json)
    if bad:
        count, do = ("1 tensor", "does") if len(bad) == 1 else (f"{len(bad)} tensors", "do")
        raise CheckpointError(f"{count} of {', '.join(arguments.source)} {do} not fit {arguments.configuration}, as listed")
    if arguments.dry_run:
        return 0
    records = convert(config, sources, tokenizer, arguments.out, getattr(torch, arguments.dtype or "", None))
    if arguments.json:
        print(json.dumps({"folder": arguments.out, "tokenizer": tokenizer is not None, "sources": records}))
    else:
        print(f"{arguments.out}: written" + ("" if tokenizer else ", without a tokenizer: no source has one"))
    return 0


def fitted(config: Config, sources: Sequence[Source]) -> tuple[Config, Tokenizer | Path | None]:
    """The configuration with what only the sources know (vocabulary, ids of the codebook), and their tokenizer.

    The tokenizer is a folder to copy it from, or one that grew. Raises CheckpointError and TokenizerError.
    """
    with_text = (s.folder for s in sources if s.layout.text and any((s.folder / file).is_file() for file in FILES[:4]))
    tokenizer: Tokenizer | Path | None = next(with_text, None)
    for source in sources:
        if source.layout is RELEASE:
            config = released(config, source.shapes, source.folder)
        elif source.layout is LLAVA:
            tokenizer = open_tokenizer(source.folder)
            config = grown(config, source.shapes, source.folder, tokenizer)
    if isinstance(tokenizer, Tokenizer):
        PixelLMText(tokenizer, config)
    elif tokenizer is not None:
        (PixelLMText if isinstance(config, PixelLMConfig) else PixelLLMText).open(tokenizer, config)
    return config, tokenizer


def convert(config: PixelLMConfig | PixelLLMConfig, sources: Sequence[Source], tokenizer: Tokenizer | Path | None, out: str | Path,
            dtype: torch.dtype | None = None) -> list[dict[str, Any]]:
    """Read the sources into a new network and write it as a model folder; returns what is recorded of the sources."""
    with torch.device("meta"):
        rows = plan(PerceptionModel.of(config), *sources)
    # Ours alone in a release are constants, set when the network is built.
    drawn = any(row.status in ("fresh", "grow") and not row.ours.startswith(("fusion.", "decoder.scale_weights")) for row in rows)
    with folders.building(dtype or next(source.dtype for source in sources if source.shapes), initial=drawn):
        model = PerceptionModel.of(config)
    load(model, *sources)
    records = [source.record() for source in sources]
    with tempfile.TemporaryDirectory() as temporary:
        if isinstance(tokenizer, Tokenizer):
            tokenizer.save(str(Path(temporary) / "tokenizer.json"))
            tokenizer = Path(temporary)
        folders.save(model, out, tokenizer, records)
    return records


def report(rows: Sequence[Row], sources: Sequence[Source], as_json: bool) -> None:
    """Print a mapping."""
    counts, bad = Counter(row.status for row in rows), sum(not row.ok for row in rows)
    if as_json:
        print(json.dumps({"sources": [{"source": s.name, "layout": s.layout.title} for s in sources], "rows": [asdict(row) for row in rows],
                          "counts": counts, "fits": not bad}))  # fmt: skip
        return
    for source in sources:
        print(f"{source.name}: {source.layout.title}, {len(source.shapes)} tensors")
    for row in rows:
        print(row)
    print(", ".join(f"{count} {status}" for status, count in counts.items()) + (f"; {bad} do not fit" if bad else "; all fit"))
