"""`pixel-perception record`: makes a recording from simulated scenes and photographs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pixel_perception.cli import Parser
from pixel_perception.errors import PerceptionError

if TYPE_CHECKING:
    from pixel_perception.simulation.scene import View
    from pixel_perception.simulation.tabletop import Tabletop

ABOUT = """Make the recording that the demo plays: a few frames of simulated scenes with depth and ground truth, taken by a
camera in slow motion, and photographs. Photographs come from a folder with COCO annotations.json; only those under a
licence that is named there as CC BY are taken, and ATTRIBUTION.md names the source of each."""
RATE_HZ = 10.0
DRIFT = (0.008, 0.8)
"""(metres, degrees) between neighbouring frames: a slow motion of the camera at RATE_HZ."""
JPEG_QUALITY = 88
CC_BY = 4
"""Number of the Creative Commons Attribution licence in COCO annotations."""


def main(argv: Sequence[str]) -> int:
    """Render the scenes, copy the photographs, write recording.json and ATTRIBUTION.md."""
    from pixel_perception.commands import add_assets, chosen_assets

    parser = Parser("pixel-perception record", description=ABOUT)
    parser.add_argument("output", help="folder to make; a recording that is there already is replaced, its instructions.json kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[900_006, 900_013, 900_020], metavar="S",
                        help="scenes to record (default: three of the test split)")
    parser.add_argument("--frames", type=int, default=4, metavar="N", help="frames per scene")
    parser.add_argument("--images", metavar="DIR", help="photographs with annotations.json (COCO)")
    parser.add_argument("--ids", type=int, nargs="+", default=[], metavar="ID", help="ids of the photographs to take")
    add_assets(parser)
    arguments = parser.parse_args(argv)
    if arguments.frames < 1:
        parser.error("--frames: expected 1 or more")
    if arguments.ids and not arguments.images:
        parser.error("--ids needs --images")
    assets, objects = chosen_assets(arguments)
    folder = Path(arguments.output)
    if folder.exists() and any(folder.iterdir()) and not (folder / "recording.json").is_file():
        raise PerceptionError("INVALID_QUERY", f"{folder}: expected a new or empty folder or an earlier recording, found other files")

    from tqdm import tqdm

    from pixel_perception.simulation.catalog import Catalog
    from pixel_perception.writing import replacing

    catalog = Catalog.open(assets, only=set(objects) if objects else None)
    with replacing(folder) as work:
        scenes = [simulated(catalog, seed, arguments.frames, work) for seed in tqdm(arguments.seeds, unit="scene", desc="record")]
        scenes += [photograph(Path(arguments.images), number, work) for number in arguments.ids]
        (work / "recording.json").write_text(json.dumps({"rate_hz": RATE_HZ, "scenes": scenes}, indent=1) + "\n")
        (work / "ATTRIBUTION.md").write_text(attribution(scenes, catalog))
        if (folder / "instructions.json").is_file():  # written by hand: what the demo asks about the scenes
            shutil.copy(folder / "instructions.json", work)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {len(scenes)} scenes, {sum(len(s['frames']) for s in scenes)} frames, {size / 1e6:.1f} MB")
    return 0


def simulated(catalog, seed: int, frames: int, folder: Path) -> dict:
    """Render `frames` views of the scene `seed` into `folder`; returns its entry of recording.json."""
    import numpy as np

    from pixel_perception.evaluation.tabletop import SIZE, photograph
    from pixel_perception.simulation.tabletop import Tabletop

    table = Tabletop(catalog, seed, SIZE)
    camera, view = photograph(table, seed, depth=True)
    # One direction for all frames: the generator starts anew each time, only the distance grows.
    views = [view, *(table.view(camera.moved(np.random.default_rng(seed), k * DRIFT[0], k * DRIFT[1])) for k in range(1, frames))]
    entry = {"name": str(seed), "kind": "simulated", "credit": f"simulated, seed {seed}; objects are named in ATTRIBUTION.md",
             "frames": [_frame(view, table, f"{seed}-{k}", folder) for k, view in enumerate(views)]}  # fmt: skip
    table.close()
    return entry


def _frame(view: View, table: Tabletop, name: str, folder: Path) -> dict:
    import numpy as np
    from PIL import Image

    k = view.intrinsics
    depth = np.where(np.isfinite(view.depth) & (view.depth < 10), view.depth, 0)
    # A depth camera resolves about 2 mm at a metre; finer steps would only be noise that does not compress.
    millimetres = (2 * np.round(500 * depth)).astype(np.uint16)
    Image.fromarray(view.rgb).save(folder / f"{name}.jpg", quality=JPEG_QUALITY)
    # Apart from the pictures: a program that takes the folder's images must not take these for some.
    depth_file, labels_file = f"depth/{name}.png", f"labels/{name}.png"
    for file, pixels in ((depth_file, millimetres), (labels_file, view.labels)):
        (folder / file).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / file, optimize=True)
    objects = [{"label": o.label, "id": o.id, "noun": o.noun, "color": o.color, "synonyms": list(o.synonyms), "box": list(o.box)}
               for o in view.objects]  # fmt: skip
    intrinsics = [round(float(v), 3) for v in (k[0, 0], k[1, 1], k[0, 2], k[1, 2])]
    return {"image": f"{name}.jpg", "depth": depth_file, "labels": labels_file, "intrinsics": intrinsics,
            "objects": objects}  # fmt: skip


def photograph(source: Path, number: int, folder: Path) -> dict:
    """Copy one photograph into `folder`; returns its entry of recording.json. Raises PerceptionError naming what is wrong."""
    from PIL import Image

    path = source / "annotations.json"
    data = json.loads(path.read_text())
    row = next((row for row in data["images"] if row["id"] == number), None)
    if row is None:
        raise PerceptionError("INVALID_QUERY", f"{path}: expected an image with id {number}, found none")
    if row.get("license") != CC_BY:
        raise PerceptionError("INVALID_QUERY", f"{path}: expected licence {CC_BY} (CC BY) of image {number}, "
                                               f"found {row.get('license')}")  # fmt: skip
    file = source / "images" / row["file_name"]
    with Image.open(file if file.is_file() else source / row["file_name"]) as picture:
        picture.convert("RGB").save(folder / f"{number}.jpg", quality=JPEG_QUALITY)
    frame = {"image": f"{number}.jpg", "depth": None, "labels": None, "intrinsics": None, "objects": []}
    return {"name": f"photo-{number}", "kind": "photograph", "credit": f"{row['flickr_url']} (CC BY 2.0)", "frames": [frame]}


def attribution(scenes: list[dict], catalog) -> str:
    """Text of ATTRIBUTION.md: the source and licence of everything in the recording."""
    used = {o["id"] for scene in scenes for frame in scene["frames"] for o in frame["objects"]}
    objects = sorted((a.id, a.licence) for a in catalog.assets if a.id in used)
    photos = [s for s in scenes if s["kind"] == "photograph"]
    lines = ["# Where this recording comes from", "",
             "Simulated frames were rendered with MuJoCo by `pixel-perception record`. Objects in them:", "",
             *(f"* {name}: {licence}" for name, licence in objects)]  # fmt: skip
    if photos:
        lines += ["", "Photographs, from COCO train2017, each by its author on Flickr under Creative Commons Attribution 2.0 "
                      "(https://creativecommons.org/licenses/by/2.0/), recompressed:", "",
                  *(f"* `{s['frames'][0]['image']}`: {s['credit'].removesuffix(' (CC BY 2.0)')}, photo page "
                    f"https://www.flickr.com/photo.gne?id={_flickr_id(s['credit'])}" for s in photos)]  # fmt: skip
    return "\n".join(lines) + "\n"


def _flickr_id(credit: str) -> str:
    return credit.split("/")[-1].split("_")[0]
