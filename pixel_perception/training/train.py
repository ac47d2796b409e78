"""The training loop, shared by all stages: a budget in minutes or steps, resumable, one or several processes."""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from pixel_perception.cli import Parser
from pixel_perception.simulation.catalog import Catalog
from pixel_perception.simulation.dataset import Record, load
from pixel_perception.simulation.phrases import Vocabulary

STAGES = {"pixels": "pixel_perception.training.pixel_stage", "language": "pixel_perception.training.language_stage"}


@dataclass(frozen=True)
class TrainConfig:
    """What a training run needs to be repeated."""

    stage: str
    data: str
    assets: str
    out: str
    weights: str | None = None
    minutes: float = 60.0
    steps: int | None = None
    """Optimiser steps; without it the minutes are the budget."""
    batch: int = 6
    rate: float = 1e-3
    slow_rate: float = 3e-4
    warmup_steps: int = 60
    clip: float = 2.0
    weight_decay: float = 0.02
    seed: int = 0
    save_minutes: float = 5.0


class Progress:
    """Step, images and minutes so far; kept beside the weights so that a run can go on."""

    def __init__(self, folder: Path):
        self.file = folder / "progress.json"
        values = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.step, self.images, self.minutes = values.get("step", 0), values.get("images", 0), values.get("minutes", 0.0)

    def save(self) -> None:
        self.file.write_text(json.dumps({"step": self.step, "images": self.images, "minutes": self.minutes}))


def train(config: TrainConfig, stage: nn.Module, collate, records: list[Record]) -> None:
    """Run (or continue) one stage. Writes weights.safetensors, optimiser.safetensors, progress.json and log.jsonl to `out`.

    `stage(batch)` gives weighted losses by name; `collate(records, rng, done)` a batch, `done` being the share of the
    budget spent so far.
    """
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[ddp])
    if accelerator.device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // accelerator.num_processes))
    torch.manual_seed(config.seed)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    groups = parameter_groups(stage, config)
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    progress = Progress(folder)
    if progress.step:
        restore(folder, stage, optimiser)
    elif accelerator.is_main_process:
        (folder / "config.json").write_text(json.dumps(asdict(config), indent=1))
    network, optimiser = accelerator.prepare(stage, optimiser)
    bar = tqdm(total=round(config.minutes, 1), initial=round(progress.minutes, 1), unit="min", disable=not accelerator.is_main_process,
               bar_format="{l_bar}{bar}| {n:.1f}/{total} min [{postfix}]")
    saved, started = progress.minutes, time.monotonic() - 60 * progress.minutes
    mean: dict[str, float] = {}
    try:
        while True:
            elapsed = torch.tensor((time.monotonic() - started) / 60, device=accelerator.device)
            if accelerator.num_processes > 1:  # all processes must stop at the same step
                torch.distributed.broadcast(elapsed, 0)
            progress.minutes = elapsed.item()
            done = progress.step / config.steps if config.steps else progress.minutes / config.minutes
            if done >= 1:
                break
            schedule(optimiser, progress.step, done, config)
            # Every process and step draws its own scenes, so that a resumed run goes on as if it had never stopped.
            rng = random.Random(f"{config.seed}/{accelerator.process_index}/{progress.step}")
            batch = collate(rng.sample(records, config.batch), rng, done)
            batch = {k: v.to(accelerator.device) for k, v in batch.items()}
            losses = network(batch)
            total = sum(losses.values())
            if not torch.isfinite(total):
                accelerator.print(f"step {progress.step}: the loss is {total.item()}; stopped, the last saved state is kept in {folder}")
                raise SystemExit(1)
            optimiser.zero_grad()
            accelerator.backward(total)
            accelerator.clip_grad_norm_(network.parameters(), config.clip)
            optimiser.step()
            progress.step += 1
            progress.images += config.batch * accelerator.num_processes
            for name, value in losses.items():
                mean[name] = 0.97 * mean.get(name, value.item()) + 0.03 * value.item()
            bar.n = round(progress.minutes, 1)
            bar.set_postfix_str(f"{progress.images} images  " + "  ".join(f"{k} {v:.3f}" for k, v in mean.items()))
            if accelerator.is_main_process and progress.step % 20 == 0:
                with (folder / "log.jsonl").open("a") as log:
                    row = {"step": progress.step, "images": progress.images, "minutes": round(progress.minutes, 2), **mean}
                    log.write(json.dumps(row) + "\n")
            if accelerator.is_main_process and progress.minutes - saved > config.save_minutes:
                saved = progress.minutes
                save(folder, stage, optimiser, progress)
    except KeyboardInterrupt:
        if accelerator.is_main_process:
            save(folder, stage, optimiser, progress)
        raise
    if accelerator.is_main_process:
        save(folder, stage, optimiser, progress)


