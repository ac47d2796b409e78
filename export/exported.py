"""A bundle run on the runtime's backends for comparisons: one image at a time, everything kept."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pixel_perception.bundle import Bundle
from pixel_perception.errors import PerceptionError
from pixel_perception.geometry import Letterbox
from pixel_perception.runtime.drafting import Ahead
from pixel_perception.runtime.session import Backend
from pixel_perception.runtime.text import CompactVocabulary, normalised

if TYPE_CHECKING:
    from pixel_perception.simulation.scene import SceneObject

QUESTIONS = (
    "the red mug", "describe the scene", "the leftmost object and the banana", "something to drink from", "all cups",
    "describe", "how many bowls are there", "the yellow banana, the green apple and the blue bowl", "the largest object",
    "what can be eaten", "the purple unicorn", "the box left of the bottle", "describe",
)  # fmt: skip
"""Asked in turn about pictures of which nothing is known; "describe" asks about the best proposal."""
MOST_TOKENS = 64


@dataclass(frozen=True)
class Sample:
    """One image in the network frame and one question about it."""

    image: np.ndarray
    """(height, width, 3) uint8 RGB, letterboxed."""
    whole: np.ndarray
    """(4,) normalised box of the part that is image."""
    question: str


@dataclass
class Trace:
    """What the bundle did for one sample."""

    boxes: np.ndarray
    """(P, 4) prompts of the visual prefix: the whole image, then proposals from left to right."""
    found: np.ndarray
    """(K, 4) proposals above the threshold, best first."""
    region: np.ndarray | None
    """(4,) the box that was asked about."""
    ids: list[int]
    """Fed after the visual prefix; -1 stands for one visual token of the region."""
    states: np.ndarray | None = None
    """(len(ids), hidden) after the final norm."""
    choices: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    """(index into ids, id chosen there in output numbering, logits)."""
    groups: list[int] = field(default_factory=list)
    """Index into ids of each group's first codebook token."""
    masks: np.ndarray | None = None
    """(targets + found, h, w) logits: targets of the answer, then the found objects' own masks."""
    presence: np.ndarray | None = None
    """Logits of the same."""


def read_samples(folder: Path, count: int) -> list[Sample]:
    """`count` samples from the pictures of a folder. Raises PerceptionError INVALID_IMAGE when there is none."""
    samples = []
    for frame, question in read_pictures(folder, count):
        letterbox = Letterbox(frame.shape[1], frame.shape[0])
        samples.append(Sample(letterbox.image(frame), letterbox.whole, question))
    return samples


