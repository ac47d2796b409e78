"""`pixel-perception evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pixel_perception.cli import Parser

ABOUT = """Score a model: on simulated scenes that training never saw (without --data or --images), on photographs with COCO
annotations (--images), or on the papers' data sets (--data), in a table beside the papers' figures.

Every scene is seen by one camera at 640x480 and asked up to 14 things: single references, several targets, all of a kind,
what something is for, things that are not there, captions of boxes, a narration; in every third scene a standing
instruction is followed through five camera motions. A data set is asked what the papers ask; `pixel-perception data list`
tells how its folder looks. With --out, what is finished is kept and not asked again."""
SPLITS = ("train", "val", "test")
"""Of simulated scenes."""


def parser() -> Parser:
    """The arguments of the sub-command."""
    from pixel_perception.commands import add_assets, add_bundle

    out = Parser("pixel-perception evaluate", description=ABOUT)
    out.add_argument("--split", help="whose seeds, or records of a data set, to use; without it test, or all but train of a data set")
    out.add_argument("--out", metavar="DIR", help="write records, report.json, report.txt (data sets: CSV, plots and a contact sheet "
                                                  "too); goes on where it stopped")
    out.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    add_bundle(out)
    scenes = out.add_argument_group("simulated scenes and photographs")
    scenes.add_argument("--scenes", type=int, default=300, metavar="N", help="how many scenes (or photographs, at most)")
    scenes.add_argument("--seed-start", type=int, metavar="S", help="first seed; without it the first of the split")
    scenes.add_argument("--images", metavar="DIR", help="photographs with annotations.json (COCO) instead of simulated scenes")
    scenes.add_argument("--threshold", type=float, metavar="P",
                        help="presence below which a target is absent; without it the bundle's own")
    scenes.add_argument("--pictures", action="store_true", help="with --out: overlays of the answers and a contact sheet too")
    scenes.add_argument("--jobs", type=int, default=2, metavar="N", help="worker processes for scenes")
    add_assets(scenes)
    data = out.add_argument_group("data sets")
    data.add_argument("--data", action="append", metavar="DATASET=PATH", help="a data set in the folder layout of its authors; may be "
                                                                              "given several times")
    data.add_argument("--config", default="compact", metavar="NAME", help="compact (through its bundle), pixellm-7b, pixellm-13b, "
                                                                          "pixelllm-t5xl, pixelllm-small or a tiny one")
    data.add_argument("--weights", metavar="DIR", help="folder of the trained model; without it the assembled bundle of compact")
    data.add_argument("--limit", type=int, metavar="N", help="at most N images of each split, spread evenly over it")
    data.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer of PixelLM")
    data.add_argument("--device", default="auto", help="where the papers' networks run: auto, cpu or cuda")
    data.add_argument("--judge", metavar="URL", help="OpenAI-compatible endpoint that judges MUSE's answers, for example "
                      "http://127.0.0.1:8000/v1; its key is read from $PIXEL_PERCEPTION_JUDGE_KEY")  # fmt: skip
    data.add_argument("--judge-model", metavar="NAME", help="the judge's model; with --out prompts and verdicts are kept in verdicts.jsonl")
    return out


def main(argv: Sequence[str]) -> int:
    """Evaluate, print the table and, when asked, the JSON line."""
    arguments = (options := parser()).parse_args(argv)
    if arguments.data:
        from pixel_perception.evaluation.data_command import evaluate

        if arguments.images:
            options.error("--data and --images: expected one of them")
        return evaluate(arguments, options.error)
    for name in ("weights", "limit", "judge"):
        if getattr(arguments, name) is not None:
            options.error(f"--{name} needs --data")
    if arguments.config != "compact":
        options.error(f"--config {arguments.config} needs --data: simulated scenes and photographs are asked of a bundle")
    if arguments.pictures and not arguments.out:
        options.error("--pictures needs --out")
    if arguments.jobs < 1 or arguments.scenes < 1:
        options.error("--jobs and --scenes: expected 1 or more")
    arguments.split = arguments.split or "test"
    if arguments.split not in SPLITS:
        options.error(f"argument --split: expected one of {', '.join(SPLITS)}, found {arguments.split!r}")

    from pixel_perception.bundle import Bundle
    from pixel_perception.evaluation import report

    bundle = Bundle.open(arguments.bundle)
    out = Path(arguments.out) if arguments.out else None
    pictures = out / "pictures" if arguments.pictures else None
    if arguments.images:
        rows, split = _photographs(arguments, pictures), "photographs"
    else:
        rows, split = _scenes(arguments, out, pictures), arguments.split
    summary = report.summarise(rows, f"{bundle.manifest.name} {bundle.manifest.version} {bundle.digest[:12]}", split)
    more = report.details(rows)
    if out:
        report.write(out, summary, more)
        report.sheet(out)
    print(report.table(summary, more))
    if arguments.json:
        print(json.dumps(summary))
    return 0


def _scenes(arguments, out: Path | None, pictures: Path | None) -> list[dict]:
    from tqdm import tqdm

    from pixel_perception.commands import chosen_assets, split_seeds

    assets, objects = chosen_assets(arguments)

    from pixel_perception.evaluation import tabletop
    from pixel_perception.simulation.catalog import Catalog
    from pixel_perception.simulation.dataset import SPLITS

    Catalog.open(assets, only=set(objects) if objects else None)  # a mistake is reported here, not by every worker
    seeds = split_seeds(SPLITS[arguments.split], arguments.split, arguments.seed_start, arguments.scenes)
    settings = tabletop.Settings(assets, arguments.bundle, objects, arguments.threshold,
                                 str(pictures) if pictures else None, arguments.backend, arguments.threads)
    with tqdm(total=len(seeds), unit="scene", desc="evaluate") as bar:
        return tabletop.run(settings, seeds, arguments.jobs, out, bar.update)


def _photographs(arguments, pictures: Path | None) -> list[dict]:
    from tqdm import tqdm

    from pixel_perception.evaluation import photographs
    from pixel_perception.perception import Perception

    count = min(arguments.scenes, len(photographs.load(arguments.images)[0]))
    perception = Perception.open(arguments.bundle, backend=arguments.backend, threads=arguments.threads)
    with tqdm(total=count, unit="photograph", desc="evaluate") as bar:
        return photographs.run(perception, arguments.images, count, arguments.threshold, pictures, bar.update)
