"""The three families of models behind one interface: look at an image once, answer requests about it.

A predictor knows which kinds of request (requests.py) its model can answer and where its protocol differs from the papers'.
An answer has a mode: "" is the protocol of the paper's figures; "generated" is what the model says by itself where the paper
hands it the words (PixelLM's tokens in refCOCO, the caption of a narrative).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pixel_perception.evaluation.answers import Answer
from pixel_perception.evaluation.requests import Request
from pixel_perception.types import Box

GENERATED = "generated"
WIDE = 1 << 20
"""Bytes at each end of a weight file that tell it from others; reading 26 GB to name them would take minutes."""


class EvaluationError(ValueError):
    """What cannot be evaluated: one sentence that names the argument or file, what was expected and what was found."""


class Predictor(Protocol):
    """A model as the evaluation sees it."""

    name: str
    """Configuration."""
    identity: str
    """Tells these weights from others."""
    kinds: Mapping[str, str]
    """Kinds of request that it answers, with a sentence where the protocol is not the paper's ("" where it is)."""

    def look(self, image: np.ndarray) -> Any:
        """Encode an image (H, W, 3) uint8 RGB."""

    def answer(self, seen: Any, request: Request) -> dict[str, Answer]:
        """The answer of each mode."""


def open_predictor(name: str, weights: str | None, bundle: Mapping[str, Any], network: Mapping[str, Any]) -> Predictor:
    """The predictor of a configuration.

    Args:
        name: "compact", or one of `models.configurations`.
        weights: a model's folder; None takes the assembled bundle for "compact".
        bundle: options of `Perception.open`, for "compact".
        network: options of `networks.open_network`, for the others.

    Raises:
        EvaluationError: for no weights. ValueError: for an unknown configuration or weights of another size.
    """
    if name == "compact":
        return Compact(weights, **bundle)
    from pixel_perception.evaluation.networks import open_network

    return open_network(name, weights, **network)


class Compact:
    """The compact model, through its exported bundle."""

    kinds = {
        "refer": "Expressions: compact is asked with the expression as it stands and may find several instances; their union is the mask.",
        "list": "Lists: compact is asked with all expressions at once; the masks of each target are united, and taken in order.",
        "set": "MUSE: compact is asked the question as it stands; masks are matched by IoU as in the paper.",
        "reason": "ReasonSeg: compact is asked the question as it stands.",
        "all": 'Classes: compact is asked for "all" of each.',
        "region": "", "dense": "",
        "narrate": "Narratives: compact places the words of its own narration; it cannot be given a caption.",
    }  # fmt: skip

    def __init__(self, weights: str | None, **options) -> None:
        from pixel_perception.perception import Perception

        self.perception = Perception.open(weights, **options)
        self.name, self.identity = "compact", self.perception.info.digest
        self.perception.ask(np.zeros((48, 64, 3), np.uint8), _query("the cup"))  # warm up, so that records time alike

    def look(self, image: np.ndarray) -> Any:
        return self.perception.encode(image)

    def answer(self, seen: Any, request: Request) -> dict[str, Answer]:
        from pixel_perception.simulation.phrases import plural
        from pixel_perception.types import Query, Task

        if request.kind == "region":
            query = Query(task=Task.CAPTION_REGION, boxes=(request.box,))
        elif request.kind in ("dense", "narrate"):
            query = Query(task=Task.CAPTION_DENSE if request.kind == "dense" else Task.NARRATE)
        elif not request.text.strip(" .!?"):  # refCOCO has expressions without a word, and no model a use for them
            return {"": Answer(total_ms=0.0)}
        else:
            query = _query(f"all {plural(request.text)}" if request.kind == "all" else request.text)
        started, moments = time.perf_counter(), []

        def note(part) -> None:
            if part.kind == "instance":
                moments.append(1000 * (time.perf_counter() - started))

        result = self.perception.ask(seen, query, on_partial=note)
        total = 1000 * (time.perf_counter() - started)
        timing = {"first_mask_ms": moments[0] if moments else None, "total_ms": total}
        if request.kind in ("region", "dense"):
            found = result.regions
            text = result.text if request.kind == "region" else ""
            return {"": Answer(text, (), [r.box for r in found], [r.score for r in found], [r.caption for r in found], **timing)}
        width, height = result.image_size
        if request.kind == "narrate":
            trace = np.array([word.box for word in result.words]).reshape(-1, 4) / (width, height, width, height)
            return {GENERATED: Answer(result.text, trace=trace, **timing)}
        masks = [instance.mask.full(width, height) for instance in result.instances]
        if request.kind == "list":
            blank = np.zeros((height, width), bool)
            masks = [np.logical_or.reduce([blank, *(m for m, i in zip(masks, result.instances, strict=True) if i.target == k)])
                     for k in range(len(result.targets))]  # fmt: skip
            text = result.text
        else:
            text = with_slots(result.text, [instance.span[1] for instance in result.instances])
        boxes = [around([instance.box for instance in result.instances])] if result.instances else []
        return {"": Answer(text, masks, boxes, presence=max((t.score for t in result.targets), default=0.0), **timing)}


def _query(text: str):
    from pixel_perception.types import Query

    return Query(text)


def with_slots(text: str, ends: list[int]) -> str:
    """The text with a `{seg}` behind every byte position of `ends`; ends must not fall."""
    encoded, out, before = text.encode(), "", 0
    for end in ends:
        out += encoded[before:end].decode() + " {seg}"
        before = end
    return out + encoded[before:].decode()


def around(boxes: list[Box]) -> Box:
    """The box around boxes."""
    x0, y0, x1, y1 = np.array(boxes).T
    return float(x0.min()), float(y0.min()), float(x1.max()), float(y1.max())


def box_of(bits: np.ndarray) -> list[Box]:
    """The box around a mask (H, W) bool; none for an empty one."""
    rows, columns = np.flatnonzero(bits.any(1)), np.flatnonzero(bits.any(0))
    return [(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))] if len(rows) else []


def fingerprint(folder: Path) -> str:
    """Tells the files of a model folder from others: their names, sizes, and what is at both ends of each."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(WIDE))
            file.seek(max(0, size - WIDE))
            digest.update(file.read(WIDE))
    return digest.hexdigest()
