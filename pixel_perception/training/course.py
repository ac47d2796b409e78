"""From a configuration to what the loop needs: a lesson, a stream of batches, and samples to draw predictions for.

Everything that can be wrong with data is found here, before the first step.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pixel_perception.training.config import ConfigError, TrainConfig
from pixel_perception.training.lesson import Lesson
from pixel_perception.training.processes import Processes
from pixel_perception.training.stream import MixtureStream, Stream
from pixel_perception.training.tasks.mixture import Mixture
from pixel_perception.training.tasks.registry import find
from pixel_perception.training.tasks.sample import Task, TaskError
from pixel_perception.writing import write_text


@dataclass(frozen=True)
class Course:
    """What is taught, from what, and what is looked at: `view(step)` gives a batch, the same in every process."""

    lesson: Lesson
    stream: Stream
    view: Callable[[int], Any]


def find_config(name: str) -> Path:
    """A YAML file, or the one of that name in the project's config/train. Raises ConfigError that lists those there are."""
    if Path(name).suffix in (".yaml", ".yml") or Path(name).is_file():
        return Path(name)
    from pixel_perception.commands import share

    home = share("config/train")
    known = sorted(path.stem for path in home.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"{name}: expected a YAML file or one of {', '.join(known)}")
    return home / f"{name}.yaml"


def open_course(config: TrainConfig, data: Sequence[str], folder: Path, processes: Processes, check: bool = True) -> Course:
    """Open data ("NAME=PATH", ...) and network. Raises ConfigError, TaskError, and what the network's files raise."""
    paths = named(data)
    if config.system == "compact":
        from pixel_perception.training import compact

        return compact.open_course(config, paths, processes)
    tasks = open_tasks(config, paths)
    lessons = importlib.import_module(f"pixel_perception.training.{config.system}_lesson")
    for name, task in tasks.items():
        lessons.check(config, name, task[0])
    lesson = lessons.build(config)
    if check:  # last, as it may take minutes
        sound(tasks, folder / "checked.json", processes)
    weights, collate = {name: config.data[name] for name in tasks}, lesson.collate()
    mixture = Mixture(tasks, weights, config.seed, processes.rank, processes.count)

    def view(step: int) -> Any:
        shown = Mixture(tasks, weights, config.seed + 1 + step)
        return collate([next(shown) for _ in range(config.watch.samples)])

    return Course(lesson, MixtureStream(mixture, collate, config.batch.micro, config.memory.workers), view)


def named(data: Sequence[str]) -> dict[str, Path]:
    """--data as folders by name. Raises ConfigError."""
    out = {}
    for item in data:
        name, equals, path = item.partition("=")
        if not equals or not name or not path:
            raise ConfigError(f"--data {item}: expected NAME=PATH, such as refcoco=/data/refer_seg")
        out[name] = Path(path)
    return out


def open_tasks(config: TrainConfig, paths: Mapping[str, Path]) -> dict[str, Task]:
    """The data sets that a configuration draws from, by the names that it uses.

    Raises TaskError for an unknown name, a wrong layout or an empty split, ConfigError for a data set without a folder and a
    folder without a data set.
    """
    sets = {name: find(name) for name in config.data}
    folders = {find(name).name: path for name, path in paths.items()}
    tasks = {}
    for name, weight in config.data.items():
        path = folders.pop(sets[name].name, None)
        if weight == 0:
            continue
        if path is None:
            raise ConfigError(f"data.{name}: expected its folder (--data {name}=PATH), found none; --set data.{name}=0 leaves it out")
        tasks[name] = sets[name].open(path, config.split)
    if folders:
        raise ConfigError(f"--data {next(iter(folders))}: expected one of the configuration's data sets ({', '.join(config.data)})")
    return tasks


def sound(tasks: Mapping[str, Task], memory: Path, processes: Processes) -> None:
    """Read every record and every image's header once for a run; `memory` is the file that knows which were. Raises TaskError."""
    if processes.main:
        known = json.loads(memory.read_text()) if memory.is_file() else {}
        for name, task in tasks.items():
            facts = [str(task.folder), task.split, len(task)]
            if known.get(name) == facts:
                continue
            with tqdm(total=len(task), unit="sample", desc=f"checking {name}") as bar:
                for _, error in task.problems(bar.update):
                    raise TaskError(error.file, f"{error.message} (`pixel-perception data check {name} PATH` lists every problem)",
                                    error.record, error.field)  # fmt: skip
            known[name] = facts
            write_text(memory, json.dumps(known, indent=1))
    processes.wait()
