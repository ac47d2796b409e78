"""Multi-referring segmentation: several expressions of one image in one question (PixelLM, section 5.2).

The paper asks for 3 to 6 objects at a time. Its code takes an image's sentences in their order in chunks of 6, 5, 4, 6, 5, 4, ...
whatever remains; `released` does the same, so that figures compare. Otherwise the last chunks are evened out so that each has
3 to 6, and images with fewer than three sentences are left out. Synonyms of one object may share a chunk, as in the paper.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from pathlib import Path

from pixel_perception.training.tasks import refcoco
from pixel_perception.training.tasks.sample import Round, Sample, Task

CYCLE = (6, 5, 4)
LEAST = 3


def chunks(count: int, released: bool = False) -> list[int]:
    """Sizes that add up to `count`: of 3 to 6 each (none for fewer than three), or the released code's."""
    sizes: list[int] = []
    for size in cycle(CYCLE):
        if sum(sizes) == count:
            break
        sizes.append(min(size, count - sum(sizes)))
    if released or not sizes or sizes[-1] >= LEAST:
        return sizes
    if len(sizes) == 1:
        return []
    # The last one borrows; 4 + 1 cannot give two of three and becomes one of five.
    pair = sizes[-2] + sizes[-1]
    return sizes[:-2] + ([pair] if pair < 2 * LEAST else [pair - pair // 2, pair // 2])


def load(folder: Path, split: str, name: str, released: bool = False) -> Task:
    """One split of `name` ("multi_refcoco", ...), a sample for each image; its rounds are the chunks."""
    least = 1 if released else LEAST
    base = refcoco.load(folder, split, name.removeprefix("multi_").removesuffix("_released"), least)
    return base.map(name, lambda sample: in_chunks(sample, released))


def in_chunks(sample: Sample, released: bool) -> Sample:
    """The sample with its expressions, in their order, as rounds instead of targets."""
    spoken = [replace(target, names=(text,)) for target in sample.targets for text in target.names]
    rounds, start = [], 0
    for size in chunks(len(spoken), released):
        rounds.append(Round(targets=tuple(spoken[start : start + size])))
        start += size
    return replace(sample, targets=(), rounds=tuple(rounds))
