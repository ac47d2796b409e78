"""Asks an exported bundle about simulated scenes that training never saw, and scores every answer.

A scene is one seed: objects settle, one camera looks at 640x480, `COUNTS` says what is asked. Work is spread over
processes by blocks of seeds, because seeds of one block share a compiled set of objects. `photographs.py` makes rows of
the same form from photographs; `report.py` sums rows up.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pixel_perception.evaluation import metrics
from pixel_perception.evaluation.records import append, stored
from pixel_perception.evaluation.scoring import joint_iou, normalised, sample, save_picture, timed, word_scores
from pixel_perception.types import Query, Task

if TYPE_CHECKING:
    from pixel_perception.perception import Perception
    from pixel_perception.simulation.instructions import Instruction
    from pixel_perception.simulation.phrases import Vocabulary
    from pixel_perception.simulation.scene import View
    from pixel_perception.simulation.tabletop import Camera, Tabletop

FORMAT = 2
"""Of a row; rows of another format in an output folder are made anew."""
SIZE = (640, 480)
COUNTS = {"refer": 4, "several": 2, "all_of": 1, "reasoning": 1, "absent": 3, "region": 2, "narrate": 1}
"""How many instructions of a family a scene is asked, where it has something to ask for."""
MOTIONS = ((0.01, 1), (0.03, 3), (0.06, 6), (0.09, 9), (0.12, 12))
"""(metres, degrees) of the camera's motion away from the first frame, one frame each."""
FOLLOW_EVERY = 3
"""Following is measured on one scene in three: it costs as much as everything else together."""
STABLE_FORMS = ("name", "synonym", "color")
"""Forms whose meaning does not change when the camera moves."""


@dataclass(frozen=True)
class Settings:
    """What to evaluate on; picklable, because every worker process gets it."""

    assets: str
    bundle: str | None = None
    objects: tuple[str, ...] | None = None
    """Ids of the objects to build scenes from; None for all of the asset folder."""
    threshold: float | None = None
    """Presence threshold; None takes the bundle's own."""
    pictures: str | None = None
    """Folder for overlays of the answers; None draws none."""
    backend: str = "auto"
    threads: int | None = None
    """Threads of the runtime in each worker; None shares the processors evenly."""


