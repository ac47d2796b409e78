"""The papers' own networks as predictors: PixelLM and PixelLLM in torch, from a model's folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixel_perception.evaluation.answers import Answer
from pixel_perception.evaluation.predictors import GENERATED, EvaluationError, box_of, fingerprint
from pixel_perception.evaluation.requests import Request
from pixel_perception.models.configurations import VARYING, configuration, to_dict
from pixel_perception.models.folder import describe, load
from pixel_perception.models.pixelllm.location_head import words as are_words
from pixel_perception.models.pixelllm.model import PixelLLM
from pixel_perception.models.pixelllm.text import PixelLLMText
from pixel_perception.models.pixellm import images
from pixel_perception.models.pixellm.generation import generate
from pixel_perception.models.pixellm.model import PixelLM
from pixel_perception.models.pixellm.text import PixelLMText
from pixel_perception.runtime.sequence import LONG_PROMPT, SHORT_PROMPT
from pixel_perception.training.collate_pixelllm import CAPTION, NARRATE, REFER, REGION
from pixel_perception.training.tasks.localized_narratives import word_spans
from pixel_perception.training.tasks.phrasing import LONG, SHORT, join
from pixel_perception.training.tasks.sample import SLOT
from pixel_perception.types import Box

PHRASE, SENTENCE = SHORT[3], LONG[1]
"""Of PixelLM's patterns those in which its published evaluation asks."""
PROMPTS = {"refer": REFER, "region": REGION, "dense": REGION, "caption": CAPTION[0], "narrate": NARRATE[0]}
"""PixelLLM's text prompt for each kind of request, as in training."""


@dataclass(frozen=True)
class Seen:
    """An encoded image: its features, and its (height, width) in the network's frame and as stored."""

    features: object
    fitted: tuple[int, int]
    source: tuple[int, int]


