"""Load PixelLLM's weights: the reference's whole tree, or the three pretrained models that training starts from.

Every tensor is accounted for by both names before anything is copied.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pixel_perception.models.pixelllm.flax_names import REFERENCE
from pixel_perception.models.pixelllm.hub_names import EVA02, FLAN_T5, SAM
from pixel_perception.models.pixelllm.layouts import Layout
from pixel_perception.models.pixelllm.model import PixelLLM
from pixel_perception.models.tensor_files import CheckpointError, Folder, Row

LAYOUTS = {"reference": REFERENCE, "sam": SAM, "eva02": EVA02, "flan-t5": FLAN_T5}
"""Published layouts by name; the last three each fill the parts of the model that come from there."""


def plan(shapes: Mapping[str, tuple[int, ...]], model: PixelLLM, layout: Layout,
         parts: tuple[str, ...] | None = None) -> list[Row]:
    """The mapping of their names and shapes, a row for each tensor of either side; nothing is read or copied.

    Args:
        parts: prefixes of our names that must be filled, instead of those of the layout.
    """
    parts = layout.parts if parts is None else parts
    ours = {name: tuple(x.shape) for name, x in model.state_dict().items() if name.startswith(parts)}
    rows: list[Row] = []
    filled: dict[str, set[int | None]] = {}
    for name, shape in shapes.items():
        shape = tuple(shape)
        place = layout.place(name)
        if reason := layout.reason_unused(name):
            rows.append(Row(name, "", shape, None, "unused", reason))
        elif place is None or place.name not in ours:
            rows.append(Row(name, place.name if place else "", shape, None, "extra"))
        else:
            wanted = ours[place.name]
            filled.setdefault(place.name, set()).add(place.slot)
            fits = _turned_shape(place.turn, shape) == (wanted if place.slot is None else wanted[1:])
            fits = fits and (place.slot is None or place.slot < wanted[0])
            note = "" if place.slot is None else f"row {place.slot}"
            rows.append(Row(name, place.name, shape, wanted, "load" if fits else "shape", note))
    for name, shape in ours.items():
        if name not in filled:
            rows.append(Row("", name, None, shape, "fresh" if layout.is_fresh(name) else "missing"))
        elif None not in filled[name] and len(filled[name]) < shape[0]:
            absent = sorted(set(range(shape[0])) - filled[name])
            rows.append(Row("", name, None, shape, "missing", f"rows {absent}"))
    return rows


def _turned_shape(turn, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return tuple(turn(torch.empty(shape, device="meta")).shape)
    except (RuntimeError, IndexError):  # another number of dimensions than the rule expects
        return None


def load(model: PixelLLM, tensors: Mapping[str, Tensor | np.ndarray], layout: Layout = REFERENCE,
         parts: tuple[str, ...] | None = None) -> list[Row]:
    """Copy published tensors into the model and return the mapping.

    Raises:
        CheckpointError: before anything is copied, when a tensor is missing, extra or mis-shaped.
    """
    shapes = tensors.shapes() if isinstance(tensors, Folder) else {name: x.shape for name, x in tensors.items()}
    rows = plan(shapes, model, layout, parts)
    if bad := [row for row in rows if not row.ok]:
        raise CheckpointError(f"{len(bad)} tensors do not fit:\n" + "\n".join(map(str, bad)))
    state = model.state_dict()
    with torch.no_grad():
        for row in rows:
            if row.status == "load":
                place = layout.place(row.published)
                value = place.turn(torch.as_tensor(tensors[row.published]))
                target = state[row.ours] if place.slot is None else state[row.ours][place.slot]
                target.copy_(value)  # a state dict shares its storage with the model
    return rows


def load_folder(model: PixelLLM, folder: str | Path, layout: str) -> list[Row]:
    """``load`` from a folder of safetensors in one of ``LAYOUTS``, by name.

    Raises:
        CheckpointError: for an unknown layout, or weights that are not there or do not fit.
    """
    if layout not in LAYOUTS:
        raise CheckpointError(f"unknown layout {layout!r}; known are {', '.join(LAYOUTS)}")
    return load(model, Folder(folder), LAYOUTS[layout])
