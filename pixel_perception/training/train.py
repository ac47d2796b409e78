"""`pixel-perception train`: the one loop that teaches every network, in any number of processes, stopped and resumed at will."""

from __future__ import annotations

import math
import signal
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from torch import Tensor

from pixel_perception.cli import Parser
from pixel_perception.training import schedule
from pixel_perception.training.config import ConfigError, TrainConfig, flat, read
from pixel_perception.training.course import Course, find_config, open_course
from pixel_perception.training.monitor import Monitor
from pixel_perception.training.processes import Processes, to_device
from pixel_perception.training.state import Progress, RunState, newest
from pixel_perception.writing import write_text


class TrainingStopped(ValueError):
    """A run that cannot go on: one sentence that says why, what is saved and what to change."""


class Run:
    """One run: a course, taught in the folder of the run until its budget is spent. Goes on where a run in that folder stopped."""

    def __init__(self, config: TrainConfig, course: Course, folder: Path, processes: Processes):
        self.config, self.course, self.folder, self.processes = config, course, folder, processes
        self.accumulated = micro_batches(config, processes.count)
        lesson = course.lesson
        self.network = processes.place(lesson, lesson.blocks(), lesson.methods())
        groups = schedule.groups(lesson, config.optimiser)
        self.learning = [parameter for group in groups for parameter in group["params"]]
        self.optimiser = torch.optim.AdamW(groups, betas=config.optimiser.betas)
        self.state = RunState(folder, lesson, self.optimiser, processes, lesson.borrowed)
        self.progress, self.saved = Progress(), -1
        if restored := self.state.restore():
            self.progress, data = restored
            course.stream.resume(data)
            self.saved = self.progress.step
        self.data = course.stream.state()
        self.monitor = Monitor(config, folder, self.progress, processes.main)

    def go(self) -> None:
        """Train to the end of the budget and write what comes out.

        Raises TrainingStopped when memory is short or the loss is not finite, StateError when a state cannot be written,
        TaskError for a damaged record, KeyboardInterrupt when told to stop (SIGINT, SIGTERM), with the state saved.
        """
        progress, watch = self.progress, self.config.watch
        if spent(self.config, progress) >= 1 and (self.folder / self.course.lesson.product).exists():
            self.monitor.say(f"{self.folder}: finished already, after step {progress.step}")
            self.monitor.close()
            return
        if self.processes.count > 1:
            how = "which share the weights" if self.processes.sharded else "with a copy of the weights each"
            share = f"{self.accumulated} x {self.config.batch.micro} samples"
            self.monitor.say(f"{self.processes.count} processes {how}, {share} a step in each")
        if progress.step:
            self.monitor.say(f"{self.folder}: going on after step {progress.step}")
        started, last_save = time.monotonic() - 60 * progress.minutes, progress.minutes
        try:
            with told_to_stop() as told:
                while True:
                    progress.minutes, stop = self.processes.agree((time.monotonic() - started) / 60, told())
                    done = spent(self.config, progress)
                    if stop or done >= 1:
                        break
                    losses, norm = self.step(done)
                    self.monitor.step(progress, losses)
                    if due(watch.log, progress.step):
                        self.monitor.log(progress, self.processes.mean(losses), self.optimiser.param_groups[-1]["lr"], norm)
                    if due(watch.pictures, progress.step):
                        self.show()
                    if due(watch.save_steps, progress.step) or progress.minutes - last_save > watch.save_minutes:
                        self.save()
                        last_save = progress.minutes
            self.save()
            if stop:
                self.monitor.say(f"stopped after step {progress.step}; run the same command again to go on")
                raise KeyboardInterrupt
            self.show()
            weights = self.state.weights()
            if self.processes.main:
                self.course.lesson.finish(weights, self.folder / self.course.lesson.product)
            self.processes.wait()
        finally:
            self.monitor.close()

    def step(self, done: float) -> tuple[dict[str, float], float]:
        """One step of the optimiser, `done` of the budget being spent: losses by name, and the gradient's norm before clipping."""
        config, progress = self.config, self.progress
        rise = schedule.factor(config.schedule, progress.step, done)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * rise
        # Random numbers are a function of seed, step and process, so that a resumed run draws what an unbroken one would.
        torch.manual_seed(zlib.crc32(f"{config.seed}/{progress.step}/{self.processes.rank}".encode()))
        self.course.lesson.train()
        losses: dict[str, float] = {}
        try:
            for k in range(self.accumulated):
                batch = to_device(self.course.stream.next(done), self.processes.device)
                with self.processes.accumulating(self.network, last=k == self.accumulated - 1):
                    for name, value in self._learn(batch).items():
                        losses[name] = losses.get(name, 0.0) + value.item() / self.accumulated
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise self._too_large() from None
        norm = self.processes.clip(self.learning, config.optimiser.clip)
        if not math.isfinite(norm):
            parts = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            raise TrainingStopped(f"step {progress.step}: the loss or its gradient is not finite ({parts}); {self._kept()}; "
                                  "lower optimiser.rate or optimiser.clip, or raise schedule.warmup")  # fmt: skip
        self.optimiser.step()
        self.optimiser.zero_grad()
        progress.step += 1
        progress.samples += config.batch.total
        self.data = self.course.stream.state()
        return losses, norm

    def save(self) -> None:
        """Write the state, unless the last one is of this step. Raises StateError."""
        if self.saved != self.progress.step:
            self.state.save(self.progress, self.data)
            self.saved = self.progress.step

    def show(self) -> None:
        """Draw what the network predicts. In a spread network all processes must help, for the same samples."""
        if not self.config.watch.samples or not (self.processes.main or self.processes.sharded):
            return
        lesson = self.course.lesson.eval()
        torch.manual_seed(self.config.seed)
        batch = to_device(self.course.view(self.progress.step), self.processes.device)
        with self.processes.autocast():
            pictures = lesson(batch, look=True)
        self.monitor.show(self.progress, pictures)

    def _learn(self, batch) -> dict[str, Tensor]:
        with self.processes.autocast():
            losses = self.network(batch)
        (losses["total"] / self.accumulated).backward()
        return losses

    def _too_large(self) -> TrainingStopped:
        """Save what there is (the weights are still those of the last whole step), and say what to change."""
        self.optimiser.zero_grad()
        if self.processes.count == 1:  # the others wait inside of their own step and cannot help
            self.save()
        config = self.config
        micro = config.batch.micro
        ways = [f"lower batch.micro ({micro} now; the step stays the same, more is accumulated)"] if micro > 1 else []
        ways += [] if config.memory.checkpointing else ["set memory.checkpointing=true"]
        ways += [] if config.memory.precision == "bf16" else ["set memory.precision=bf16"]
        ways += [] if self.processes.sharded else ["set memory.shard=true and use more processes"]
        return TrainingStopped(f"step {self.progress.step}: out of memory; {self._kept()}; {', or '.join(ways) or 'use more processes'}")

    def _kept(self) -> str:
        state = newest(self.folder)
        return f"the last state is kept in {state}" if state else "no state was saved yet"


