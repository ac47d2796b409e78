"""`pixel-perception bench`: measure every row of the table in one run."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from pixel_perception.cli import Parser, explain
from pixel_perception.errors import PerceptionError

if TYPE_CHECKING:
    from pixel_perception.benchmark.subject import Network

INSTRUCTION = "the red mug, the lemon and the red apple"
"""Three targets, all in the recording's first frame."""


def main(argv: Sequence[str]) -> int:
    """`pixel-perception bench`."""
    from pixel_perception.benchmark.rows import BARS, TORCH

    parser = Parser("pixel-perception bench", description=DESCRIPTION + "\n\nrows: " + ", ".join(BARS))
    parser.add_argument("bundle", nargs="?", help="bundle; without it $PIXEL_PERCEPTION_BUNDLE, else the one in the cache")
    parser.add_argument("--json", action="store_true", help='print {"rows": [...]} instead of the table')
    parser.add_argument("--out", metavar="DIR", help="write bench.json after every row, then bench.txt and bench.png; rows in it "
                        "that are not measured now are kept")  # fmt: skip
    parser.add_argument("--rows", metavar="NAME,...", help="measure these rows only")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns that each contestant of a row takes")
    parser.add_argument("--instruction", default=INSTRUCTION, help="what is asked; three targets in the recording's first frame")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads of every contestant; without it all")
    parser.add_argument("--backend", default="onnxruntime-cpu", choices=["onnxruntime-cpu", "onnxruntime-cuda", "tensorrt"],
                        help="what is measured; torch runs on the same device")  # fmt: skip
    parser.add_argument("--parts", metavar="DIR", help="parts that the bundle was assembled from, for torch; without it weights/compact")
    parser.add_argument("--shape", metavar="NAME", help="in place of a bundle a PixelLM of this shape with random weights, its language in "
                        "int4, beside torch: pixellm-7b, pixellm-13b, or a file with a configuration in JSON")  # fmt: skip
    parser.add_argument("--graphs", metavar="DIR", help="with --shape: keep its graphs there, and use those that are there; without it "
                        "they are in the folder for temporary files ($TMPDIR) while they are measured")  # fmt: skip
    arguments = parser.parse_args(argv)
    known = TORCH if arguments.shape else tuple(BARS)
    wanted = list(dict.fromkeys(arguments.rows.split(","))) if arguments.rows else list(known)
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"--rows: expected some of {', '.join(known)}, found {', '.join(unknown)}")
    if arguments.shape and arguments.bundle:
        parser.error(f"expected a bundle or --shape, found {arguments.bundle} and {arguments.shape}")
    if arguments.rounds < 1:
        parser.error(f"--rounds: expected 1 or more, found {arguments.rounds}")

    command = "pixel-perception bench " + " ".join(argv)
    with _subject(arguments) as (subject, about):
        return _report(subject, {"command": command} | about, wanted, arguments)


@contextmanager
def _subject(arguments) -> Iterator[tuple[Network, dict]]:
    """What is measured, and what the report says of it."""
    from pixel_perception.benchmark.subject import Effort, Subject, backend_of

    backend, rounds = backend_of(arguments.backend, arguments.threads), arguments.rounds
    if not arguments.shape:
        from pixel_perception.bundle import Bundle

        bundle = Bundle.open(arguments.bundle)
        if bundle.manifest.family != "compact":
            raise PerceptionError("INVALID_BUNDLE", f"{bundle.folder}: expected a bundle of the compact model to measure, found one of "
                                                    f"{bundle.manifest.family}.")  # fmt: skip
        subject = Subject(bundle, backend, Effort(rounds=rounds), arguments.instruction, arguments.parts)
        yield subject, {"bundle": f"{bundle.manifest.name} {bundle.manifest.version}", "digest": bundle.digest}
        return
    from pixel_perception.benchmark.shape import SHORT, Shape, named

    config, name = named(arguments.shape)
    with nullcontext(arguments.graphs) if arguments.graphs else tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield Shape(config, name, Path(folder), backend, replace(SHORT, rounds=rounds)), {"shape": f"{name}, random weights"}


