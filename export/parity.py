"""Does a bundle still compute what was trained? The torch model and the bundle answer the same questions on real images.

The bundle answers greedily; torch then reads the very same answer. Compared are the hidden states at the target tokens
(what language hands to pixels), each token choice, the masks and their boxes. Both sides use the bundle's proposals, so
that one box more or less does not shift every later token; proposals are compared on their own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pixel_perception.bundle import Bundle
from pixel_perception.cli import Parser
from pixel_perception.errors import PerceptionError
from pixel_perception.export.exported import Exported, Sample, Trace, read_samples
from pixel_perception.runtime.agreement import cosine
from pixel_perception.runtime.session import Backend

GATES = {"hidden_cosine": 0.99, "mask_iou": 0.98, "token_agreement": 0.95}
"""Least value of each figure."""
PROMPTS = 64
"""Least number of different questions about real images that a bundle is judged by."""
ASKED = 192
"""Questions asked unless told otherwise: a mean over 64 still moves by a hundredth with the choice of questions."""


def reference(
    model, sample: Sample, trace: Trace
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray]:
    """Torch reads the answer of `trace` -> states (len(ids), hidden), logits at its choices, masks and presence of
    the same targets and objects, and its own proposals (12, 4)."""
    import torch

    with torch.inference_mode():
        features = model.image_encoder(torch.from_numpy(sample.image)[None])
        proposals = model.proposals(features.s8)[0][0]
        visual = model.prompt_features(features, torch.from_numpy(trace.boxes)[None])[0][0].flatten(0, 1)
        ids = torch.tensor(trace.ids)
        rows = model.language.embed(ids.clamp(min=0))
        if trace.region is not None:
            rows[ids < 0] = model.prompt_features(features, torch.from_numpy(trace.region)[None, None])[0][
                0, 0
            ]
        start = model.language.embed(torch.tensor([model.config.language.start_id]))
        x = torch.cat([start, visual, rows])[None]
        allowed = torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool).tril()
        states = model.language(x, torch.arange(x.shape[1])[None], allowed)[0, len(start) + len(visual) :]
        logits = model.language.logits(states[[at for at, _, _ in trace.choices]])
        queries = []
        if trace.groups:
            at = torch.tensor(trace.groups)[:, None] + torch.arange(model.config.codebook.size)
            queries.append(model.token_fusion(states[at]))
        if len(trace.found):
            queries.append(model.prompt_features(features, torch.from_numpy(trace.found)[None])[1][0])
        decoded = model.pixel_decoder(features, torch.cat(queries)[None]) if queries else None
        masks, presence = (decoded.mask[0].numpy(), decoded.presence[0].numpy()) if decoded else (None, None)
        return states.numpy(), logits.numpy(), masks, presence, proposals.numpy()


def compare(model, bundle: Bundle, samples: Sequence, backends: Sequence[Backend] | None = None, measure=None) -> dict:
    """Figures of a bundle against the torch model (in fp32, in eval mode) that it came from, as in `parity.json`.

    {"backends": {name: figures of `measure`}, "prompts": different questions about images, "images": different images,
    "targets": answered by the first backend, "precision": {graph: precision}}. `backends` defaults to all that this
    machine has, `measure` to that of the compact model; another family has its own, and samples of its own.
    """
    measure = measure or measure_compact
    backends = available() if backends is None else backends
    figures = {backend.name: measure(model, bundle, backend, samples) for backend in backends}
    return {
        "backends": figures,
        "prompts": len({(s.image.tobytes(), s.question) for s in samples}),
        "images": len({s.image.tobytes() for s in samples}),
        "targets": next(iter(figures.values()))["targets"],
        "precision": {name: graph.precision for name, graph in bundle.manifest.graphs.items()},
    }


def available() -> list[Backend]:
    """The runtime's backends that this machine can run; TensorRT builds its engines before it answers."""
    from pixel_perception.runtime.cuda import cuda
    from pixel_perception.runtime.onnxruntime import OnnxRuntime
    from pixel_perception.runtime.onnxruntime_cuda import OnnxRuntimeCuda
    from pixel_perception.runtime.tensorrt import TensorRt

    found = [OnnxRuntime()]
    try:
        cuda()
    except PerceptionError:
        return found
    for backend in (OnnxRuntimeCuda, TensorRt):
        with suppress(PerceptionError):  # not installed, or built without CUDA
            found.append(backend())
    return found


def measure_compact(model, bundle: Bundle, backend: Backend, samples: Sequence[Sample]) -> dict:
    """Figures of one backend.

    {"hidden_cosine" and "hidden_cosine_min" at target tokens, "token_agreement" and "kl" (nats) per choice, "mask_iou"
    (and "mask_iou_min") of targets that either side calls present, "object_mask_iou" of proposals, "box_error_px" of
    target masks and "proposal_error_px" in network pixels, "presence_error" as probability, "targets"}. A figure
    without a case is None.
    """
    exported = Exported(bundle, backend)
    size, image = model.config.codebook.size, bundle.manifest.image
    edges = [image.width, image.height, image.width, image.height]
    lists: dict[str, list[float]] = {
        key: [] for key in ("cosine", "agree", "kl", "iou", "object", "box", "proposal", "presence")
    }
    for sample in tqdm(samples, desc=f"parity {backend.name}", unit="prompt", disable=None):
        trace = exported.answer(sample)
        states, logits, masks, presence, proposals = reference(model, sample, trace)
        for group in trace.groups:
            lists["cosine"] += list(cosine(trace.states[group : group + size], states[group : group + size]))
        for (_, choice, ours), wanted in zip(trace.choices, logits, strict=True):
            lists["agree"].append(float(wanted.argmax() == choice))
            lists["kl"].append(divergence(wanted, ours))
        for box in trace.found:
            lists["proposal"].append(float(np.abs((proposals - box) * edges).max(1).min()))
        if masks is None:
            continue
        for i, (theirs, ours) in enumerate(zip(masks > 0, trace.masks > 0, strict=True)):
            target = i < len(trace.groups)
            shown = not target or max(_sigmoid(presence[i]), _sigmoid(trace.presence[i])) >= exported.manifest.thresholds.presence
            if shown and (theirs.any() or ours.any()):  # nobody is shown the mask of an absent target
                lists["iou" if target else "object"].append(
                    float((theirs & ours).sum() / (theirs | ours).sum())
                )
            if target and theirs.any() and ours.any():
                lists["box"].append(float(np.abs(_box(theirs) - _box(ours)).max() * image.width / theirs.shape[1]))
            if target:
                lists["presence"].append(abs(_sigmoid(presence[i]) - _sigmoid(trace.presence[i])))
    return summed(lists, len(lists["presence"]))


