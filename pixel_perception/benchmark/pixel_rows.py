"""Rows from image to masks: an instruction against the reference way, and a standing instruction at camera rate."""

from __future__ import annotations

import numpy as np

from pixel_perception.benchmark.rows import Row, take_turns
from pixel_perception.benchmark.subject import Subject
from pixel_perception.masks import iou
from pixel_perception.runtime.instances import find
from pixel_perception.runtime.language import Prompt
from pixel_perception.runtime.text import Stream
from pixel_perception.types import Instance, Target


def ask(subject: Subject) -> list[Row]:
    """A fresh frame and an instruction with three targets, to all masks, against `the_reference_way`."""
    frame, found = subject.frames[0], {}

    def ours() -> None:
        found["ours"] = subject.perception.ask(frame, subject.query).instances

    def reference() -> None:
        found["reference"] = the_reference_way(subject, frame)

    seconds = take_turns(subject.effort.rounds, ours=ours, reference=reference)
    targets = len(found["ours"])
    overlap = [iou(a.mask, b.mask) for a, b in zip(found["ours"], found["reference"], strict=False)]
    prefix = subject.perception.prefix(subject.encoded).lengths[0]
    steps = subject.steps([Prompt(subject.query.text, None, 96)])
    least = subject.pixels(targets, whole=True) / subject.machine.vision + subject.least((prefix, 1), *steps)
    return [Row("ask_vs_reference", 1000 * seconds["ours"], 1000 * seconds["reference"], "ms", seconds["reference"] / seconds["ours"],
                least / seconds["ours"], f"{subject.query.text!r}, {targets} masks; the reference keeps nothing between tokens, encodes "
                f"the image for each and reads codebook tokens one by one; mean IoU of its masks with ours {np.mean(overlap or [0]):.3f}.",
                {"steps": steps, "prefix": prefix, "iou": overlap})]  # fmt: skip


def the_reference_way(subject: Subject, frame: np.ndarray) -> list[Instance]:
    """Masks of the instruction as published code generates them: for every token the image is encoded and everything before
    is read again, codebook tokens come one by one, and masks are decoded when the text has ended."""
    language, vision, tokens = subject.language, subject.vision, subject.bundle.manifest.tokens
    embed, run, thresholds = language.vocabulary.embed, list(tokens.segments), subject.bundle.manifest.thresholds
    asked = [tokens.begin, *language.vocabulary.question(subject.query.text), tokens.newline]
    answer: list[int] = []
    while True:
        encoded = vision.encode(frame)
        objects = vision.objects(encoded)
        visual = np.concatenate((objects.whole, objects.tokens.reshape(-1, objects.whole.shape[-1])))
        step = language.decoder.read([np.concatenate((embed([tokens.begin]), visual, embed(asked), embed(answer)))], None)
        states = step.states[0][len(visual) + 1 + len(asked) :]
        if answer and answer[-1] in run[:-1]:
            token = run[run.index(answer[-1]) + 1]
        elif answer and answer[-1] == tokens.all:
            token = run[0]
        else:
            token = language.choose(step.logits[0], step.states[0][-1])
        if token == tokens.end or len(answer) >= subject.query.max_new_tokens:
            break
        answer.append(token)
    starts = [i for i, token in enumerate(answer) if token == run[0]]
    if not starts:
        return []
    logits, presence = vision.decode(encoded, vision.fuse(np.stack([states[i : i + len(run)] for i in starts])))
    stream, found, place = Stream(), [], 0
    for i, start in enumerate(starts):
        quantity = "all" if start and answer[start - 1] == tokens.all else "one"
        for token in answer[place:start]:
            stream.add(language.vocabulary.spelling(token))
        label, span = stream.label()
        place = start + len(run)
        found += find(vision, encoded, Target(label, quantity, 0.0, False, span), i, logits[i], float(presence[i]),
                      thresholds.presence, thresholds.mask, None)[1]  # fmt: skip
    return found


def follow(subject: Subject) -> list[Row]:
    """Frames of the recording to masks with a standing instruction, against asking each frame again."""
    standing, frames = subject.standing, subject.frames
    targets = len(standing.targets)

    def following() -> None:
        now = standing
        for frame in frames:
            now = subject.perception.follow(frame, now).standing

    def asking() -> None:
        for frame in frames:
            subject.perception.ask(frame, subject.query)

    seconds = take_turns(subject.effort.rounds, follow=following, ask=asking)
    ours, reference = (len(frames) / seconds[name] for name in ("follow", "ask"))
    height, width = frames[0].shape[:2]
    return [Row("follow_fps", ours, reference, "frames/s", ours / reference, subject.pixels(targets) / subject.machine.vision * ours,
                f"{targets} targets, {len(frames)} frames of {width}x{height}; the reference asks every frame again.",
                {"operators_ms": {name: subject.profile(name, fed) for name, fed in subject.pixel_feeds(targets).items()}})]  # fmt: skip