def _report(subject: Network, about: dict, wanted: Sequence[str], arguments) -> int:
    """Measure the rows, and print and write them."""
    from pixel_perception.benchmark.rows import BARS, Row, table

    store = Path(arguments.out) / (f"bench-{subject.name}.json" if arguments.shape else "bench.json") if arguments.out else None
    rows = _kept(store)
    about |= {"backend": subject.backend.name, "threads": subject.threads} | surroundings(subject)
    about["machine"] = {name: f"{value / 1e9:.1f}e9 per second" for name, value in asdict(subject.machine).items()}
    for names, measure in _measurements():
        if not set(names) & set(wanted):
            continue
        print(f"measuring {', '.join(n for n in names if n in wanted)}", file=sys.stderr)
        try:
            found = measure(subject)
        except Exception as error:  # one row that fails must not take the others with it
            sentence = explain(error)
            if sentence is None:
                raise
            found = [Row(name, None, None, "", None, None, sentence) for name in names]
        # With the row itself: others may be kept from another run.
        then = {"load": round(os.getloadavg()[0], 2), "bandwidth": round(subject.machine.bandwidth), "command": about["command"]}
        rows |= {row.name: replace(row, details=row.details | then) for row in found if row.name in wanted}
        rows = {name: rows[name] for name in BARS if name in rows}
        if store:
            store.parent.mkdir(parents=True, exist_ok=True)
            store.write_text(json.dumps({"rows": [_plain(row) for row in rows.values()], "about": about}, indent=1) + "\n")
    told = [f"{name}: {value}" for name, value in about.items() if name != "machine"]
    told += [", ".join(f"{name} {value}" for name, value in about["machine"].items()), "", table(rows)]
    print(json.dumps({"rows": [_plain(row) for row in rows.values()]}) if arguments.json else "\n".join(told))
    if store:
        from pixel_perception.benchmark.plot import plot

        store.with_suffix(".txt").write_text("\n".join(told) + "\n")
        plot(rows, f"{about['device']}, {subject.threads} threads", store.with_suffix(".png"))
    return 0


def _measurements() -> list[tuple[tuple[str, ...], Callable]]:
    from pixel_perception.benchmark import language_rows, pixel_rows, process_rows, torch_rows

    # Fresh processes first: what is loaded later would take memory bandwidth from them.
    return [(("memory_mb",), process_rows.memory), (("cold_start_ms",), process_rows.cold_start), (("follow_fps",), pixel_rows.follow),
            (("codebook_run_vs_token",), language_rows.codebook_run), (("regions_batched",), language_rows.regions_batched),
            (("ask_vs_reference",), pixel_rows.ask),
            (("decode_vs_llamacpp", "prefill_vs_llamacpp"), language_rows.against_llamacpp),
            *(((f"{kind.__name__}_vs_torch{'_compile' if compiled else ''}",), partial(kind, compiled=compiled))
              for kind in (torch_rows.decode, torch_rows.follow) for compiled in (False, True))]  # fmt: skip


def _plain(row) -> dict:
    from pixel_perception.benchmark.rows import BARS

    bar = BARS[row.name]
    return asdict(row) | {"bar": bar.text, "reached": bar.met(row)}


def _kept(store: Path | None) -> dict:
    """Rows of an earlier run. Raises PerceptionError where the file is something else."""
    from pixel_perception.benchmark.rows import Row

    if store is None or not store.is_file():
        return {}
    try:
        known = json.loads(store.read_text())["rows"]
        return {row["name"]: Row(**{name: row[name] for name in Row.__dataclass_fields__}) for row in known}
    except (ValueError, KeyError, TypeError) as error:
        raise PerceptionError("INVALID_QUERY", f"{store}: expected rows of an earlier run, found {error!r}; remove the file.") from error


def surroundings(subject: Network) -> dict:
    """Device, versions and the time of day's load."""
    device = platform.processor() or platform.machine()
    try:
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        device = f"{names[0]}, {len(os.sched_getaffinity(0))} of {len(names)} cores" if names else device
    except OSError:
        pass
    if not subject.on_cpu:
        from pixel_perception.runtime.cuda import cuda

        device = f"{cuda().device}, driver {cuda().driver}; {device}"
    versions = {}
    for package in ("pixel_perception", "onnxruntime", "onnxruntime-gpu", "numpy", "llama-cpp-python", "torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {"device": device, "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
            "versions": versions, "load before": [round(value, 2) for value in os.getloadavg()]}  # fmt: skip


DESCRIPTION = """Measure the runtime beside what it is compared with, in turns, and state medians, ratios, the bar of each row and the
fraction of the memory or arithmetic roofline that it reaches. llama.cpp is compared where it is installed."""
