"""The token loop of an encoder and a decoder: each prompt read once, then words written one by one, all rows in one step.

PixelLLM's language models, Flan-T5 and the small text decoder, as graphs of one interface. A prompt is visual tokens, of the whole
image or of a region, and words; what is known beforehand (an expression that is to be found) is read in a single pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pixel_perception.bundle import Bundle
from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.language import Answer, Cancel, Group, Prompt
from pixel_perception.runtime.session import Backend
from pixel_perception.runtime.text import open_tokenizer

SHORT_PROMPT, LONG_PROMPT = 8, 40
"""Most tokens of a prompt, without and with the user's own words in it, as in the release."""
NEVER = -1e4
"""Most that the logit of the last token may be: a word is not written twice in a row, as in the release."""

Arrays = dict[str, np.ndarray]


class SequenceLanguage:
    """A bundle's encoder and decoder. Its methods may be called from several threads at once."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        """Raises PerceptionError INVALID_BUNDLE."""
        manifest = bundle.manifest
        self._encoder = backend.session(bundle.graph("language_encoder"))
        self._decoder = backend.session(bundle.graph("language_decoder"))
        self._tokenizer = open_tokenizer(bundle.file("tokenizer.json"))
        self._begin, self._end, self._longest = manifest.tokens.begin, manifest.tokens.end, manifest.context
        self._predicting = manifest.predicting
        self._past = {spec.name: spec.shape for spec in manifest.graphs["language_decoder"].inputs if spec.name.startswith("past.")}

    def prefix(self, visual: np.ndarray, valid: None = None) -> np.ndarray:
        """Visual tokens (n, hidden) of the whole image: they are read together with each prompt's words."""
        return visual

    def converse(self, prefix: np.ndarray, prompts: Sequence[Prompt], answers: Sequence[Answer],
                 cancel: Cancel | None = None) -> Iterator[tuple[int, str | Group]]:
        """Answer prompts about one image together, greedily: yields (index, piece) for the text as it grows, and for a prompt with
        `told` words their text and a group with the states at them.

        `answers` (new ones) are filled meanwhile and have their `finish_reason` when the generator ends; `cancel` is looked at
        before every step. Raises PerceptionError INVALID_QUERY where a prompt is too long.
        """
        ids = [self._prompt(prompt) for prompt in prompts]
        texts = {i: self._told(prompt) for i, prompt in enumerate(prompts) if prompt.told}
        for i, told in texts.items():
            if cancel is not None and cancel.is_set():
                answers[i].finish_reason = "cancelled"
                continue
            states = self._read(self._remember([prefix], [ids[i]]), told)
            text = prompts[i].told
            yield i, answers[i].stream.add(text.encode())
            answers[i].finish_reason = "stop"
            yield i, Group(states, "one", text, (0, len(text.encode())), 1.0)
        rows = [i for i in range(len(prompts)) if i not in texts]
        if not rows:
            return
        visual = [prefix if prompts[i].region is None else prompts[i].region for i in rows]
        most = [prompts[i].most for i in rows]
        for row, piece in self._write(self._remember(visual, [ids[i] for i in rows]), [answers[i] for i in rows], most, cancel):
            yield rows[row], piece

    def _write(self, memory: Arrays, answers: Sequence[Answer], most: Sequence[int], cancel: Cancel | None) -> Iterator[tuple[int, str]]:
        """Write a text after each row of a memory; yields (row, piece)."""
        count = len(answers)
        ids: list[list[int]] = [[] for _ in answers]
        past = self._nothing(count)
        fed = np.full((count, 1), self._begin, np.int64)
        while True:
            live = [row for row in range(count) if not answers[row].finish_reason]
            if cancel is not None and cancel.is_set():
                for row in live:
                    answers[row].finish_reason = "cancelled"
                    del answers[row].tokens[len(answers[row].states) :]  # the last word has not been read: it has no place
                return
            if not live:
                return
            out = self._step(memory, fed, past)
            past = {name: out[name.replace("past.", "present.")] for name in past}
            for row in live:
                answer, said, state = answers[row], ids[row], out["hidden_states"][row, -1]
                if said and not self._predicting:
                    answer.states.append(state)
                token, probability = self.choose(out["logits"][row, -1], int(fed[row, 0]))
                answer.probabilities.append(probability)
                if token == self._end:
                    answer.finish_reason = "stop"
                elif len(said) == self._longest - 2:  # the first token and the last count
                    answer.finish_reason = "context"
                elif len(said) == most[row]:
                    answer.finish_reason = "length"
                else:
                    if self._predicting:
                        answer.states.append(state)
                    said.append(token)
                    yield row, self._add(answer, said)
                # A row that has ended is written on, to keep the batch whole; nobody reads that.
                fed[row] = self._end if answer.finish_reason else token

    def choose(self, logits: np.ndarray, last: int) -> tuple[int, float]:
        """The most likely token, given logits (vocabulary,) after the token `last`, which may not follow itself; and its probability."""
        logits = logits.astype(np.float64)
        logits[last] = min(logits[last], NEVER)
        best = int(np.argmax(logits))
        return best, float(1.0 / np.exp(logits - logits[best]).sum())

    def _add(self, answer: Answer, ids: Sequence[int]) -> str:
        """What the last of a text's ids adds to it."""
        begin = len(answer.stream)
        # Spaces at its end, and a character of which only some bytes are there, wait for what comes next.
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True).strip().rstrip("\ufffd")
        piece = answer.stream.add(text.removeprefix(answer.stream.text).encode())
        answer.tokens.append((begin, len(answer.stream)))
        return piece

    def _prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt's words."""
        ids = self._tokenizer.encode(prompt.question, add_special_tokens=False).ids
        if not prompt.about:
            return [*ids[: SHORT_PROMPT - 1], self._end]
        if len(ids) >= LONG_PROMPT:
            raise PerceptionError("INVALID_QUERY", f"text: expected a prompt of at most {LONG_PROMPT - 1} tokens, found {len(ids)}; "
                                                   "use fewer words.")
        return [*ids, self._end]

    def _told(self, prompt: Prompt) -> list[int]:
        """Ids of words that are known: first token, words, last token."""
        ids = self._tokenizer.encode(prompt.told, add_special_tokens=False).ids
        return [self._begin, *ids[: self._longest - 2], self._end]

    def _remember(self, visual: Sequence[np.ndarray], ids: Sequence[Sequence[int]]) -> Arrays:
        """What the encoder makes of rows of visual tokens (n, hidden) and prompts, which are padded to the longest."""
        context = np.zeros((len(ids), max(map(len, ids))), np.int64)
        for row, prompt in zip(context, ids, strict=True):
            row[: len(prompt)] = prompt
        return self._encoder.run({"visual": np.stack(visual).astype(np.float32, copy=False), "context": context})

    def _read(self, memory: Arrays, ids: Sequence[int]) -> np.ndarray:
        """States (T, hidden) at all ids of one text. The last one, whose next token nobody asks for, counts as padding."""
        real = np.arange(len(ids)) < len(ids) - 1
        return self._step(memory, np.array([ids], np.int64), self._nothing(1), real[None])["hidden_states"][0]

    def _nothing(self, rows: int) -> Arrays:
        """Keys and values of rows that have read no word."""
        return {name: np.zeros((rows, heads, 0, size), np.float32) for name, (_, heads, _, size) in self._past.items()}

    def _step(self, memory: Arrays, tokens: np.ndarray, past: Arrays, real: np.ndarray | None = None) -> Arrays:
        feeds = {**memory, **past, "tokens": tokens, "real": np.ones(tokens.shape, bool) if real is None else real}
        return self._decoder.run({name: feeds[name] for name in self._decoder.inputs})
