"""What a data set asks of a model, and what the right answer is: from a sample of a loader to requests.

Each kind of request is one protocol of the papers:

* refer: one expression, one mask or box (PixelLM table 3, PixelLLM table 1); every sentence is asked by itself. A phrase of
  Flickr30k or GoldG may have several boxes, of which any is right.
* list: several expressions at once, masks in their order (PixelLM table 2).
* set: a question with several masks in any order (MUSE; PixelLM table 1).
* reason: a question with one mask (ReasonSeg); pixels marked "ignore" count neither way.
* all: everything of a class, or the knowledge that there is none of it.
* region: a caption for a box (PixelLLM table 3). dense: boxes and captions (PixelLLM table 2).
* caption: a sentence about the image. narrate: the places of the words of a narrative (PixelLLM section 5.2).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from pixel_perception.training.tasks.label_maps import class_names
from pixel_perception.training.tasks.phrasing import join
from pixel_perception.training.tasks.sample import Caption, Sample, Target
from pixel_perception.types import Box

KINDS = {
    **dict.fromkeys(("refcoco", "refcoco+", "refclef"), ("refer",)),
    "refcocog": ("refer", "region"),
    **{f"multi_{name}{form}": ("list",) for name in ("refcoco", "refcoco+", "refcocog") for form in ("", "_released")},
    "muse": ("set",),
    "reason_seg": ("reason",),
    **dict.fromkeys(("ade20k", "coco_stuff", "paco", "pascal_part"), ("all",)),
    **dict.fromkeys(("flickr30k", "goldg"), ("refer",)),
    "visual_genome": ("region", "dense"),
    "coco_captions": ("caption",),
    **dict.fromkeys(("localized_narratives", "localized_narratives_sentences"), ("narrate",)),
}  # fmt: skip
"""Kinds of request by data set. LLaVA's conversations are not here: their answers are free text without a measure."""

ABSENT = 2
"""Absent classes asked for in each image of a label map, which tells of every pixel what it is."""


@dataclass(frozen=True)
class Request:
    """One question about one image, with its truth."""

    kind: str
    text: str = ""
    """The expression, question, class or (narrate) the caption whose words are to be placed; "" where only a box is given."""
    names: tuple[str, ...] = ()
    """The expressions of a list."""
    box: Box | None = None
    """The box to be captioned, pixels."""
    targets: tuple[Target, ...] = ()
    """What is meant, in order where there is one; empty when it is absent."""
    captions: tuple[Caption, ...] = ()
    """True captions: references of a region or an image, regions of dense captioning, the narrative itself."""


def requests(data: str, sample: Sample, index: int, kinds: tuple[str, ...]) -> list[Request]:
    """Everything that the data set asks about its sample `index`, of the given kinds. The same call gives the same requests."""
    return [request for kind in KINDS[data] if kind in kinds for request in MAKERS[kind](data, sample, index)]


def _refer(data: str, sample: Sample, index: int) -> Iterator[Request]:
    if data in ("flickr30k", "goldg"):
        for text in dict.fromkeys(text for target in sample.targets for text in target.names):
            yield Request("refer", text, targets=tuple(target for target in sample.targets if text in target.names))
        return
    for target in sample.targets:
        for text in target.names:
            yield Request("refer", text, targets=(target,))


def _list(data: str, sample: Sample, index: int) -> Iterator[Request]:
    for asked in sample.rounds:
        names = tuple(target.names[0] for target in asked.targets)
        yield Request("list", join(names), names, targets=asked.targets)


def _set(data: str, sample: Sample, index: int) -> Iterator[Request]:
    for asked in sample.rounds:
        yield Request("set", asked.question, targets=asked.targets)


def _reason(data: str, sample: Sample, index: int) -> Iterator[Request]:
    for asked in sample.rounds:
        yield Request("reason", asked.question, targets=asked.targets)
    for target in sample.targets:  # short ones are phrases
        for text in target.names:
            yield Request("reason", text, names=(text,), targets=(target,))


def _all(data: str, sample: Sample, index: int) -> Iterator[Request]:
    of_class: dict[str, list[Target]] = {}
    for target in sample.targets:
        of_class.setdefault(target.names[0], []).append(target)
    for name, targets in sorted(of_class.items()):
        yield Request("all", name, targets=tuple(targets))
    if data in ("ade20k", "coco_stuff"):
        missing = [name for name in class_names(data) if name not in of_class and "-" not in name]
        for name in random.Random(index).sample(missing, min(ABSENT, len(missing))):
            yield Request("all", name)


def _region(data: str, sample: Sample, index: int) -> Iterator[Request]:
    for target in sample.targets:
        if target.box is not None:
            yield Request("region", box=target.box, captions=tuple(Caption(text, target.box) for text in target.names))
    for caption in sample.captions:
        if caption.box is not None:
            yield Request("region", box=caption.box, captions=(caption,))


def _dense(data: str, sample: Sample, index: int) -> Iterator[Request]:
    yield Request("dense", captions=tuple(caption for caption in sample.captions if caption.box is not None))


def _caption(data: str, sample: Sample, index: int) -> Iterator[Request]:
    yield Request("caption", captions=sample.captions)


def _narrate(data: str, sample: Sample, index: int) -> Iterator[Request]:
    for caption in sample.captions:
        if caption.words:  # a narrative that has lost its trace says nothing about places
            yield Request("narrate", caption.text, captions=(caption,))


MAKERS = {"refer": _refer, "list": _list, "set": _set, "reason": _reason, "all": _all, "region": _region, "dense": _dense,
          "caption": _caption, "narrate": _narrate}  # fmt: skip
