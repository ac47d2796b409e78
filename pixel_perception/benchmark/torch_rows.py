"""Rows that compare a network on this runtime with the same one in torch, eager or compiled: decoding, and a standing instruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from pixel_perception.benchmark.language_rows import agreement, decode_and_prefill
from pixel_perception.benchmark.rows import Row, take_turns
from pixel_perception.benchmark.subject import Network
from pixel_perception.cli import explain
from pixel_perception.errors import PerceptionError

Made = TypeVar("Made")


def decode(network: Network, compiled: bool) -> list[Row]:
    """Tokens per second after a prompt, both reading the same random tokens."""
    effort, rng = network.effort, np.random.default_rng(0)
    tokens = rng.integers(3, network.vocabulary, effort.prefill + effort.steps).tolist()
    first, rest = tokens[: effort.prefill], tokens[effort.prefill :]
    each: dict[str, list[float]] = {}
    logits: dict[str, np.ndarray] = {}

    def timed(name: str, run: Callable[[], tuple[float, float, np.ndarray]]) -> float:
        prefill, spent, logits[name] = run()
        each.setdefault(name, []).append(spent)
        return prefill

    decode_and_prefill(network, first, rest[:1])  # loads ours, so that torch is weighed against the memory that is left
    reader, why = _had(lambda: _reader(network, compiled, len(tokens)))
    work = {"ours": lambda: timed("ours", lambda: decode_and_prefill(network, first, rest))}
    if reader:
        work["torch"] = lambda: timed("torch", lambda: reader.decode_and_prefill(first, rest))
    prefill = take_turns(effort.rounds, **work)
    seconds = {name: float(np.median(values[1:])) for name, values in each.items()}
    details = {"prefill_ms": {name: 1000 * s for name, s in prefill.items()}, "decode_ms": {name: 1000 * s for name, s in seconds.items()},
               "prompt": effort.prefill, "steps": effort.steps}  # fmt: skip
    note = why
    if reader:
        details["cosine_of_logits"] = agreement(logits["ours"], logits["torch"])
        note = (f"{network.title}, {network.backend.name}; the reference is {reader.description}; cosine of the logits after the prompt "
                f"{details['cosine_of_logits']:.4f}.")  # fmt: skip
    return [_row("decode_vs_torch", compiled, seconds, 1, "tokens/s", network.least((1, 1)), note, details)]


def follow(network: Network, compiled: bool) -> list[Row]:
    """Frames per second from a picture of the camera to mask logits of a standing instruction with three targets."""
    frames, masks = network.frames, {}

    def over(name: str, see: Callable[[np.ndarray], np.ndarray]) -> Callable[[], None]:
        def run() -> None:
            masks[name] = [see(frame) for frame in frames]

        return run

    runner, why = _had(lambda: _runner(network, compiled))
    work = {"ours": over("ours", network.see)}
    if runner:
        work["torch"] = over("torch", lambda frame: runner(network.fed(frame)))
    seconds = take_turns(network.effort.rounds, **work)
    targets, note, details = len(masks["ours"][0]), why, {"frames": len(frames)}
    if runner:
        details["cosine_of_logits"] = agreement(*(np.ravel(masks[name]) for name in ("ours", "torch")))
        note = (f"{network.title}, {network.backend.name}, {targets} targets; the reference is {runner.description}; cosine of the masks' "
                f"logits {details['cosine_of_logits']:.4f}.")  # fmt: skip
    least = len(frames) * network.pixels(targets) / network.machine.vision
    return [_row("follow_vs_torch", compiled, seconds, len(frames), "frames/s", least, note, details)]


def _row(name: str, compiled: bool, seconds: dict[str, float], work: int, unit: str, least: float, note: str, details: dict) -> Row:
    ours, theirs = work / seconds["ours"], work / seconds["torch"] if "torch" in seconds else None
    return Row(f"{name}_compile" if compiled else name, ours, theirs, unit, ours / theirs if theirs else None,
               least / seconds["ours"], note, details)  # fmt: skip


def _had(make: Callable[[], Made]) -> tuple[Made | None, str]:
    """What is made, or why it cannot be: torch, memory or a compiler is missing."""
    try:
        return make(), ""
    except (PerceptionError, ModuleNotFoundError) as error:
        sentence = explain(error)
        if sentence is None:
            raise
        return None, sentence


def _reader(network: Network, compiled: bool, most: int):
    from pixel_perception.benchmark.torch_side import Reader

    reader = Reader(network.torch_language, compiled, most)
    return _compiles(reader, lambda: reader.decode_and_prefill([3, 4, 5], [6, 7, 8])) if compiled else reader


def _runner(network: Network, compiled: bool):
    from pixel_perception.benchmark.torch_side import Runner

    runner = Runner(network.torch_pixels, network.device, compiled)
    return _compiles(runner, lambda: runner(network.fed(network.frames[0]))) if compiled else runner


def _compiles(made: Made, run: Callable[[], object]) -> Made:
    """`made`, once it has run. Raises PerceptionError INTERNAL where the compiler fails."""
    try:
        run()
    except Exception as error:  # tracing, code generation and the compiler each fail in ways of their own
        raise PerceptionError("INTERNAL", f"torch.compile failed: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    return made