class _Clock:
    """Milliseconds since it was made, with the device's work done."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.started = device, time.perf_counter()

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return 1000 * (time.perf_counter() - self.started)


def open_network(name: str, weights: str | None, device: str = "cpu", longest: int = 512) -> PixelLMPredictor | PixelLLMPredictor:
    """The predictor of a configuration of the papers, with the weights of a model folder (`models.folder`); PixelLM's own answers end after
    `longest` tokens.

    Raises EvaluationError for no folder, one of another configuration, or a device that is not there; the errors of
    `models.configurations`, `models.folder` and `models.tokenizer_files`.
    """
    wanted = configuration(name)
    if weights is None:
        raise EvaluationError(f"--weights: expected the folder of a trained {name}, found none")
    folder = Path(weights)
    found = describe(folder)["configuration"]
    if different := difference(to_dict(wanted), found):
        raise EvaluationError(f"--weights: {folder} is not {name}: {different}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda") or (device.startswith("cuda") and not torch.cuda.is_available()):
        raise EvaluationError(f"--device: expected auto, cpu or cuda (where there is one), found {device!r}")
    model, identity = load(folder, device=device), fingerprint(folder)
    if isinstance(model, PixelLM):
        return PixelLMPredictor(name, identity, model, PixelLMText.open(folder, model.config), longest)
    return PixelLLMPredictor(name, identity, model, PixelLLMText.open(folder, model.config))


def difference(expected: object, found: object, field: str = "") -> str:
    """Where two configurations in plain form differ, "language.dim: expected 4096, found 48"; "" where the network is the same."""
    if isinstance(expected, dict) and isinstance(found, dict):
        names = [name for name in expected | found if name not in VARYING]
        each = (difference(expected.get(name), found.get(name), f"{field}.{name}".lstrip(".")) for name in names)
        return next((text for text in each if text), "")
    return "" if expected == found else f"{field}: expected {expected}, found {found}"


class PixelLMPredictor:
    """PixelLM: masks where the answer has codebook tokens. Boxes are those around its masks."""

    kinds = {
        "refer": 'Expressions: the answer is given and its tokens are placed, as in the release; the rows "generated" let the model '
                 "answer. Boxes are those around the masks.",
        "list": 'Multi-referring: the answer is given and its tokens are placed, as in the release; the rows "generated" let the model '
                "answer. Masks are compared in order.",
        "set": 'MUSE: masks are matched by IoU as in the paper, in the rows "release" by the published code\'s cost at points of a fixed '
               "seed; a mask without a partner is held against nothing.",
        "reason": "",
        "all": "Classes: PixelLM is asked for each by its name.",
    }  # fmt: skip

    def __init__(self, name: str, identity: str, model: PixelLM, text: PixelLMText, longest: int) -> None:
        self.name, self.identity, self.model, self.text, self.longest = name, f"{identity[:16]} {longest}", model.eval(), text, longest
        self.device = model.word_head.weight.device

    @torch.inference_mode()
    def look(self, image: np.ndarray) -> Seen:
        frame, fitted = images.prepare(image, self.model.config.vision.side)
        clock = _Clock(self.device)
        features = self.model.encode(frame[None].to(self.model.word_head.weight), [fitted])
        clock()
        return Seen(features, fitted, image.shape[:2])

    @torch.inference_mode()
    def answer(self, seen: Seen, request: Request) -> dict[str, Answer]:
        pattern = SENTENCE if request.kind == "set" or (request.kind == "reason" and not request.names) else PHRASE
        question = pattern.replace("{}", request.text if pattern == SENTENCE else request.text.lower())
        if request.kind in ("refer", "list"):
            given = f"{join([SLOT] * max(1, len(request.names)))}."
            return {"": self._ask(seen, question, given), GENERATED: self._ask(seen, question)}
        return {"": self._ask(seen, question)}

    def _ask(self, seen: Seen, question: str, given: str | None = None) -> Answer:
        prompt, forced, longest = self.text.prompt(question), None, self.longest
        if given is not None:
            forced = self.text.row([(question, given)])[0][len(prompt) :]
            longest = len(forced)
        clock = _Clock(self.device)
        answer = generate(self.model, seen.features, prompt, limit=longest, forced=forced)
        logits = self.model.masks(answer.fused, seen.features, [0] * len(answer.fused), [seen.source])[0]
        masks = list(logits.cpu().numpy())
        now = clock()
        whole = np.logical_or.reduce([mask > 0 for mask in masks]) if masks else np.zeros((1, 1), bool)
        return Answer(self.text.decode(answer.ids), masks, box_of(whole), first_mask_ms=now if masks else None, total_ms=now)


class PixelLLMPredictor:
    """PixelLLM: a box for an expression and the mask in it, captions of boxes, and the places of words."""

    def __init__(self, name: str, identity: str, model: PixelLLM, text: PixelLLMText) -> None:
        self.name, self.identity, self.model, self.text = name, identity, model.eval(), text
        self.device = next(model.parameters()).device
        self.kinds = {"caption": "", "region": ""}
        if model.location_head is not None:
            self.kinds |= {
                "refer": "Expressions: PixelLLM is given the expression as prompt and as answer; the state before its end holds the box, "
                         "and the mask is that of the box.",
                "narrate": "Narratives: the narrative is given and its words are placed, each at the mean place of its tokens; the rows "
                           '"generated" place the words of the model\'s own caption.',
            }  # fmt: skip
        if model.detector is not None:
            self.kinds["dense"] = ""

    @torch.inference_mode()
    def look(self, image: np.ndarray) -> Seen:
        side = self.model.config.image_size
        height, width = (max(1, n) for n in images.fitted_size(*image.shape[:2], side))
        frame = np.zeros((side, side, 3), np.float32)
        frame[:height, :width] = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        clock, fitted = _Clock(self.device), (height, width)
        pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].to(next(self.model.parameters()))
        features = self.model.encode(pixels, torch.tensor([[width, height]], device=self.device))
        clock()
        return Seen(features, fitted, image.shape[:2])

    @torch.inference_mode()
    def answer(self, seen: Seen, request: Request) -> dict[str, Answer]:
        if request.kind == "refer":
            return {"": self._refer(seen, request.text)}
        if request.kind == "narrate":
            return {"": self._place(seen, request.text), GENERATED: self._narrate(seen)}
        if request.kind == "region":
            return {"": self._describe(seen, [request.box])}
        if request.kind == "dense":
            return {"": self._dense(seen)}
        return {"": self._caption(seen)}

    def _context(self, kind: str, text: str = "", rows: int = 1) -> Tensor:
        """The text prompt (1, rows, M)."""
        ids = self.text.context(PROMPTS[kind].replace("{}", text), LONG_PROMPT if text else SHORT_PROMPT)
        return torch.tensor(ids, device=self.device).expand(1, rows, -1)

    def _refer(self, seen: Seen, expression: str) -> Answer:
        clock = _Clock(self.device)
        context = self._context("refer", expression)
        tokens = torch.tensor([[self.text.tokens(expression, self.model.config.words)]], device=self.device)
        visual = self.model.extract(seen.features, self.model.whole_image(seen.features))
        read = self.model.read(seen.features, visual, tokens, context)
        box = self.model.boxes(read, tokens)
        masks = []
        if self.model.mask_decoder is not None:
            logits, _ = self.model.masks(seen.features, box, visual, read)
            masks = list(images.unpad(logits[0], seen.fitted, seen.source).cpu().numpy())
        boxes = self._to_source(seen, box[0])
        now = clock()
        return Answer(expression, masks, boxes, first_mask_ms=now if masks else None, total_ms=now)

    def _place(self, seen: Seen, text: str) -> Answer:
        """The places of a given text's words."""
        clock = _Clock(self.device)
        tokens = torch.tensor([[self.text.tokens(text, self.model.config.words)]], device=self.device)
        visual = self.model.extract(seen.features, self.model.whole_image(seen.features))
        read = self.model.read(seen.features, visual, tokens, self._context("narrate"))
        return Answer(text, trace=self._trace(text, read.fractions[0, 0], tokens[0, 0]), total_ms=clock())

    def _narrate(self, seen: Seen) -> Answer:
        """The model's own words, and their places in a second pass over them."""
        clock = _Clock(self.device)
        text = self._write(seen, self.model.whole_image(seen.features), "narrate", beams=4)[0]
        placed = self._place(seen, text)
        return Answer(text, trace=placed.trace, total_ms=clock())

    def _trace(self, text: str, points: Tensor, tokens: Tensor) -> np.ndarray:
        """(N, 4) places of the text's words as fractions of the image, from points (T, 2, 2) of its tokens (T,)."""
        low, high = points.amin(1), points.amax(1)
        placed = torch.cat([low, high], -1)[are_words(tokens, self.model.config.begin, self.model.config.end)].float().cpu().numpy()
        pieces = self.text.pieces(text)[: len(placed)]
        words = [[box for (_, b, e), box in zip(pieces, placed, strict=True) if b < end and e > begin] for begin, end in word_spans(text)]
        return np.array([np.mean(boxes, 0) for boxes in words if boxes]).reshape(-1, 4)

    def _describe(self, seen: Seen, boxes: Sequence[Box]) -> Answer:
        clock = _Clock(self.device)
        scale = np.array([seen.fitted[1] / seen.source[1], seen.fitted[0] / seen.source[0]] * 2)
        prompts = torch.tensor(np.array(boxes) * scale, dtype=torch.float32, device=self.device)[None]
        texts = self._write(seen, prompts, "region")
        return Answer(texts[0], (), list(boxes), captions=texts, total_ms=clock())

    def _dense(self, seen: Seen) -> Answer:
        clock = _Clock(self.device)
        (found,) = self.model.detect(seen.features)
        texts = self._write(seen, found.boxes[None], "dense") if len(found.boxes) else []
        return Answer("", (), self._to_source(seen, found.boxes), found.scores.tolist(), texts, total_ms=clock())

    def _caption(self, seen: Seen) -> Answer:
        clock = _Clock(self.device)
        return Answer(self._write(seen, self.model.whole_image(seen.features), "caption", beams=4)[0], total_ms=clock())

    def _write(self, seen: Seen, prompts: Tensor, kind: str, beams: int = 1) -> list[str]:
        """A caption for each of the prompts (1, P, 4)."""
        visual = self.model.extract(seen.features, prompts)
        tokens, _ = self.model.write(visual, self._context(kind, rows=prompts.shape[1]), beams)
        return [self.text.decode(row) for row in tokens[0].tolist()]

    def _to_source(self, seen: Seen, boxes: Tensor) -> list[Box]:
        """Boxes (P, 4) of the frame in pixels of the source image, clipped to it."""
        (height, width), (fitted_height, fitted_width) = seen.source, seen.fitted
        scaled = boxes.float().cpu().numpy() * np.array([width / fitted_width, height / fitted_height] * 2)
        return [tuple(map(float, row)) for row in np.clip(scaled, 0, [width, height, width, height])]