def run(settings: Settings, seeds: range, jobs: int = 1, out: Path | None = None,
        progress: Callable[[int], None] | None = None) -> list[dict]:
    """Evaluate every seed; returns one row per scene, ordered by seed (`scene` describes a row).

    With `out`, rows are appended to `out/scenes.jsonl` as blocks end, and seeds already in there for the same bundle,
    objects and threshold are not asked again. `progress` is called with the number of scenes that have just ended.
    """
    from pixel_perception.simulation.tabletop import SEEDS_PER_SET

    file = out / "scenes.jsonl" if out else None
    key = _key(settings)
    rows = {row["seed"]: row for row in (stored(file) if file else ()) if row["key"] == key and row["seed"] in seeds}
    if progress and rows:
        progress(len(rows))
    blocks: dict[int, list[int]] = {}
    for seed in seeds:
        if seed not in rows:
            blocks.setdefault(seed // SEEDS_PER_SET, []).append(seed)
    for row in _work(settings, list(blocks.values()), jobs):
        rows[row["seed"]] = row | {"key": key}
        if file:
            append(file, rows[row["seed"]])
        if progress:
            progress(1)
    return [rows[seed] for seed in sorted(rows)]


def _key(settings: Settings) -> str:
    from pixel_perception.bundle import Bundle

    digest = Bundle.open(settings.bundle).digest
    objects = ",".join(sorted(settings.objects)) if settings.objects is not None else "all"
    return f"rows {FORMAT} {digest[:16]} {objects} {settings.threshold}"


def _work(settings: Settings, blocks: list[list[int]], jobs: int) -> Iterator[dict]:
    threads = settings.threads or max(1, (os.cpu_count() or 1) // max(1, jobs))
    if jobs <= 1:
        _start(settings, threads)
        for block in blocks:
            yield from _block(block)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start, (settings, threads)) as pool:
        pending = [pool.submit(_block_list, block) for block in blocks]
        try:
            for done in as_completed(pending):
                yield from done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worker: dict = {}
"""What a worker process keeps between blocks: settings, model, catalogue, vocabulary."""


def _start(settings: Settings, threads: int) -> None:
    os.environ.setdefault("LP_NUM_THREADS", str(threads))  # the software renderer's own threads
    from pixel_perception.perception import Perception
    from pixel_perception.simulation.catalog import Catalog
    from pixel_perception.simulation.phrases import Vocabulary

    everything = Catalog.open(settings.assets)
    catalog = everything if settings.objects is None else Catalog.open(settings.assets, only=set(settings.objects))
    perception = Perception.open(settings.bundle, backend=settings.backend, threads=threads)
    perception.ask(np.zeros((SIZE[1], SIZE[0], 3), np.uint8), Query("the cup"))  # warm up, so that scenes time alike
    # Absent phrases name what the model may know: the whole folder's vocabulary, also when few objects are used.
    _worker.update(settings=settings, perception=perception, catalog=catalog, vocabulary=Vocabulary.of(everything))


def _block_list(seeds: list[int]) -> list[dict]:
    return list(_block(seeds))


def _block(seeds: list[int]) -> Iterator[dict]:
    from pixel_perception.simulation.tabletop import Tabletop

    settings = _worker["settings"]
    table = Tabletop(_worker["catalog"], seeds[0], SIZE)
    try:
        for seed in seeds:
            yield scene(_worker["perception"], table, seed, _worker["vocabulary"], settings.threshold, settings.pictures)
    finally:
        table.close()


def photograph(table: Tabletop, seed: int, depth: bool = False) -> tuple[Camera, View]:
    """Settle `seed` and draw the first camera that sees at least two objects. The same seed gives the same view."""
    table.settle(seed)
    for _ in range(20):
        camera = table.camera()
        view = table.view(camera, depth)
        if len(view.objects) >= 2:
            break
    return camera, view


def scene(perception: Perception, table: Tabletop, seed: int, vocabulary: Vocabulary, threshold: float | None,
          pictures: str | None = None) -> dict:
    """Ask everything about one scene; overlays of the answers go to the folder `pictures`. The row holds plain JSON values:

    samples  one per instruction with targets or absent ones, see `sample`
    regions  {"caption", "truth", "noun", "attribute"} per asked box
    words    {"distance", "said", "true", "lbm", "answer", "truth"} per narration or caption, see `word_scores`
    follow   {"step", "standing", "again"}: mean IoU per moved frame
    first_mask_ms, all_masks_ms: from the image to the first mask and to the last, first request of the scene; or null
    """
    from pixel_perception.simulation.instructions import instructions

    camera, view = photograph(table, seed)
    rng = random.Random(seed)
    row: dict = {"seed": seed, "samples": [], "regions": [], "words": [], "follow": [],
                 "first_mask_ms": None, "all_masks_ms": None}  # fmt: skip
    asked = instructions(view.objects, SIZE, rng, vocabulary, COUNTS)
    encoded = None
    for item in asked:
        if item.family in ("region", "narrate"):
            continue
        query = Query(item.text, score_threshold=threshold)
        if encoded is None:  # the first request pays for the frame, as a robot's does
            encoded, result, row["first_mask_ms"], row["all_masks_ms"] = timed(perception, view.rgb, query)
        else:
            result = perception.ask(encoded, query)
        if pictures:
            save_picture(Path(pictures), f"{seed}-{len(row['samples'])}", view.rgb, result, f"{item.family}: {item.text}")
        truth = [label for target in item.targets for label in target.labels]
        boxes = {thing.label: thing.box for thing in view.objects}
        row["samples"].append({"family": item.family, "form": item.form} | sample(
            item.text, result, [view.labels == label for label in truth], [boxes[label] for label in truth]))
    encoded = encoded or perception.encode(view.rgb)
    for item in asked:
        if item.family in ("region", "narrate"):
            _describe(perception, encoded, view, item, vocabulary, row)
    if seed % FOLLOW_EVERY == 0:
        row["follow"] = _follow(perception, table, camera, view, encoded, vocabulary, rng, threshold)
    return row


def _describe(perception: Perception, encoded: object, view: View, item: Instruction, vocabulary: Vocabulary, row: dict) -> None:
    things = {thing.label: thing for thing in view.objects}
    if item.family == "region":
        thing = things[item.region]
        result = perception.ask(encoded, Query(task=Task.CAPTION_REGION, boxes=(thing.box,)))
        caption = result.regions[0].caption if result.regions else result.text
        noun, attribute = metrics.caption_right(caption, thing.color, thing.words, set(vocabulary.colors))
        row["regions"].append({"caption": caption, "truth": thing.name, "noun": noun, "attribute": attribute})
    else:
        result = perception.ask(encoded, Query(task=Task.NARRATE))
    true = [(word, normalised(things[label].box, SIZE)) for begin, end, label in item.words for word in item.caption[begin:end].split()]
    row["words"].append(word_scores(result, true) | {"answer": result.text, "truth": item.caption})


def _follow(perception: Perception, table: Tabletop, camera: Camera, view: View, encoded: object, vocabulary: Vocabulary,
            rng: random.Random, threshold: float | None) -> list[dict]:
    """Follow one standing instruction through growing camera motions, against asking again in every frame."""
    from pixel_perception.simulation.instructions import one

    drawn = (one("refer", view.objects, SIZE, rng, vocabulary) for _ in range(20))
    item = next((i for i in drawn if i is not None and i.form in STABLE_FORMS), None)
    if item is None:
        return []
    query = Query(item.text, score_threshold=threshold)
    standing = perception.ask(encoded, query).standing
    if standing is None:
        return []
    thing = next(o.id for o in view.objects if o.label == item.targets[0].labels[0])
    steps, shake = [], np.random.default_rng(rng.getrandbits(32))
    for step, (metres, degrees) in enumerate(MOTIONS, start=1):
        moved = table.view(camera.moved(shake, metres, degrees), depth=False)
        label = next((o.label for o in moved.objects if o.id == thing), None)
        if label is None:  # it left the image
            continue
        truth, frame = moved.labels == label, perception.encode(moved.rgb)
        followed = perception.follow(frame, standing)
        standing = followed.standing or standing
        steps.append({"step": step, "standing": joint_iou(followed, truth), "again": joint_iou(perception.ask(frame, query), truth)})
    return steps
