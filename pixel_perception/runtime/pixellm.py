"""PixelLM (Ren et al., CVPR 2024): a square frame, a LLaMA whose vocabulary ends in the codebook, and answers that are sentences.

Prompt: begin, system, <im_start>, image, <im_end>, | question, "ASSISTANT:" | answer. Its token ids are those of
`models.pixellm.text`, on which published weights rest; what stands before the first bar is read once per frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pixel_perception.bundle import Bundle
from pixel_perception.geometry import Letterbox
from pixel_perception.runtime.language import Answer, Choice, Group, Language, Prompt
from pixel_perception.runtime.naming import name_target
from pixel_perception.runtime.session import Backend, Past
from pixel_perception.runtime.text import Vocabulary, sentencepiece
from pixel_perception.runtime.vision import Encoded, Vision


class PixelLMVision(Vision):
    """Features of a frame: image_tokens (1, n, hidden), image_tokens_valid (1, n) bool, maps (1, levels, channels, rows, columns).

    The pixel decoder tells no presence: what is not there has no codebook run in the answer.
    """

    graphs = {
        "image_encoder": ({"image", "fitted"}, {"image_tokens", "image_tokens_valid", "maps"}),
        "token_fusion": ({"hidden_states"}, {"fused"}),
        "pixel_decoder": ({"targets", "maps", "image_of_target"}, {"mask_logits"}),
    }
    one_piece = False  # a run may stand for several things ("the chairs"), or for one in many parts ("the sky")

    def visual(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """See `Vision.visual`."""
        return encoded.features["image_tokens"][0], encoded.features["image_tokens_valid"][0]

    def fuse(self, states: np.ndarray) -> np.ndarray:
        """See `Vision.fuse`: (T, levels, channels)."""
        return self._graphs["token_fusion"].run({"hidden_states": np.ascontiguousarray(states, np.float32)})["fused"]

    def decode(self, encoded: Encoded, queries: np.ndarray) -> tuple[np.ndarray, None]:
        """See `Vision.decode`."""
        feeds = {"targets": np.ascontiguousarray(queries, np.float32), "maps": encoded.features["maps"],
                 "image_of_target": np.zeros(len(queries), np.int64)}  # fmt: skip
        return self._graphs["pixel_decoder"].run(feeds)["mask_logits"], None

    def _beside(self, letterboxes: Sequence[Letterbox]) -> dict[str, np.ndarray]:
        # (height, width) that is image: the graph gives the rest the mean colour, and does not attend to it.
        return {"fitted": np.array([letterbox.valid[::-1] for letterbox in letterboxes], np.int64)}


class PixelLMLanguage(Language):
    """A codebook run is begun by its first token, which competes with all words; the others follow from it and are forbidden elsewhere.

    A target's states are those that predict its tokens: the one before the run, then those after each token but the last
    (`models.pixellm.generation`). Its score is the probability of the first token, which nothing has calibrated.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """See `Language`."""
        super().__init__(bundle, backend, Vocabulary(bundle, sentencepiece))
        self._templates = bundle.manifest.templates

    def prefix(self, visual: np.ndarray, valid: np.ndarray | None = None) -> Past:
        """See `Language.prefix`: padding is not read, and keeps its positions, as in the published code."""
        opening, closing = self._tokens.image
        before = [self._tokens.begin, *self.vocabulary.ids(self._templates.system), opening]
        past = self.decoder.read([self.vocabulary.embed(before)], None).past
        kept = np.ones(len(visual) + 1, bool)
        if valid is not None:
            kept[:-1] = valid
        rows = np.concatenate((visual, self.vocabulary.embed([closing])))[kept]
        return self.decoder.read([rows], past, positions=len(before) + np.flatnonzero(kept)).past

    def _question(self, text: str) -> list[int]:
        return self.vocabulary.ids(self._templates.turn.replace("{}", text.strip()))

    def _choose(self, logits: np.ndarray, state: np.ndarray, probability: bool) -> tuple[int, float]:
        first, *others = self._tokens.segments
        allowed = logits.copy()
        allowed[others] = -np.inf
        token = int(allowed.argmax())
        return token, float(1.0 / np.exp(allowed - allowed[token]).sum()) if probability or token == first else 0.0

    def _group(self, prompt: Prompt, answer: Answer, choice: Choice, states: np.ndarray) -> Group:
        answer.stream.interrupt()
        label, span = name_target(answer.stream.text, answer.stream.interruptions, prompt.about)
        return Group(np.concatenate((choice.state[None], states[:-1])), "one", label, span, choice.probability)