def summed(lists: Mapping[str, Sequence[float]], targets: int) -> dict:
    """Figures of `measure_compact` of what was found in single cases; None where there is no case."""

    def mean(key: str) -> float | None:
        return round(float(np.mean(lists[key])), 5) if lists.get(key) else None

    def least(key: str) -> float | None:
        return round(float(min(lists[key])), 5) if lists.get(key) else None

    return {
        "hidden_cosine": mean("cosine"), "hidden_cosine_min": least("cosine"), "token_agreement": mean("agree"), "kl": mean("kl"),
        "mask_iou": mean("iou"), "mask_iou_min": least("iou"), "object_mask_iou": mean("object"), "box_error_px": mean("box"),
        "proposal_error_px": mean("proposal"), "presence_error": mean("presence"), "targets": targets,
    }  # fmt: skip


def judge(figures: dict) -> str | None:
    """One sentence about the first gate that fails, or None."""
    if not figures["backends"]:
        return "parity: no backend was compared, expected at least one."
    for backend, values in figures["backends"].items():
        for name, least in GATES.items():
            if values[name] is None:
                return f"{backend}: {name} could not be measured, because no answer named a target; expected at least {least}."
            if values[name] < least:
                return f"{backend}: {name} is {values[name]}, expected at least {least}."
    return None


def scarce(figures: dict) -> str | None:
    """One sentence where fewer prompts were compared than prove anything, or None."""
    if figures["prompts"] >= PROMPTS:
        return None
    return f"prompts: {figures['prompts']} different questions about {figures['images']} images were compared, expected at least {PROMPTS}."


def accepted(figures: dict, out: Path, reason: str) -> str:
    """What the manifest says of gates that failed; empty where all passed.

    Raises PerceptionError INVALID_BUNDLE, by the folder `out` that is not written then, where one failed and no `reason` accepts it.
    """
    drift = " ".join(filter(None, (judge(figures), scarce(figures))))
    if drift and not reason:
        raise PerceptionError("INVALID_BUNDLE", f"{out}: not written: {drift}")
    return f"{drift} Accepted: {reason}" if drift else ""


def divergence(wanted: np.ndarray, ours: np.ndarray) -> float:
    """Kullback-Leibler divergence in nats of two rows of logits, from `wanted` to `ours`."""
    p, q = (x.astype(np.float64) - x.max() for x in (wanted, ours))
    p, q = p - np.log(np.exp(p).sum()), q - np.log(np.exp(q).sum())
    return max(0.0, float((np.exp(p) * (p - q)).sum()))


def _box(mask: np.ndarray) -> np.ndarray:
    """x0, y0, x1, y1 of a mask in its cells."""
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def _of_family(family: str) -> tuple[Callable, Callable, Callable]:
    """How a family's torch model is loaded, what is asked, and how answers are measured."""
    if family != "compact":
        from pixel_perception.export import pixelllm_parity, pixellm_parity
        from pixel_perception.models.folder import load

        return load, pixellm_parity.read_samples, (pixellm_parity if family == "pixellm" else pixelllm_parity).measure
    from pixel_perception.export.command import load_run

    return load_run, read_samples, measure_compact


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `pixel-perception parity`."""
    parser = Parser(
        prog="pixel-perception parity",
        description="Compare a bundle with the torch model that it came from; exit code 1 when a gate fails.",
    )
    parser.add_argument(
        "bundle", nargs="?", help="bundle; without it $PIXEL_PERCEPTION_BUNDLE, else the one in the cache"
    )
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("weights/compact"),
        help="parts or training run to compare with; of a PixelLM its model folder",
    )
    parser.add_argument(
        "--images", type=Path, default=Path("demo/recording"), help="folder of pictures"
    )
    parser.add_argument(
        "--prompts", type=int, default=ASKED, help="images and questions compared"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    arguments = parser.parse_args(argv)
    bundle = Bundle.open(arguments.bundle)
    load, read, measure = _of_family(bundle.manifest.family)
    samples = read(arguments.images, arguments.prompts)
    figures = compare(load(arguments.run), bundle, samples, measure=measure)
    drift, few = judge(figures), scarce(figures)
    if few:
        print(few, file=sys.stderr)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for backend, values in figures["backends"].items():
            print(f"{backend}: " + ", ".join(f"{name} {value}" for name, value in values.items()))
        print(drift or f"all gates pass on {figures['prompts']} prompts with {figures['targets']} targets")
    return 1 if drift else 0
