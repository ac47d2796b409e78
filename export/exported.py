"""A bundle run in the plainest way, for comparisons: no prefix cache, one image at a time, everything kept."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pixel_perception.bundle import Bundle
from pixel_perception.errors import PerceptionError
from pixel_perception.geometry import Letterbox
from pixel_perception.runtime.text import normalised

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
    """`count` samples from the pictures of a folder (in order of their names, repeated as needed; depth and label maps are
    left out). Raises PerceptionError INVALID_IMAGE when there is none."""
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
    samples = []
    for i in range(count):
        file = files[i % len(files)]
        with Image.open(file) as picture:
            frame = np.asarray(picture.convert("RGB"))
        letterbox = Letterbox(frame.shape[1], frame.shape[0])
        question = known[file.stem][i % len(known[file.stem])] if file.stem in known else QUESTIONS[i % len(QUESTIONS)]
        samples.append(Sample(letterbox.image(frame), letterbox.whole, question))
    return samples


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
    """A bundle on ONNX Runtime."""

    def __init__(self, bundle: Bundle, providers: Sequence[str] = ("CPUExecutionProvider",)):
        import onnxruntime
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self.manifest = bundle.manifest
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
        self._sessions = {
            name: onnxruntime.InferenceSession(bundle.graph(name), options, providers=list(providers))
            for name in bundle.manifest.graphs
        }
        language = load_file(bundle.file("language.safetensors"))
        self._embeddings, self._output = (
            language["embeddings"].astype(np.float32),
            language["codebook_output"],
        )
        self._tokenizer = Tokenizer.from_file(str(bundle.file("tokenizer.json")))
        self._base = len(self._embeddings) - len(self.manifest.tokens.segments) - 1

    def run(self, graph: str, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name."""
        session = self._sessions[graph]
        return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))

    def answer(self, sample: Sample) -> Trace:
        """Answer greedily, at most `MOST_TOKENS` tokens."""
        maps = self.run("image_encoder", image=sample.image[None])
        features = {name: maps[name] for name in ("features_16", "features_8")}
        proposals = self.run("proposals", **features)
        found = proposals["boxes"][0][proposals["scores"][0] >= self.manifest.thresholds.proposal]
        order = np.argsort(found[:, 0] + found[:, 2], kind="stable")
        trace = Trace(np.concatenate([sample.whole[None], found[order]]), found, None, [])
        tokens, question = (
            self.manifest.tokens,
            self._tokenizer.encode(" " + sample.question, add_special_tokens=False).ids,
        )
        trace.ids = [tokens.begin, *question]
        prompts = trace.boxes
        if sample.question == self.manifest.templates.caption_region:
            trace.region = found[0] if len(found) else sample.whole
            prompts = np.concatenate([prompts, trace.region[None]])
        prompted = self.run("prompt_feature_extractor", **features, boxes=prompts)
        visual = prompted["visual_tokens"]
        rows = self._embeddings[trace.ids]
        if trace.region is not None:
            rows = np.concatenate([rows, visual[-1]])
            trace.ids += [-1] * visual.shape[1]
        prefix = np.concatenate(
            [self._embeddings[[tokens.begin]], visual[: len(trace.boxes)].reshape(-1, rows.shape[1])]
        )
        trace.ids.append(tokens.newline)
        self._generate(
            trace, np.concatenate([prefix, rows, self._embeddings[[tokens.newline]]])[None], len(prefix)
        )
        queries = (
            [self.run("prompt_feature_extractor", **features, boxes=found)["object_queries"]]
            if len(found)
            else []
        )
        if trace.groups:
            states = np.stack([trace.states[g : g + len(tokens.segments)] for g in trace.groups])
            queries.insert(0, self.run("token_fusion", hidden_states=states)["queries"])
        if queries:
            decoded = self.run("pixel_decoder", **maps, queries=np.concatenate(queries)[None])
            trace.masks, trace.presence = decoded["mask_logits"][0], decoded["presence"][0]
        return trace

    def _generate(self, trace: Trace, embeds: np.ndarray, lead: int) -> None:
        tokens, past, states, length = self.manifest.tokens, {}, [], 0
        for value in self._sessions["language_model"].get_inputs():
            if value.name.startswith("past"):
                past[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        while True:
            count = embeds.shape[1]
            length += count
            out = self.run(
                "language_model", inputs_embeds=embeds, position_ids=np.arange(length - count, length)[None],
                attention_bias=np.zeros((1, 1, count, length), np.float32), asked=np.array([count - 1]), **past,
            )  # fmt: skip
            past = {name: out[name.replace("past_key_values", "present")] for name in past}
            states.append(out["hidden_states"][0])
            logits = np.concatenate([out["logits"][0, 0], states[-1][-1] @ self._output.T])
            choice = int(logits.argmax())
            trace.choices.append((len(trace.ids) - 1, choice, logits))
            if choice == tokens.end or len(trace.choices) == MOST_TOKENS:
                break
            fed = [choice]
            if choice >= self._base:
                fed = ([tokens.all] if choice > self._base else []) + list(tokens.segments)
                trace.groups.append(len(trace.ids) + len(fed) - len(tokens.segments))
            trace.ids += fed
            embeds = self._embeddings[fed][None]
        trace.states = np.concatenate(states)[lead:]
