"""`pixel-perception build-engines`: TensorRT engines before they are needed, and what stands in their cache."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pixel_perception.bundle import Bundle
from pixel_perception.cli import Parser
from pixel_perception.errors import PerceptionError
from pixel_perception.export.engine_list import described, digests, here, table
from pixel_perception.export.engine_precision import check_precision
from pixel_perception.runtime.cuda import cuda
from pixel_perception.runtime.engine_key import LANGUAGE, PRECISIONS, Machine, key_of
from pixel_perception.runtime.engine_upkeep import entries, prune
from pixel_perception.runtime.engines import EngineCache
from pixel_perception.runtime.tensorrt_library import find_tensorrt


def machines(capabilities: Sequence[str]) -> list[Machine]:
    """What to build for: this machine, or devices of the compute capabilities that are named. Raises PerceptionError
    INVALID_QUERY without TensorRT or, where none is named, without a GPU."""
    _, version = find_tensorrt()
    if capabilities:
        return [Machine.ahead_of_time(version, capability) for capability in capabilities]
    try:
        device = cuda()
    except PerceptionError as error:
        raise PerceptionError(error.code, f"{error.message} Without one, name what to build for with --ahead-of-time.") from error
    return [Machine(version, device.version, device.driver, device.device, device.compute_capability)]


def build_engines(bundle: Bundle, cache: EngineCache, targets: Sequence[Machine], quiet: bool = False, language: str = PRECISIONS[0],
                  accepted_drift: str = "") -> list[dict]:  # fmt: skip
    """Build what the cache lacks; one entry per engine: graph, file, bytes, seconds (0 when it was there) and what it is for.

    `language`, `accepted_drift`: see `check_precision`, which is asked before anything is built.
    """
    graphs = list(bundle.manifest.graphs)
    if LANGUAGE in graphs:
        for machine in targets:
            check_precision(bundle.graph(LANGUAGE), language, machine.runtime, accepted_drift)
    built = []
    with logging_redirect_tqdm(), tqdm(total=100 * len(graphs) * len(targets), unit="%", desc="build-engines", disable=quiet,
              bar_format="{desc}: {percentage:3.0f} %|{bar}| {elapsed} {postfix}") as bar:  # fmt: skip
        for machine in targets:
            for graph in graphs:
                begin = bar.n

                def progress(name: str, done: float, begin: int = begin) -> None:
                    bar.set_postfix_str(name, refresh=False)
                    bar.update(max(0, begin + round(100 * done) - bar.n))

                precision, drift = (language, accepted_drift) if graph == LANGUAGE else (PRECISIONS[0], "")
                key = key_of(bundle.graph(graph), precision, machine)
                there, started = cache.has(key), time.perf_counter()
                path = cache.get(key, bundle.graph(graph), progress, drift)
                progress(graph, 1.0)
                built.append({"graph": graph, "file": str(path), "bytes": path.stat().st_size,
                              "seconds": 0.0 if there else round(time.perf_counter() - started, 1), "runtime": machine.runtime,
                              "device": machine.device, "compute_capability": machine.compute_capability,
                              "precision": precision})  # fmt: skip
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `pixel-perception build-engines`."""
    parser = Parser(prog="pixel-perception build-engines", description="Build the TensorRT engines of a bundle into the cache, so that no "
                    "first start has to. Engines that are there are kept.\nEngines belong to one machine: build them where they will run, "
                    "or with TensorRT for RTX\nahead of time for every device of a compute capability, without a GPU.")  # fmt: skip
    parser.add_argument("bundle", nargs="?", help="bundle; without it $PIXEL_PERCEPTION_BUNDLE, else the one in the cache")
    parser.add_argument("--ahead-of-time", metavar="CC", action="append", default=[],
                        help="build for devices of this compute capability, such as 8.6 (may be given several times)")
    parser.add_argument("--language", choices=PRECISIONS, default=PRECISIONS[0], help="how the language model's weights are stored; "
                        "auto is int4 where the bundle's are, else fp16. The engine built last is used")  # fmt: skip
    parser.add_argument("--accept-drift", metavar="REASON",
                        help="build fewer bits than the bundle was compared with torch in; the reason is kept with the engine")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of engines; without it the cache, where the runtime looks")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--list", action="store_true", help="build nothing; list what is there, with its size and whether it is of use here")
    only.add_argument("--prune", action="store_true", help="build nothing; remove what this machine can no longer load")
    parser.add_argument("--unused", type=float, metavar="DAYS",
                        help="with --prune: remove also what was not used for so many days, of whatever bundle")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a progress bar")
    arguments = parser.parse_args(argv)
    if arguments.unused is not None and not arguments.prune:
        parser.error("--unused: expected --prune beside it, found none")
    cache = EngineCache(arguments.out)
    if arguments.list or arguments.prune:
        machines_here, ours = here(), digests(arguments.bundle)
        if arguments.list:
            chosen = [(entry, entry.useless(machines_here)) for entry in entries(cache.folder)]
        else:
            chosen = prune(cache.folder, machines_here, 0, float("inf") if arguments.unused is None else arguments.unused)
        found = [described(entry, why, ours) for entry, why in chosen]
        print(json.dumps({"engines": found}) if arguments.json else table(found, "useless" if arguments.list else "removed"))
        return 0
    targets = machines(arguments.ahead_of_time)
    built = build_engines(Bundle.open(arguments.bundle), cache, targets, arguments.json, arguments.language, arguments.accept_drift or "")
    if arguments.json:
        print(json.dumps({"engines": built}))
        return 0
    for engine in built:
        took = f"built in {engine['seconds']:.1f} s" if engine["seconds"] else "was there"
        print(f"{engine['graph']:<26}{engine['bytes'] / 1e6:>8.1f} MB  {engine['compute_capability']:<5} {took}")
    return 0
