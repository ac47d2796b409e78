"""The compact model: proposals, region prompts and presence; a codebook beside the vocabulary, and questions of few words.

Prompt: begin, visual prefix, | begin, question, (region tokens), newline | answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pixel_perception import masks
from pixel_perception.bundle import Bundle
from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.drafting import Ahead
from pixel_perception.runtime.language import Answer, Choice, Group, Language, Prompt
from pixel_perception.runtime.session import Backend, Past
from pixel_perception.runtime.text import CompactVocabulary
from pixel_perception.runtime.vision import Encoded, Vision


@dataclass(frozen=True, eq=False)
class Objects:
    """What the frame seems to hold, from left to right."""

    boxes: np.ndarray
    """(P, 4) float32, normalised."""
    scores: np.ndarray
    """(P,) in 0..1."""
    whole: np.ndarray
    """(3, hidden): visual tokens of the whole image."""
    tokens: np.ndarray
    """(P, 3, hidden): visual tokens of each proposal."""
    queries: np.ndarray
    """(P, 2, 128): the pixel decoder's queries of each proposal."""


class CompactVision(Vision):
    """Features of a frame: features_16 (1, 128, 18, 24), features_8 (1, 128, 36, 48), mask_features (1, 16, 72, 96)."""

    graphs = {
        "image_encoder": ({"image"}, {"features_16", "features_8", "mask_features"}),
        "proposals": ({"features_16", "features_8"}, {"boxes", "scores"}),
        "prompt_feature_extractor": ({"features_16", "features_8", "boxes"}, {"visual_tokens", "object_queries"}),
        "token_fusion": ({"hidden_states"}, {"queries"}),
        "pixel_decoder": ({"features_16", "features_8", "mask_features", "queries"}, {"mask_logits", "presence"}),
        "location_head": ({"hidden_states"}, {"points"}),
    }
    one_piece = True

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """See `Vision`."""
        super().__init__(bundle, backend)
        self._least = bundle.manifest.thresholds.proposal

    def visual(self, encoded: Encoded) -> tuple[np.ndarray, None]:
        """See `Vision.visual`: the whole image, then the proposals."""
        objects = self.objects(encoded)
        return np.concatenate((objects.whole, objects.tokens.reshape(-1, objects.whole.shape[-1]))), None

    def objects(self, encoded: Encoded) -> Objects:
        """The proposals that score at least the bundle's threshold, sorted by the x of their centres, and the whole image."""
        return encoded.once("objects", lambda: self._objects(encoded))

    def _objects(self, encoded: Encoded) -> Objects:
        found = self._graphs["proposals"].run(self._pick(encoded, "features_16", "features_8"))
        boxes, scores = found["boxes"][0], found["scores"][0]
        likely = np.flatnonzero(scores >= self._least)
        order = likely[np.argsort(boxes[likely, 0] + boxes[likely, 2], kind="stable")]
        tokens, queries = self.regions(encoded, np.concatenate((encoded.letterbox.whole[None], boxes[order])))
        return Objects(boxes[order], scores[order], tokens[0], tokens[1:], queries[1:])

    def regions(self, encoded: Encoded, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Visual tokens (R, 3, hidden) and object queries (R, 2, 128) of boxes (R, 4), normalised."""
        feeds = self._pick(encoded, "features_16", "features_8") | {"boxes": np.ascontiguousarray(boxes[None], np.float32)}
        out = self._graphs["prompt_feature_extractor"].run(feeds)
        return out["visual_tokens"][0], out["object_queries"][0]

    def fuse(self, states: np.ndarray) -> np.ndarray:
        """Queries (T, 2, 128) of the hidden states at codebook runs (T, 4, hidden)."""
        return self._graphs["token_fusion"].run({"hidden_states": np.ascontiguousarray(states, np.float32)})["queries"]

    def decode(self, encoded: Encoded, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mask logits (T, 72, 96) and presence (T,) in 0..1 of queries (T, 2, 128)."""
        feeds = self._pick(encoded, "features_16", "features_8", "mask_features")
        out = self._graphs["pixel_decoder"].run(feeds | {"queries": np.ascontiguousarray(queries[None], np.float32)})
        return out["mask_logits"][0], 1.0 / (1.0 + np.exp(-out["presence"][0].astype(np.float64)))

    def split(self, encoded: Encoded, quantity: str, logits: np.ndarray, threshold: float) -> list[np.ndarray]:
        """See `Vision.split`: all of a kind are split by the proposals' own masks."""
        if quantity != "all":
            return [logits]
        return masks.split_union(logits, self.object_masks(encoded), self.objects(encoded).scores,
                                 encoded.letterbox.cells(logits.shape), threshold)  # fmt: skip

    def object_masks(self, encoded: Encoded) -> np.ndarray:
        """Mask logits (P, 72, 96) of the proposals, in the order of `objects`."""

        def make() -> np.ndarray:
            queries = self.objects(encoded).queries
            return self.decode(encoded, queries)[0] if len(queries) else np.zeros((0, 1, 1), np.float32)

        return encoded.once("object_masks", make)

    def places(self, encoded: Encoded, states: np.ndarray) -> np.ndarray:
        """Two normalised points x0, y0, x1, y1 (N, 4) for each hidden state (N, hidden)."""
        return self._graphs["location_head"].run({"hidden_states": np.ascontiguousarray(states, np.float32)})["points"]

    @staticmethod
    def _pick(encoded: Encoded, *names: str) -> dict[str, np.ndarray]:
        return {name: encoded.features[name] for name in names}


class CompactLanguage(Language):
    """The codebook's first token and ALL have output columns of their own; the rest of a run follows from its first."""

    vocabulary: CompactVocabulary

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """See `Language`."""
        super().__init__(bundle, backend, CompactVocabulary(bundle))
        run = self._tokens.segments
        self._runs[self._tokens.all] = (self._tokens.all, *run)
        rows = len(self.vocabulary.embeddings)
        if rows <= self._tokens.all:
            raise PerceptionError("INVALID_BUNDLE", f"{bundle.file('language.safetensors')}: expected embeddings of more than "
                                                    f"{self._tokens.all} rows, found {rows}.")

    def prefix(self, visual: np.ndarray, valid: np.ndarray | None = None) -> Past:
        """See `Language.prefix`."""
        return self.decoder.read(np.concatenate((self.vocabulary.embed([self._tokens.begin]), visual))[None], None).past

    def choose(self, logits: np.ndarray, state: np.ndarray) -> int:
        """The most likely next token."""
        return self._choose(logits, state, False)[0]

    def _question(self, text: str) -> list[int]:
        return [self._tokens.begin, *self.vocabulary.question(text), self._tokens.newline]

    def _ahead(self, prompt: Prompt) -> Ahead:
        # A caption says what its question does not.
        question = [] if prompt.region is not None else self.vocabulary.question(prompt.question)
        return Ahead(self.decoder, self.vocabulary, question, self._runs[self._tokens.segments[0]])

    def _choose(self, logits: np.ndarray, state: np.ndarray, probability: bool) -> tuple[int, float]:
        first, everything = self.vocabulary.codebook_output @ state
        best = int(np.argmax(logits))
        token, top = best, float(logits[best])
        for other, value in ((self._tokens.segments[0], float(first)), (self._tokens.all, float(everything))):
            if value > top:
                token, top = other, value
        if not probability:
            return token, 0.0
        total = np.exp(logits - top).sum() + np.exp(first - top) + np.exp(everything - top)
        return token, float(1.0 / total)

    def _group(self, prompt: Prompt, answer: Answer, choice: Choice, states: np.ndarray) -> Group:
        label, span = answer.stream.label()
        quantity = "all" if choice.run[0] == self._tokens.all else "one"
        return Group(states[-len(self._tokens.segments) :], quantity, label, span)
