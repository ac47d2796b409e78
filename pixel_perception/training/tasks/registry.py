"""Which data sets there are, how their folders look, and who reads them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixel_perception.training.tasks.sample import EmptySplit, Task, TaskError

HOME = "pixel_perception.training.tasks"


@dataclass(frozen=True)
class DataSet:
    """A data set as its authors publish it."""

    name: str
    module: str
    """Of this package; its `load(folder, split, name, **options)` gives the task."""
    layout: str
    """What the folder holds, for people. Images may also lie in a folder beside it."""
    splits: Mapping[str, tuple[str, ...]]
    """Split: patterns in the folder, one of which is there when the split is."""
    shared: bool = False
    """Several splits share a file, so that one may be there and empty."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def present(self, folder: Path) -> tuple[str, ...]:
        """The splits that a folder holds. Raises TaskError when it holds none, and says what was expected."""
        if not folder.is_dir():
            raise TaskError(folder, f"expected a folder with {self.name} ({self.layout}), found no folder")
        found = tuple(split for split, patterns in self.splits.items() if any(_some(folder, p) for p in patterns))
        if not found:
            raise TaskError(folder, f"expected the layout of {self.name} ({self.layout}), found none of its splits")
        return found

    def open(self, folder: str | Path, split: str) -> Task:
        """One split. Raises TaskError for a split that the data set or the folder does not have, and for a wrong layout."""
        folder = Path(folder)
        if split not in self.splits:
            raise TaskError(folder, f"{self.name} has no split {split!r}; expected one of {', '.join(self.splits)}")
        present = self.present(folder)
        if split not in present:
            raise TaskError(folder, f"expected the {split} split of {self.name} ({self.layout}), found only {', '.join(present)}")
        return importlib.import_module(f"{HOME}.{self.module}").load(folder, split, self.name, **self.options)

    def open_all(self, folder: str | Path) -> list[Task]:
        """Every split that the folder holds. Raises TaskError when it holds none, or an empty one."""
        tasks, empty = [], None
        for split in self.present(Path(folder)):
            try:
                tasks.append(self.open(folder, split))
            except EmptySplit as error:
                if not self.shared:
                    raise
                empty = error
        if not tasks:
            assert empty is not None  # present() named a split
            raise empty
        return tasks


def find(name: str) -> DataSet:
    """The data set of a name, whatever its case, hyphens and underscores. Raises TaskError that lists all names."""
    wanted = _simple(name)
    for data_set in DATA_SETS.values():
        if wanted in (_simple(data_set.name), *(alias for alias, known in ALIASES.items() if known == data_set.name)):
            return data_set
    raise TaskError(name, f"unknown data set; expected one of {', '.join(DATA_SETS)}")


def open_task(name: str, folder: str | Path, split: str = "train") -> Task:
    """One split of a data set in a folder. Raises TaskError."""
    return find(name).open(folder, split)