def micro_batches(config: TrainConfig, processes: int) -> int:
    """How many micro-batches each process accumulates for a step. Raises ConfigError where that is no whole number."""
    together = config.batch.micro * processes
    if config.batch.total % together:
        raise ConfigError(f"batch.total: expected a multiple of batch.micro x processes ({config.batch.micro} x {processes}), "
                          f"found {config.batch.total}")  # fmt: skip
    return config.batch.total // together


def spent(config: TrainConfig, progress: Progress) -> float:
    """The share of the budget that is spent."""
    budget = config.schedule
    return progress.step / budget.steps if budget.steps else progress.minutes / (budget.minutes or math.inf)


def due(every: int, step: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, on a GPU or on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


@contextmanager
def told_to_stop() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask the loop to stop after its step instead of breaking into it; the second one breaks."""
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def hear(number, frame) -> None:
        heard.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, hear)
    try:
        yield lambda: bool(heard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def remember(config: TrainConfig, folder: Path) -> list[str]:
    """Keep a run's configuration in its folder; returns what differs from the one it had, field by field."""
    path, now = folder / "config.yaml", config.to_dict()
    before = yaml.safe_load(path.read_text()) if path.exists() else now
    write_text(path, yaml.safe_dump(now, sort_keys=False))
    old, new = flat(before), flat(now)
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `pixel-perception train`."""
    parser = Parser(prog="pixel-perception train", epilog="Several processes, on one machine or more:\n"
                    "  accelerate launch --num_processes 8 -m pixel_perception.training.train CONFIG ...",
                    description="Teach a network what a configuration says; run the same command again to go on.")  # fmt: skip
    parser.add_argument("config", help="a YAML file, or the name of one in config/train, such as compact-pixels or pixellm-7b")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH",
                        help="folder of a data set; once for each that the configuration draws from")
    parser.add_argument("--out", type=Path, metavar="RUN", help="folder of the run; without it runs/ and the configuration's name")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="a field of the configuration, such as optimiser.rate=1e-4")
    parser.add_argument("--unchecked", action="store_true", help="do not read every record of the data before the first step")
    arguments = parser.parse_args(argv)
    path = find_config(arguments.config)
    config = read(path, arguments.set)
    folder = arguments.out or Path("runs") / path.stem
    processes = Processes(config.memory)
    course = open_course(config, arguments.data, folder, processes, check=not arguments.unchecked)
    run = Run(config, course, folder, processes)
    if processes.main:
        for change in remember(config, folder):
            run.monitor.say(f"changed since the run began: {change}")
    run.go()
    return 0


if __name__ == "__main__":
    from pixel_perception.cli import explain, fail

    try:
        raise SystemExit(main())
    except Exception as problem:
        if (sentence := explain(problem)) is None:
            raise
        raise SystemExit(fail(f"train: {sentence}")) from None
