"""Published weights of every layout into our networks: each tensor is accounted for by both names before anything is copied.

A network is filled from one source or several: PixelLM's release and OpenAI's CLIP tower; a LLaVA model and the tower, to start
training; PixelLLM's reference tree; SAM, EVA-02 and Flan-T5, to start training.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pixel_perception.bundle import file_digest
from pixel_perception.models.compact import Compact
from pixel_perception.models.hub import local_folder
from pixel_perception.models.layouts import Layout, Place, Shape
from pixel_perception.models.perception_model import PerceptionModel
from pixel_perception.models.pixelllm import flax_names
from pixel_perception.models.pixelllm.model import PixelLLM
from pixel_perception.models.pixelllm.text_decoder import TextDecoder
from pixel_perception.models.pixellm import names as release_names
from pixel_perception.models.pixellm.model import PixelLM
from pixel_perception.models.tensor_files import CheckpointError, Folder, Row, check
from pixel_perception.models.tokenizer_files import FILES

TOKENIZER = Layout("a tokenizer", "", (), text=True)
"""Of a source that has no tensors."""


@dataclass(frozen=True)
class Source:
    """Tensors by their published names in one layout.

    `name` is what the user called it, `folder` where it lies, `revision` the commit of a repository.
    """

    tensors: Mapping[str, Tensor | np.ndarray]
    layout: Layout
    name: str = ""
    folder: Path | None = None
    revision: str = ""
    shapes: Mapping[str, Shape] = field(init=False)

    def __post_init__(self):
        tensors = self.tensors
        shapes = tensors.shapes() if isinstance(tensors, Folder) else {name: tuple(x.shape) for name, x in tensors.items()}
        object.__setattr__(self, "shapes", shapes)

    @property
    def dtype(self) -> torch.dtype:
        """The type of its first tensor of floating-point numbers."""
        return next((x.dtype for x in self.tensors.values() if torch.is_tensor(x) and x.is_floating_point()), torch.float32)

    def record(self) -> dict[str, Any]:
        """What is written down of it: name, layout, commit, and the SHA-256 of every file that was read."""
        files = self.tensors.files if isinstance(self.tensors, Folder) else []
        return {"source": self.name, "layout": self.layout.title, "revision": self.revision,
                "files": {path.name: file_digest(path) for path in tqdm(files, desc="sha256", unit="file", disable=None)}}  # fmt: skip


def layouts_of(kind: type[PerceptionModel]) -> Sequence[Layout]:
    """The published layouts that a kind of network can be filled from. Raises CheckpointError for one without any."""
    if kind is Compact:
        raise CheckpointError("compact: it has no published layout; `pixel-perception assemble` puts it together")
    return (release_names if kind is PixelLM else flax_names).LAYOUTS


def open_source(name: str, kind: type[PerceptionModel]) -> Source:
    """A folder or a repository of the hub (or the `hf_model` in it) with its layout recognised; a tokenizer alone will do.

    Raises CheckpointError when there is nothing in it that the kind of network can use.
    """
    layouts = layouts_of(kind)
    folder, revision = local_folder(name)
    if (folder / "hf_model").is_dir():
        folder = folder / "hf_model"
    try:
        tensors = Folder(folder)
    except CheckpointError:
        if any(folder.glob("*.index.json")) or not any((folder / file).is_file() for file in FILES[:4]):
            raise
        return Source({}, TOKENIZER, name, folder, revision)
    layout = next((layout for layout in layouts if any(re.search(layout.sign, tensor) for tensor in tensors)), None)
    if layout is None:
        known = ", ".join(layout.title for layout in layouts)
        raise CheckpointError(f"{folder}: expected the tensors of {known}, found none of them but {next(iter(tensors))!r} and others")
    return Source(tensors, layout, name, folder, revision)


def plan(model: PerceptionModel, *sources: Source, whole: bool = True) -> list[Row]:
    """The mapping of their names and shapes, a row for each tensor of either side; nothing is read or copied.

    The model may live on the meta device. Without `whole`, parts of the model that no source touches are left out.
    """
    return [row for row, _, _ in _steps(model, sources, whole)]


def load(model: PerceptionModel, *sources: Source, whole: bool = True) -> list[Row]:
    """Copy published tensors into the model and return the mapping; without `whole` into the parts that sources touch.

    Raises CheckpointError, before anything is copied, when a tensor is missing, extra or mis-shaped.
    """
    steps = list(_steps(model, sources, whole))
    check([row for row, _, _ in steps])
    lora: dict[str, dict[str, Tensor]] = {}
    for row, source, _ in steps:
        if row.status == "merge LoRA":
            lora.setdefault(row.ours, {})["A" if ".lora_A." in row.published else "B"] = source.tensors[row.published].float()
    state = model.state_dict()
    with torch.no_grad():
        # A bar only where somebody watches: 13 billion numbers take minutes.
        for row, source, place in tqdm([step for step in steps if step[2]], desc="load", unit="tensor", disable=None):
            value = place.turn(torch.as_tensor(source.tensors[row.published]))
            target = state[row.ours] if place.slot is None else state[row.ours][place.slot]
            if value.shape != target.shape:
                value = place.change.apply(value, target)
            if factors := lora.get(row.ours):
                value = value.float() + source.layout.lora_scale * (factors["B"] @ factors["A"])
            target.copy_(value)  # a state dict shares its storage with the model
    return [row for row, _, _ in steps]


Step = tuple[Row, Source | None, Place | None]
"""A row, the source that it speaks of, and the place that it fills there."""


def _steps(model: PerceptionModel, sources: Sequence[Source], whole: bool) -> Iterator[Step]:
    ours = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    filled: dict[str, dict[int | None, str]] = {}
    for source in sources:
        published = {source.layout.plain(name): name for name in source.shapes}
        for plain, name in published.items():
            row, place = _row(source, plain, name, published.keys(), ours)
            if place is not None:
                places = filled.setdefault(place.name, {})
                if place.slot in places:
                    row, place = Row(name, row.ours, row.published_shape, row.our_shape, "extra", f"{places[place.slot]} filled it"), None
                else:
                    places[place.slot] = name
            yield row, source, place
    start = any(source.layout.start for source in sources)
    pretrained, touched = _pretrained(model), {name.split(".")[0] for name in filled}
    for name, shape in ours.items():
        part, rows = name.split(".")[0], filled.get(name, {})
        if None in rows or (rows and len(rows) == shape[0]) or not (whole or part in touched):
            continue
        if rows:
            yield Row("", name, None, shape, "missing", f"rows {sorted(set(range(shape[0])) - rows.keys())}"), None, None
        elif any(source.layout.is_fresh(name) for source in sources) or (start and part not in pretrained):
            yield Row("", name, None, shape, "fresh"), None, None
        else:
            yield Row("", name, None, shape, "missing", f"a source may be {pretrained[part]}" if part in pretrained else ""), None, None


def _row(source: Source, plain: str, name: str, published, ours: Mapping[str, Shape]) -> tuple[Row, Place | None]:
    layout, shape = source.layout, source.shapes[name]
    if reason := layout.reason_unused(plain):
        return Row(name, "", shape, None, "unused", reason), None
    base = re.sub(r"\.lora_([AB])\.(default\.)?weight$", ".weight", plain)
    place = layout.place(base)
    if place is None or place.name not in ours or base not in published:
        reason = layout.reason_absent(place.name) if place else ""
        return Row(name, "" if reason or not place else place.name, shape, None, "unused" if reason else "extra", reason), None
    wanted = ours[place.name]
    if base != plain:
        return _lora(layout, plain, name, published, shape, place.name, wanted), None
    if place.slot is not None:
        wanted_there, note, inside = wanted[1:], f"row {place.slot}", place.slot < wanted[0]
    else:
        wanted_there, note, inside = wanted, "", True
    turned = _turned_shape(place.turn, shape)
    if inside and turned == wanted_there:
        return Row(name, place.name, shape, wanted, "load", note), place
    if place.change and turned and place.change.fits(turned, wanted_there):
        return Row(name, place.name, shape, wanted, place.change.status, place.change.note), place
    return Row(name, place.name, shape, wanted, "shape", note), place


def _lora(layout: Layout, plain: str, name: str, published, shape: Shape, ours: str, wanted: Shape) -> Row:
    first = ".lora_A." in plain
    other = plain.replace(".lora_A.", ".lora_B.") if first else plain.replace(".lora_B.", ".lora_A.")
    if not layout.lora_scale or other not in published:
        return Row(name, ours, shape, wanted, "extra", "LoRA without its other factor" if layout.lora_scale else "")
    fits = len(shape) == 2 and shape[1] == wanted[1] if first else len(shape) == 2 and shape[0] == wanted[0]
    return Row(name, ours, shape, wanted, "merge LoRA" if fits else "shape")


def _pretrained(model: PerceptionModel) -> Mapping[str, str]:
    if isinstance(model, PixelLM):
        return release_names.PRETRAINED
    parts = dict(flax_names.PRETRAINED)
    if isinstance(model, PixelLLM) and isinstance(model.language, TextDecoder):
        del parts["language"]
    return parts


def _turned_shape(turn, shape: Shape) -> Shape | None:
    try:
        return tuple(turn(torch.empty(shape, device="meta")).shape)
    except (RuntimeError, IndexError):  # another number of dimensions than the rule expects
        return None