def _simple(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def _some(folder: Path, pattern: str) -> bool:
    return any(True for _ in folder.glob(pattern))


def _same(patterns: tuple[str, ...], *splits: str) -> dict[str, tuple[str, ...]]:
    return {split: tuple(p.replace("SPLIT", split) for p in patterns) for split in splits}


def _refer(name: str, *splits: str, multi: bool = False) -> list[DataSet]:
    by = {"refcocog": "umd"}.get(name, "unc")
    layout = (f"{name}/refs({by}).p and {name}/instances.json, or {name}_{by}_SPLIT.json; images in "
              f"images/{'saiapr_tc-12' if name == 'refclef' else 'mscoco/images/train2014'}")  # fmt: skip
    # References know their split themselves; the loader says more about names of JSON files that are not quite right.
    patterns = _same(("refs(*", f"{name}/refs(*", "instances.json", "*/instances.json", "*SPLIT.json", "*/*SPLIT.json"), *splits)
    out = [DataSet(name, "refcoco", layout, patterns, shared=True)]
    if multi:
        out.append(DataSet(f"multi_{name}", "multi_referring", layout, patterns, shared=True))
        out.append(DataSet(f"multi_{name}_released", "multi_referring", layout, patterns, shared=True, options={"released": True}))
    return out


_NARRATIVES = "{coco,flickr30k,ade20k,open_images}_SPLIT_localized_narratives*.jsonl, images in train2017, val2017 or images"
_NARRATIVE_SPLITS = {s: tuple(f"{base}*_{w}_*localized_narratives*.jsonl" for base in ("", "annotations/") for w in words)
                     for s, words in {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}.items()}  # fmt: skip

DATA_SETS: dict[str, DataSet] = {d.name: d for d in (
    *_refer("refcoco", "train", "val", "testA", "testB", multi=True),
    *_refer("refcoco+", "train", "val", "testA", "testB", multi=True),
    *_refer("refcocog", "train", "val", "test", multi=True),
    *_refer("refclef", "train", "val", "testA", "testB", "testC", "test"),
    DataSet("muse", "muse", "muse_SPLIT.json; images in train2014, train2017 and val2017",
            _same(("muse_SPLIT.json",), "train", "val", "test_less", "test_many")),
    DataSet("reason_seg", "reason_seg", "SPLIT/NAME.jpg with SPLIT/NAME.json, and explanatory/train.json where you have it",
            _same(("SPLIT", "ReasonSeg/SPLIT"), "train", "val", "test")),
    DataSet("ade20k", "ade20k", "images/training/NAME.jpg with annotations/training/NAME.png, and validation likewise",
            {s: tuple(f"{b}images/{f}" for b in ("", "ADEChallengeData2016/", "ade20k/"))
             for s, f in {"train": "training", "val": "validation"}.items()}),
    DataSet("coco_stuff", "coco_stuff", "SPLIT2017/NAME.png of stuffthingmaps, photographs in coco/SPLIT2017 or images/SPLIT2017",
            _same(tuple(f"{b}SPLIT2017" for b in ("", "cocostuff/", "stuffthingmaps_trainval2017/", "stuffthingmaps/", "annotations/")),
                  "train", "val")),
    DataSet("paco", "paco", "annotations/paco_lvis_v1_SPLIT.json; images in coco/train2017 and coco/val2017",
            _same(tuple(f"{b}paco_lvis_v1_SPLIT.json" for b in ("annotations/", "", "paco/annotations/")), "train", "val")),
    DataSet("pascal_part", "pascal_part", "SPLIT.json; images in VOCdevkit/VOC2010/JPEGImages",
            _same(("SPLIT.json", "pascal_part/SPLIT.json"), "train", "val")),
    DataSet("llava_instruct", "llava", "llava_instruct_150k.json; images in train2017",
            {"train": ("llava_instruct_150k.json", "llava_dataset/llava_instruct_150k.json")}),
    DataSet("localized_narratives", "localized_narratives", _NARRATIVES, _NARRATIVE_SPLITS),
    DataSet("localized_narratives_sentences", "localized_narratives", _NARRATIVES, _NARRATIVE_SPLITS, options={"sentences": True}),
    DataSet("coco_captions", "coco_captions", "annotations/captions_SPLIT2017.json; images in SPLIT2017",
            _same(tuple(f"{b}captions_SPLIT{y}.json" for b in ("annotations/", "") for y in ("2017", "2014")), "train", "val")),
    DataSet("flickr30k", "flickr30k", "final_flickr_separateGT_SPLIT.json, or Sentences, Annotations, SPLIT.txt; flickr30k-images",
            _same(("final_flickr_*_SPLIT.json", "annotations/final_flickr_*_SPLIT.json", "SPLIT.txt", "flickr30k/instances.json",
                   "instances.json"), "train", "val", "test"), shared=True),
    DataSet("goldg", "flickr30k", "final_mixed_SPLIT.json; images in train2014 and VG_100K",
            _same(("final_mixed_SPLIT*.json", "annotations/final_mixed_SPLIT*.json", "mixed/instances.json", "instances.json"),
                  "train", "val"), shared=True),
    DataSet("visual_genome", "visual_genome", "train.json and test.json of GRiT, in the folder or in annotations; images in VG_100K",
            _same(("annotations/SPLIT.json", "SPLIT.json"), "train", "val", "test")),
)}  # fmt: skip

ALIASES = {
    "refcocoplus": "refcoco+", "refcocop": "refcoco+", "reasonseg": "reason_seg", "ade": "ade20k", "cocostuff": "coco_stuff",
    "pacolvis": "paco", "lvispaco": "paco", "llava": "llava_instruct", "llavainstruct150k": "llava_instruct", "ln": "localized_narratives",
    "narratives": "localized_narratives", "flickr": "flickr30k", "flickr30kentities": "flickr30k", "vg": "visual_genome",
    "multireferring": "multi_refcoco", "multireferringrefcoco": "multi_refcoco",
}  # fmt: skip
"""Other spellings, without hyphens and underscores."""