def parameter_groups(stage: nn.Module, config: TrainConfig) -> list[dict]:
    """Parameters that a stage names in `slow` start from good weights and get the lower rate."""
    slow = tuple(getattr(stage, "slow", ()))
    named = [(n, p) for n, p in stage.named_parameters() if p.requires_grad]
    return [{"params": [p for n, p in named if n.startswith(slow)], "lr": config.slow_rate, "base": config.slow_rate},
            {"params": [p for n, p in named if not n.startswith(slow)], "lr": config.rate, "base": config.rate}]


def schedule(optimiser, step: int, done: float, config: TrainConfig) -> None:
    """Linear warm-up, then a cosine down to 2 % over the whole budget."""
    factor = min(1.0, (step + 1) / config.warmup_steps) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1))))
    for group in optimiser.param_groups:
        group["lr"] = group["base"] * factor


def trained_state(stage: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that training changes (frozen base weights are left out), by name."""
    frozen = {n for n, p in stage.named_parameters() if not p.requires_grad and n.startswith("model.language.")}
    return {n: t.detach().contiguous() for n, t in stage.state_dict().items() if n not in frozen}


def save(folder: Path, stage: nn.Module, optimiser, progress: Progress) -> None:
    """Write the state to temporary files, then move them into place, so that a killed run leaves a whole state."""
    moments = {}
    for g, group in enumerate(optimiser.param_groups):
        for i, parameter in enumerate(group["params"]):
            for key, value in optimiser.state.get(parameter, {}).items():
                moments[f"{g}.{i}.{key}"] = value.detach().contiguous()
    for name, tensors in (("weights", trained_state(stage)), ("optimiser", moments)):
        save_file(tensors, folder / f"{name}.partial")
        os.replace(folder / f"{name}.partial", folder / f"{name}.safetensors")
    progress.save()


def restore(folder: Path, stage: nn.Module, optimiser) -> None:
    """Load what `save` wrote."""
    missing, unexpected = stage.load_state_dict(load_file(folder / "weights.safetensors"), strict=False)
    missing = [n for n in missing if not n.startswith("model.language.")]
    if missing or unexpected:
        raise ValueError(f"{folder}: weights do not fit the model (missing {missing[:3]}, unexpected {unexpected[:3]})")
    moments = load_file(folder / "optimiser.safetensors")
    for g, group in enumerate(optimiser.param_groups):
        for i, parameter in enumerate(group["params"]):
            state = {k.split(".")[2]: v for k, v in moments.items() if k.startswith(f"{g}.{i}.")}
            if state:
                optimiser.state[parameter] = state


def main(argv: list[str] | None = None) -> int:
    """Entry point of `pixel-perception train`."""
    parser = Parser(prog="pixel-perception train", description="Train one stage of the compact model; "
                                     "run again with the same --out to continue.",
                                     epilog="Several processes: torchrun --nproc-per-node 2 -m pixel_perception.training.train ...")
    parser.add_argument("stage", choices=sorted(STAGES), help="pixels: vision from phrases, first; language: the whole model")
    parser.add_argument("--data", required=True, help="folder of rendered views (pixel-perception simulate)")
    parser.add_argument("--assets", required=True, help="asset folder, for its nouns and colours")
    parser.add_argument("--out", required=True, help="where weights, progress and log go")
    parser.add_argument("--weights", help="weights.safetensors of the stage before (language: required)")
    parser.add_argument("--minutes", type=float, default=60.0, help="time budget; the learning rate ends with it")
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of a time budget")
    parser.add_argument("--batch", type=int, default=6, help="scenes per step and process")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of new parts")
    parser.add_argument("--slow-rate", type=float, default=3e-4, help="learning rate of parts that start from good weights")
    parser.add_argument("--seed", type=int, default=0)
    config = TrainConfig(**vars(parser.parse_args(argv)))
    vocabulary = Vocabulary.of(Catalog.open(config.assets))
    stage, collate = importlib.import_module(STAGES[config.stage]).build(vocabulary, config.weights)
    train(config, stage, collate, load(config.data))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