def read_pictures(folder: Path, count: int, questions: Sequence[str] = QUESTIONS) -> list[tuple[np.ndarray, str]]:
    """`count` pictures (H, W, 3) uint8 RGB of a folder (in order of their names, repeated as needed; depth and label maps are left
    out), each with what to ask about it: `questions` in turn, where nothing is known of the picture. Raises PerceptionError
    INVALID_IMAGE when there is none."""
    from PIL import Image

    found = [p for p in sorted(Path(folder).glob("*")) if p.suffix in (".jpg", ".jpeg", ".png")]
    # Beside a picture, a .png of the same name, or one that ends in -depth or -labels, is a map of it.
    photographs = {p.stem for p in found if p.suffix != ".png"}
    files = [
        p
        for p in found
        if p.suffix != ".png" or not (p.stem in photographs or p.stem.endswith(("-depth", "-labels")))
    ]
    if not files or count < 1:
        raise PerceptionError(
            "INVALID_IMAGE",
            f"{folder}: expected at least one .jpg or .png to compare on, found {len(files)}.",
        )
    # Spread over the folder: neighbours are often views of one scene.
    files = [files[i * len(files) // min(count, len(files))] for i in range(min(count, len(files)))]
    known = _scene_questions(folder)
    pictures = []
    for i in range(count):
        file = files[i % len(files)]
        with Image.open(file) as picture:
            frame = np.asarray(picture.convert("RGB"))
        asked = known.get(file.stem, questions)
        # Every round asks a picture another one, also where their numbers divide each other.
        pictures.append((frame, asked[(i + i // len(files)) % len(asked)]))
    return pictures


def _scene_questions(folder: Path) -> dict[str, list[str]]:
    """Where the folder holds rendered views or a recording: what may be asked about each simulated image, by its stem.
    Answers that are sure of themselves show what an export does to them; a question about nothing in particular shows
    mostly chance."""
    from pixel_perception.simulation.instructions import instructions
    from pixel_perception.simulation.phrases import Vocabulary

    seen = _known_objects(Path(folder))
    things = [thing for _, objects in seen.values() for thing in objects]
    vocabulary = Vocabulary(tuple(sorted({o.noun for o in things})), tuple(sorted({o.color for o in things})))
    asked = {}
    for name, (size, objects) in seen.items():
        rng = random.Random(name)
        texts = [normalised(i.text) for i in instructions(objects, size, rng, vocabulary) if i.text]
        asked[name] = rng.sample(texts, len(texts))
    return asked


def _known_objects(folder: Path) -> dict[str, tuple[tuple[int, int], tuple[SceneObject, ...]]]:
    """Image stem -> (width, height) and the objects in it."""
    from pixel_perception.demo.recording import Recording
    from pixel_perception.simulation.dataset import load
    from pixel_perception.simulation.scene import SceneObject

    if any(folder.glob("views-*.jsonl")):
        return {record.id: (record.size, record.objects) for record in load(folder)}
    if not (folder / "recording.json").is_file():
        return {}
    found = {}
    for frame in Recording.open(folder).frames:
        height, width = frame.image().shape[:2]
        objects = tuple(SceneObject(t.label, t.name, t.noun, t.color, t.synonyms, tuple(map(int, t.box)), _area(t.box), (0.0, 0.0, 0.0))
                        for t in frame.things)  # fmt: skip
        if objects:
            found[frame.image_file.stem] = ((width, height), objects)
    return found


def _area(box: Sequence[float]) -> int:
    return int((box[2] - box[0]) * (box[3] - box[1]))


class Exported:
    """A bundle on one of the runtime's own backends: its sessions and its decoder, in the steps of `runtime.language`."""

    def __init__(self, bundle: Bundle, backend: Backend):
        """Raises PerceptionError INVALID_BUNDLE where the backend cannot load a graph."""
        self.manifest = bundle.manifest
        self._sessions = {name: backend.session(bundle.graph(name)) for name in bundle.manifest.graphs if name != "language_model"}
        self._decoder = backend.decoder(bundle.graph("language_model"))
        self._vocabulary = CompactVocabulary(bundle)

    def run(self, graph: str, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name."""
        return self._sessions[graph].run(feeds)

    def answer(self, sample: Sample) -> Trace:
        """Answer greedily, at most `MOST_TOKENS` tokens."""
        maps = self.run("image_encoder", image=sample.image[None])
        features = {name: maps[name] for name in ("features_16", "features_8")}
        proposals = self.run("proposals", **features)
        found = proposals["boxes"][0][proposals["scores"][0] >= self.manifest.thresholds.proposal]
        order = np.argsort(found[:, 0] + found[:, 2], kind="stable")
        trace = Trace(np.concatenate([sample.whole[None], found[order]]), found, None, [])
        tokens = self.manifest.tokens
        trace.ids = [tokens.begin, *self._vocabulary.question(sample.question)]
        prompts = trace.boxes
        if sample.question == self.manifest.templates.caption_region:
            trace.region = found[0] if len(found) else sample.whole
            prompts = np.concatenate([prompts, trace.region[None]])
        visual = self.run("prompt_feature_extractor", **features, boxes=prompts[None])["visual_tokens"][0]
        rows = self._vocabulary.embed(trace.ids)
        if trace.region is not None:
            rows = np.concatenate([rows, visual[-1]])
            trace.ids += [-1] * visual.shape[1]
        trace.ids.append(tokens.newline)
        prefix = visual[: len(trace.boxes)].reshape(-1, rows.shape[1])
        self._generate(
            trace,
            np.concatenate([self._vocabulary.embed([tokens.begin]), prefix]),
            np.concatenate([rows, self._vocabulary.embed([tokens.newline])]),
            [] if trace.region is not None else self._vocabulary.question(sample.question),
        )
        queries = []
        if len(found):
            queries.append(self.run("prompt_feature_extractor", **features, boxes=found[None])["object_queries"][0])
        if trace.groups:
            states = np.stack([trace.states[g : g + len(tokens.segments)] for g in trace.groups])
            queries.insert(0, self.run("token_fusion", hidden_states=states)["queries"])
        if queries:
            decoded = self.run("pixel_decoder", **maps, queries=np.concatenate(queries)[None])
            trace.masks, trace.presence = decoded["mask_logits"][0], decoded["presence"][0]
        return trace

    def _generate(self, trace: Trace, prefix: np.ndarray, question: np.ndarray, repeated: Sequence[int]) -> None:
        """`repeated`: ids of the question that the answer probably repeats."""
        tokens, states = self.manifest.tokens, []
        ahead = Ahead(self._decoder, self._vocabulary, repeated, tuple(tokens.segments))
        base = tokens.segments[0]
        step = self._decoder.read([question], self._decoder.read([prefix], None).past)
        while True:
            states.append(step.states[0])
            logits = np.concatenate([step.logits[0], self._vocabulary.codebook_output @ states[-1][-1]])
            choice = int(logits.argmax())
            trace.choices.append((len(trace.ids) - 1, choice, logits))
            if choice == tokens.end or len(trace.choices) == MOST_TOKENS:
                break
            fed = [choice]
            if choice >= base:
                fed = ([tokens.all] if choice > base else []) + list(tokens.segments)
                trace.groups.append(len(trace.ids) + len(fed) - len(tokens.segments))
            trace.ids += fed
            step = ahead.read(tuple(fed), step.past, self.manifest.context - step.past.lengths[0])
        trace.states = np.concatenate(states)
