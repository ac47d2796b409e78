"""The short sub-commands: ask, assemble, simulate. The longer ones live beside what they run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pixel_perception.cli import Parser
from pixel_perception.errors import PerceptionError
from pixel_perception.runtime import BACKENDS

if TYPE_CHECKING:
    import argparse

    import numpy as np

    from pixel_perception.types import Result


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """The options that every sub-command with a model has."""
    parser.add_argument("--bundle", metavar="DIR", help="bundle to run; without it $PIXEL_PERCEPTION_BUNDLE, else the one in the cache")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs the graphs; auto takes the best that is there")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads of the runtime; without it all")


def add_assets(parser: argparse.ArgumentParser) -> None:
    """The options that every sub-command with simulated scenes has."""
    parser.add_argument("--assets", metavar="DIR", default=os.environ.get("PIXEL_PERCEPTION_ASSETS"),
                        help="folder with catalog.json, meshes and surf/*.png; without it $PIXEL_PERCEPTION_ASSETS")
    parser.add_argument("--objects", metavar="FILE", help="use only the objects with these ids (one id per line)")


def chosen_assets(arguments: argparse.Namespace) -> tuple[str, tuple[str, ...] | None]:
    """The asset folder and the ids of `--objects`. Raises PerceptionError when there is no folder or no id."""
    if not arguments.assets:
        raise PerceptionError("INVALID_QUERY", "--assets: expected a folder with catalog.json, found neither the option nor "
                                               "$PIXEL_PERCEPTION_ASSETS")
    if not arguments.objects:
        return arguments.assets, None
    ids = tuple(line.strip() for line in Path(arguments.objects).read_text().splitlines() if line.strip())
    if not ids:
        raise PerceptionError("INVALID_QUERY", f"{arguments.objects}: expected one object id per line, found none")
    return arguments.assets, ids


def box(text: str) -> tuple[float, float, float, float]:
    """`x0,y0,x1,y1` as four numbers. Raises ArgumentTypeError, which the parser turns into a sentence."""
    import argparse

    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected x0,y0,x1,y1 in pixels, found {text!r}") from None
    return x0, y0, x1, y1


def read_image(path: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file, turned upright as its EXIF says; 16 bit grey keeps its high bytes.

    Raises PerceptionError INVALID_IMAGE for a file that is no whole image, OSError for one that cannot be read.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I;16"):  # PIL would cut off what is above 255
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return np.asarray(upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL raises all of these for damaged files
        if isinstance(error, OSError) and error.filename:
            raise
        raise PerceptionError("INVALID_IMAGE", f"{path}: expected an image file ({error})") from None


def ask(argv: Sequence[str]) -> int:
    """`pixel-perception ask`."""
    parser = Parser("pixel-perception ask", description="Answer one instruction about one image, or caption a box of it.")
    parser.add_argument("image", help="image file")
    parser.add_argument("instruction", nargs="?", default="",
                        help='what to find or say, for example "the red mug"; may be left out with --box')
    parser.add_argument("--box", type=box, action="append", default=[], metavar="x0,y0,x1,y1",
                        help="region to caption, in pixels of the image; may be given several times")
    parser.add_argument("--task", type=str.upper, default="AUTO",
                        choices=["AUTO", "SEGMENT", "REFER", "CAPTION_REGION", "CAPTION_DENSE", "NARRATE", "ANSWER"],
                        help="AUTO captions a box and otherwise lets the words decide")
    parser.add_argument("--threshold", type=float, metavar="P",
                        help="presence below which a target is absent; without it the bundle's own")
    parser.add_argument("--json", action="store_true", help="print the whole result, masks as run lengths, as one JSON object")
    parser.add_argument("--overlay", metavar="FILE", help="write the image with everything drawn into it")
    add_bundle(parser)
    arguments = parser.parse_args(argv)

    from pixel_perception.types import Query, Task

    image = read_image(arguments.image)
    task, boxes = Task(arguments.task), tuple(arguments.box)
    query = Query(arguments.instruction, task, boxes, score_threshold=arguments.threshold)
    query.checked(image.shape[1], image.shape[0])  # a mistake in the question should not have to wait for the model

    from pixel_perception.perception import Perception

    perception = Perception.open(arguments.bundle, backend=arguments.backend, threads=arguments.threads)
    if perception.info.accepted_drift:
        print(f"pixel-perception: this bundle differs from its training: {perception.info.accepted_drift}", file=sys.stderr)
    result = perception.ask(image, query)
    if arguments.overlay:
        from PIL import Image

        from pixel_perception.drawing import overlay

        try:
            drawn = overlay(image, result, arguments.instruction, words=task is Task.NARRATE)
            Image.fromarray(drawn).save(arguments.overlay)
        except ValueError:
            raise PerceptionError("INVALID_QUERY",
                                  f"{arguments.overlay}: expected a file name that ends in .png or .jpg") from None
    if arguments.json:
        from pixel_perception.plain import plain

        print(json.dumps(plain(result)))
    else:
        print(describe(result))
    return 0


def describe(result: Result) -> str:
    """A result as lines for people."""
    lines = [result.text or "(no words)"]
    for instance in result.instances:
        edges = ", ".join(f"{v:.0f}" for v in instance.box)
        lines.append(f"  {instance.label:<28} score {instance.score:.2f}   box ({edges})   {instance.mask.area} px")
    absent = [target for target in result.targets if not target.present]
    lines += [f"  {target.label:<28} score {target.score:.2f}   not in the image" for target in absent]
    text = result.text.encode()
    for word in result.words:
        edges = ", ".join(f"{v:.0f}" for v in word.box)
        lines.append(f"  {text[word.begin : word.end].decode(errors='replace'):<28} at ({edges})")
    for region in result.regions:
        edges = ", ".join(f"{v:.0f}" for v in region.box)
        lines.append(f"  {region.caption:<28} score {region.score:.2f}   box ({edges})")
    t = result.timings
    lines.append(f"  {1000 * t.total:.0f} ms: image {1000 * t.encode:.0f}, prefix {1000 * t.prefix:.0f}, "
                 f"language {1000 * t.language:.0f}, pixels {1000 * t.pixels:.0f}; first mask after {1000 * t.first_mask:.0f}")  # fmt: skip
    return "\n".join(lines)


def assemble(argv: Sequence[str]) -> int:
    """`pixel-perception assemble`."""
    parser = Parser("pixel-perception assemble", description="Put a bundle together from the trained parts and the published "
                    "base language model, with numpy and\nonnx alone. A bundle that was made of the same is kept.")
    parser.add_argument("--parts", metavar="DIR", help="folder of trained parts; without it the shipped weights/compact")
    parser.add_argument("--language-model", metavar="FILE", help="the base model's GGUF file; without it found or downloaded")
    parser.add_argument("--output", metavar="DIR", help="bundle to make; without it $PIXEL_PERCEPTION_BUNDLE, else the one in the cache")
    arguments = parser.parse_args(argv)

    from pixel_perception.bundle import default_folder
    from pixel_perception.export.bundle import assemble as make

    parts = arguments.parts or share("weights/compact")
    bundle = make(parts, arguments.output or default_folder(), arguments.language_model)
    print(f"{bundle.folder}: {bundle.manifest.name} {bundle.manifest.version}, sha256 {bundle.digest[:12]}")
    return 0


def share(path: str) -> Path:
    """A folder of the project: of its sources, else of an installed package's share/pixel_perception.

    Raises PerceptionError when it is in neither place.
    """
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    places = [Path(__file__).parents[1] / path, *(Path(p) / "share" / "pixel_perception" / path for p in prefixes if p)]
    for place in places:
        if place.is_dir():
            return place
    raise PerceptionError("INVALID_BUNDLE", f"{path}: expected it in the sources or in share/pixel_perception, found neither")


def simulate(argv: Sequence[str]) -> int:
    """`pixel-perception simulate`."""
    parser = Parser("pixel-perception simulate", description=SIMULATE)
    parser.add_argument("output", help="folder to render into; blocks of scenes that it already holds are kept")
    parser.add_argument("--split", choices=["train", "val", "test"], default="train", help="whose seeds to use")
    parser.add_argument("--scenes", type=int, default=600, metavar="N", help="how many scenes")
    parser.add_argument("--seed-start", type=int, metavar="S", help="first seed; without it the first of the split")
    parser.add_argument("--views", type=int, default=4, metavar="N", help="cameras per scene")
    parser.add_argument("--size", type=int, nargs=2, default=(384, 288), metavar=("W", "H"), help="image size in pixels")
    add_assets(parser)
    arguments = parser.parse_args(argv)
    assets, objects = chosen_assets(arguments)

    from tqdm import tqdm

    from pixel_perception.simulation.catalog import Catalog
    from pixel_perception.simulation.dataset import SPLITS, render

    seeds = split_seeds(SPLITS[arguments.split], arguments.split, arguments.seed_start, arguments.scenes)
    catalog = Catalog.open(assets, only=set(objects) if objects else None)
    with tqdm(total=len(seeds) * arguments.views, unit="view", desc="simulate") as bar:
        total = render(catalog, arguments.output, seeds, arguments.views, tuple(arguments.size), bar.update)
    print(f"{arguments.output}: {total} views of seeds {seeds.start} to {seeds.stop - 1}")
    return 0


def split_seeds(bounds: tuple[int, int], split: str, start: int | None, count: int) -> range:
    """`count` seeds from `start` on. Raises PerceptionError where they leave the split's bounds [first, end)."""
    first = bounds[0] if start is None else start
    if count < 1 or not bounds[0] <= first <= first + count <= bounds[1]:
        raise PerceptionError("INVALID_QUERY", f"--scenes, --seed-start: expected seeds of the {split} split ({bounds[0]} to "
                                               f"{bounds[1] - 1}), found {count} from {first}")
    return range(first, first + count)


SIMULATE = """Render tabletop scenes with ground truth: JPEG images, PNG label maps and one line of JSON per view.

The asset folder holds catalog.json, a list of objects, each with
  id, category (the noun), color, syn (synonyms), lic (licence)
  mesh, tex (texture), col (collision hulls; without them the mesh collides), scale, quat
  grey (a grey texture, so that the object can be tinted), paint (true: always tinted)
and surf/*.png, textures of floor, walls and table. Paths are relative to the folder."""
