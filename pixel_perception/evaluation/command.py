"""`pixel-perception evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pixel_perception.cli import Parser

ABOUT = """Score a bundle on simulated scenes that training never saw, or on photographs with COCO annotations.

Every scene is seen by one camera at 640x480 and asked up to 14 things: single references, several targets, all of a kind,
what something is for, things that are not there, captions of boxes, a narration; in every third scene a standing
instruction is followed through five camera motions. With --out, finished scenes are kept and not asked again."""


def parser() -> Parser:
    """The arguments of the sub-command."""
    from pixel_perception.commands import add_assets, add_bundle

    out = Parser("pixel-perception evaluate", description=ABOUT)
    out.add_argument("--split", choices=["train", "val", "test"], default="test", help="whose seeds to use")
    out.add_argument("--scenes", type=int, default=300, metavar="N", help="how many scenes (or photographs, at most)")
    out.add_argument("--seed-start", type=int, metavar="S", help="first seed; without it the first of the split")
    out.add_argument("--images", metavar="DIR", help="photographs with annotations.json (COCO) instead of simulated scenes")
    out.add_argument("--threshold", type=float, metavar="P",
                     help="presence below which a target is absent; without it the bundle's own")
    out.add_argument("--out", metavar="DIR", help="write scenes.jsonl, report.json and report.txt; goes on where it stopped")
    out.add_argument("--pictures", action="store_true", help="with --out: overlays of the answers and a contact sheet too")
    out.add_argument("--jobs", type=int, default=2, metavar="N", help="worker processes for scenes")
    out.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    add_assets(out)
    add_bundle(out)
    return out


def main(argv: Sequence[str]) -> int:
    """Evaluate, print the table and, when asked, the JSON line."""
    arguments = (options := parser()).parse_args(argv)
    if arguments.pictures and not arguments.out:
        options.error("--pictures needs --out")
    if arguments.jobs < 1 or arguments.scenes < 1:
        options.error("--jobs and --scenes: expected 1 or more")

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
