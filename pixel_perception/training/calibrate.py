"""Calibration of presence: after it, a score of 0.5 is the point where present and absent targets are told apart best.

Platt scaling on views that training never saw, with both classes weighing the same, folded into the last layer of the
presence head; nothing is left to apply at run time.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from pixel_perception.cli import Parser
from pixel_perception.simulation.catalog import Catalog
from pixel_perception.simulation.dataset import load
from pixel_perception.simulation.phrases import Vocabulary
from pixel_perception.training import language_stage
from pixel_perception.writing import replacing_file, write_text


def platt(logits: Tensor, there: Tensor) -> tuple[float, float]:
    """Scale and offset that make sigmoid(scale * logit + offset) the chance of presence, at even odds."""
    x, y, weight = logits.double(), there.double(), even_odds(there)
    values = torch.tensor([1.0, 0.0], dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS([values], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(values[0] * x + values[1], y, weight)
        loss.backward()
        return loss

    optimiser.step(closure)
    return values[0].item(), values[1].item()


def even_odds(there: Tensor) -> Tensor:
    """Weights (n,) with mean 1 under which as much is present as absent."""
    share = there.double().mean().clamp(1e-6, 1 - 1e-6)
    return torch.where(there, 0.5 / share, 0.5 / (1 - share))


def expected_calibration_error(scores: Tensor, there: Tensor, bins: int = 10) -> float:
    """Mean gap between score and frequency over equal bins of the score, at even odds."""
    weight, index = even_odds(there), (scores * bins).long().clamp(max=bins - 1)
    gaps = [(weight * (scores - there.double()))[index == b].sum().abs() for b in range(bins)]
    return float(sum(gaps) / len(scores))


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m pixel_perception.training.calibrate`."""
    parser = Parser(description="Calibrate the presence score of a trained language stage.")
    parser.add_argument("run", type=Path, help="folder of the run; its weights.safetensors is rewritten, calibration.json added")
    parser.add_argument("--data", required=True, help="folder of rendered views of the val split")
    parser.add_argument("--assets", required=True, help="asset folder, for its nouns and colours")
    parser.add_argument("--views", type=int, default=120)
    arguments = parser.parse_args(argv)
    file = arguments.run / "weights.safetensors"
    stage, collate = language_stage.build(Vocabulary.of(Catalog.open(arguments.assets)), str(file))
    stage.eval()
    records, found = load(arguments.data)[: arguments.views], []
    with torch.no_grad():
        for i in tqdm(range(0, len(records), 4), unit="batch"):
            found.append(stage.presence(collate(records[i : i + 4], random.Random(i), 1.0)))
    logits, there = torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])
    scale, offset = platt(logits, there)
    scores = (scale * logits + offset).sigmoid()
    report = {
        "targets": len(there), "present": int(there.sum()), "scale": scale, "offset": offset,
        "t_acc": (scores[there] >= 0.5).float().mean().item(), "n_acc": (scores[~there] < 0.5).float().mean().item(),
        "ece_before": expected_calibration_error(logits.sigmoid(), there), "ece": expected_calibration_error(scores, there),
    }  # fmt: skip
    weights = load_file(file)
    last = "model.pixel_decoder.presence.3."
    weights[last + "weight"] *= scale
    weights[last + "bias"] = weights[last + "bias"] * scale + offset
    with replacing_file(file) as partial:
        save_file(weights, partial)
    write_text(arguments.run / "calibration.json", json.dumps(report, indent=1))
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
