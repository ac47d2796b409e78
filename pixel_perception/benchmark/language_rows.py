"""Rows of the language model: against llama.cpp, one step for a codebook run, captions as a batch."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from pixel_perception.benchmark import llama
from pixel_perception.benchmark.rows import Row, take_turns
from pixel_perception.benchmark.subject import Network, Subject
from pixel_perception.errors import PerceptionError
from pixel_perception.runtime.agreement import cosine
from pixel_perception.runtime.language import Prompt
from pixel_perception.types import Query


def against_llamacpp(subject: Subject) -> list[Row]:
    """Prefill and decoding of the same tokens: this runtime, llama.cpp with the base model's published file (the reference of the
    rows), and llama.cpp with the very same 8-bit numbers as this runtime."""
    effort = subject.effort
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, subject.vocabulary, effort.prefill + effort.steps).tolist()
    first, rest = tokens[: effort.prefill], tokens[effort.prefill :]
    decode: dict[str, list[float]] = {}

    def timed(name: str, run) -> float:
        prefill, each = run()
        decode.setdefault(name, []).append(each)
        return prefill

    work = {"ours": lambda: timed("ours", lambda: decode_and_prefill(subject, first, rest)[:2])}
    missing, models = "", {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            models = _models(subject, Path(folder))
        except PerceptionError as error:
            missing = error.message
        for name, model in models.items():
            work[name] = lambda name=name, model=model: timed(name, lambda: llama.decode_and_prefill(model, first, rest))
        alike = _agreement(subject, models["q8_0"], first) if models else None
        prefill = take_turns(effort.rounds, **work)
        for model in models.values():
            model.close()
    each = {name: float(np.median(values[1:])) for name, values in decode.items()}
    details = {"prefill_ms": {n: 1000 * s for n, s in prefill.items()}, "decode_ms": {n: 1000 * s for n, s in each.items()},
               "threads": subject.threads}  # fmt: skip
    if models:
        details |= {"llama.cpp": llama.description(), "cosine_of_logits_q8_0": alike}
    rows = []
    for name, seconds, scale in (("decode_vs_llamacpp", each, 1), ("prefill_vs_llamacpp", prefill, effort.prefill)):
        rate = {n: scale / s for n, s in seconds.items()}
        same, note = rate.get("q8_0"), missing
        if same:
            note = (f"The reference is llama.cpp with the base model's published file (Q4_1). With the same 8-bit numbers as ours (Q8_0) "
                    f"it reaches {same:.0f} tokens/s; ours is {rate['ours'] / same:.2f}x of that.")  # fmt: skip
        reference = rate.get("q4_1")
        ratio = rate["ours"] / reference if reference else None
        profile = {"operators_ms": subject.operators(scale, effort.prefill if scale == 1 else 0)}
        rows.append(Row(name, rate["ours"], reference, "tokens/s", ratio, subject.least((scale, 1)) / seconds["ours"], note,
                        details | profile))  # fmt: skip
    return rows


def _models(subject: Subject, folder: Path) -> dict[str, llama.LlamaCpp]:
    """llama.cpp with the bundle's own blocks and with the base's file. Raises PerceptionError where there is no comparison."""
    if not subject.on_cpu:
        raise PerceptionError("INVALID_QUERY", f"llama.cpp is compared with on the processor; this is {subject.backend.name}.")
    if not llama.installed():
        raise PerceptionError("INVALID_QUERY", llama.INSTALL)
    if not subject.bundle.manifest.provenance.get("base"):
        raise PerceptionError("INVALID_QUERY", "the bundle names no published base model (provenance.base), so llama.cpp cannot run it.")
    from pixel_perception.export.base_weights import language_file

    base = language_file()
    llama.write_gguf(subject.bundle, base, folder / "same.gguf")
    most = subject.effort.prefill + subject.effort.steps
    return {"q8_0": llama.LlamaCpp(folder / "same.gguf", subject.threads, most), "q4_1": llama.LlamaCpp(base, subject.threads, most)}


def _agreement(subject: Subject, model: llama.LlamaCpp, tokens: list[int]) -> float:
    """Cosine of both runtimes' logits after the same tokens: that the weights are the same is seen, not said."""
    model.forget()
    theirs = model.read(tokens)
    return agreement(subject.language.decoder.read([subject.language.vocabulary.embed(tokens)], None).logits[0], theirs)


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Cosine of two rows of logits, without what is the same in all of them."""
    return float(cosine(ours - ours.mean(), theirs - theirs.mean()))


def decode_and_prefill(network: Network, first: list[int], rest: list[int]) -> tuple[float, float, np.ndarray]:
    """As `llama.decode_and_prefill`, with looking up the embeddings; and the logits (vocabulary,) after the prompt."""
    decoder, embed = network.decoder, network.embed
    begun = time.perf_counter()
    step = decoder.read([embed(first)], None)
    prefill, each = time.perf_counter() - begun, []
    logits = step.logits[0].copy()
    for token in rest:
        begun = time.perf_counter()
        step = decoder.read([embed([token])], step.past)
        each.append(time.perf_counter() - begun)
    return prefill, float(np.median(each)), logits


def codebook_run(subject: Subject) -> list[Row]:
    """The hidden states of one codebook group: its tokens read in one step against one by one."""
    decoder, embed = subject.language.decoder, subject.language.vocabulary.embed
    tokens = subject.bundle.manifest.tokens
    prefix = subject.perception.prefix(subject.encoded)
    asked = embed([tokens.begin, *subject.language.vocabulary.question(subject.query.text), tokens.newline])
    states = {}

    def timed(name: str, pieces: list[list[int]]) -> float:
        past = decoder.read([asked], prefix).past
        begun, found = time.perf_counter(), []
        for piece in pieces:
            step = decoder.read([embed(piece)], past)
            past = step.past
            found.append(step.states[0])
        seconds = time.perf_counter() - begun
        states[name] = np.concatenate(found)
        return seconds

    run = list(tokens.segments)
    seconds = take_turns(3 * subject.effort.rounds, run=lambda: timed("run", [run]), each=lambda: timed("each", [[t] for t in run]))
    alike = float(cosine(states["run"], states["each"]).min())
    return [Row("codebook_run_vs_token", 1000 * seconds["run"], 1000 * seconds["each"], "ms", seconds["each"] / seconds["run"],
                subject.least((len(run), 1)) / seconds["run"], f"One group of {len(run)} codebook tokens; cosine of the hidden states "
                f"{alike:.4f}.", {"cosine": alike})]  # fmt: skip


def regions_batched(subject: Subject) -> list[Row]:
    """Captions of boxes of one frame that is already encoded: all in one query against one query each."""
    encoded, boxes = subject.encoded, subject.grid(subject.effort.regions)
    answers = {}

    def together() -> None:
        answers["batch"] = [r.caption for r in subject.perception.ask(encoded, Query(boxes=boxes)).regions]

    def alone() -> None:
        answers["alone"] = [subject.perception.ask(encoded, Query(boxes=(box,))).text for box in boxes]

    seconds = take_turns(subject.effort.rounds, batch=together, alone=alone)
    tokens, _ = subject.vision.regions(encoded, encoded.letterbox.to_network(np.array(boxes)))
    steps = subject.steps([Prompt(subject.bundle.manifest.templates.caption_region, region, 96) for region in tokens])
    same = sum(a == b for a, b in zip(answers["batch"], answers["alone"], strict=True))
    return [Row("regions_batched", 1000 * seconds["batch"], 1000 * seconds["alone"], "ms", seconds["alone"] / seconds["batch"],
                subject.least(*steps) / seconds["batch"],
                f"{len(boxes)} boxes; {same} captions are the same word for word.",
                {"captions": answers["batch"], "steps": steps})]  # fmt: skip
