"""Rows of a fresh process: what memory it holds and how soon it answers first."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

from pixel_perception.benchmark.rows import Row
from pixel_perception.benchmark.subject import Subject
from pixel_perception.errors import PerceptionError

PROGRAM = """
import json, sys, time
begun = time.perf_counter()
import numpy as np
from PIL import Image
from pixel_perception.perception import Perception
from pixel_perception.types import Query, Task
bundle, backend, threads, text, *files = sys.argv[1:]
frames = [np.asarray(Image.open(file).convert("RGB")) for file in files]
imported = time.perf_counter()
perception = Perception.open(bundle, backend, int(threads))
opened = time.perf_counter()
first = perception.ask(frames[0], Query(text))
answered = time.perf_counter()
standing = first.standing
for frame in frames[1:]:
    perception.ask(frame, Query(text))
    perception.ask(frame, Query(task=Task.CAPTION_DENSE))
    if standing:
        standing = perception.follow(frame, standing).standing
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"import": imported - begun, "open": opened - imported, "first": answered - opened,
                  "peak": int(status["VmHWM"].split()[0]) / 1024, "resident": int(status["VmRSS"].split()[0]) / 1024}))
"""


def _fresh(subject: Subject, frames: int) -> dict[str, float]:
    """Run `PROGRAM` in a process of its own. Raises PerceptionError INTERNAL with its last line where it fails."""
    command = [sys.executable, "-c", PROGRAM, str(subject.bundle.folder), subject.backend.name, str(subject.threads), subject.query.text,
               *map(str, subject.files[:frames])]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise PerceptionError("INTERNAL", f"a fresh process failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return json.loads(done.stdout)


def memory(subject: Subject) -> list[Row]:
    """Resident memory of a process that opens the bundle, answers, captions and follows: its highest."""
    found = _fresh(subject, len(subject.files))
    return [Row("memory_mb", found["peak"], None, "MB", None, None,
                f"Highest resident memory (VmHWM) of a process that asks, captions and follows {len(subject.files)} frames; "
                f"{found['resident']:.0f} MB when it ends.", found)]  # fmt: skip


def cold_start(subject: Subject) -> list[Row]:
    """From opening the bundle (every digest checked) to the first answer, with its files in the system's cache."""
    runs = [_fresh(subject, 1) for _ in range(subject.effort.processes + 1)][1:]
    parts = {name: 1000 * float(np.median([run[name] for run in runs])) for name in ("import", "open", "first")}
    size = sum(path.stat().st_size for path in subject.bundle.folder.iterdir())
    total = parts["open"] + parts["first"]
    return [Row("cold_start_ms", total, None, "ms", None, 1000 * size / subject.machine.bandwidth / total,
                f"Opening {parts['open']:.0f} ms, first answer {parts['first']:.0f} ms; imports before it {parts['import']:.0f} ms. "
                f"Its roofline is reading the bundle's {size / 1e6:.0f} MB from memory once.", parts)]  # fmt: skip
