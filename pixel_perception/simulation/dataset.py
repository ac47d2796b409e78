"""Rendered scenes on disk: one folder with JPEG images, PNG label maps and one line of JSON per view."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pixel_perception.simulation.catalog import Catalog
from pixel_perception.simulation.scene import SceneObject
from pixel_perception.writing import write_text

SPLITS = {"train": (0, 800_000), "val": (800_000, 900_000), "test": (900_000, 1_000_000)}
"""Seeds [first, end) of each split; training never sees the others."""


@dataclass(frozen=True)
class Record:
    """One rendered view on disk."""

    folder: Path
    id: str
    size: tuple[int, int]
    objects: tuple[SceneObject, ...]

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return np.asarray(Image.open(self.folder / f"{self.id}.jpg"))

    def labels(self) -> np.ndarray:
        """(H, W) uint8: 0 background, k the object with `label` k."""
        return np.asarray(Image.open(self.folder / f"{self.id}.png"))


def load(folder: str | Path) -> list[Record]:
    """All views of a folder, in the order of their ids. Raises FileNotFoundError when it holds none."""
    folder = Path(folder)
    records = []
    for index in sorted(folder.glob("views-*.jsonl")):
        for line in index.read_text().splitlines():
            row = json.loads(line)
            objects = tuple(SceneObject(**{**o, "synonyms": tuple(o["synonyms"]), "box": tuple(o["box"]),
                                           "position": tuple(o["position"])}) for o in row["objects"])
            records.append(Record(folder, row["id"], tuple(row["size"]), objects))
    if not records:
        raise FileNotFoundError(f"{folder}: holds no views-*.jsonl; render one with `pixel-perception simulate`")
    return sorted(records, key=lambda r: r.id)


def render(catalog: Catalog, folder: str | Path, seeds: range, views: int, size: tuple[int, int], progress=None) -> int:
    """Render `views` cameras of every scene in `seeds` into `folder`; returns how many views it holds of them.

    Resumable: a block of seeds whose index file exists is complete and is skipped.
    """
    from pixel_perception.simulation.tabletop import SEEDS_PER_SET, Tabletop  # only rendering needs the simulator

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for block in range(seeds.start - seeds.start % SEEDS_PER_SET, seeds.stop, SEEDS_PER_SET):
        index = folder / f"views-{block:06d}.jsonl"
        if index.exists():
            total += len(index.read_text().splitlines())
            continue
        table, lines = Tabletop(catalog, block, size), []
        for seed in range(max(block, seeds.start), min(block + SEEDS_PER_SET, seeds.stop)):
            table.settle(seed)
            for k in range(views):
                view = table.view(table.camera(), depth=False)
                if len(view.objects) < 2:
                    continue
                name = f"{seed:06d}-{k}"
                Image.fromarray(view.rgb).save(folder / f"{name}.jpg", quality=92)
                Image.fromarray(view.labels).save(folder / f"{name}.png", compress_level=1)
                lines.append(json.dumps({"id": name, "size": size, "objects": [dataclasses.asdict(o) for o in view.objects]}))
        table.close()
        write_text(index, "".join(line + "\n" for line in lines))
        total += len(lines)
        if progress:
            progress(len(lines))
    return total
