"""`pixel-perception build-engines`: TensorRT engines before they are needed."""

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
from pixel_perception.runtime.engine_key import PRECISION, Machine, key_of
from pixel_perception.runtime.engines import EngineCache
from pixel_perception.runtime.tensorrt_library import find_tensorrt


def machines(capabilities: Sequence[str]) -> list[Machine]:
    """What to build for: this machine, or devices of the compute capabilities that are named. Raises PerceptionError
    INVALID_QUERY without TensorRT or, where none is named, without a GPU."""
    _, version = find_tensorrt()
    if capabilities:
        return [Machine.ahead_of_time(version, capability) for capability in capabilities]
    from pixel_perception.runtime.cuda import cuda

    try:
        device = cuda()
    except PerceptionError as error:
        raise PerceptionError(error.code, f"{error.message} Without one, name what to build for with --ahead-of-time.") from error
    return [Machine(version, device.version, device.driver, device.device, device.compute_capability)]


def build_engines(bundle: Bundle, cache: EngineCache, targets: Sequence[Machine], quiet: bool = False) -> list[dict]:
    """Build what the cache lacks; one entry per engine: graph, file, bytes, seconds (0 when it was there) and what it is for."""
    graphs = list(bundle.manifest.graphs)
    built = []
    with logging_redirect_tqdm(), tqdm(total=100 * len(graphs) * len(targets), unit="%", desc="build-engines", disable=quiet,
              bar_format="{desc}: {percentage:3.0f} %|{bar}| {elapsed} {postfix}") as bar:  # fmt: skip
        for machine in targets:
            for graph in graphs:
                begin = bar.n

                def progress(name: str, done: float, begin: int = begin) -> None:
                    bar.set_postfix_str(name, refresh=False)
                    bar.update(max(0, begin + round(100 * done) - bar.n))

                key = key_of(bundle.graph(graph), PRECISION, machine)
                there, started = cache.has(key), time.perf_counter()
                path = cache.get(key, bundle.graph(graph), progress)
                progress(graph, 1.0)
                built.append({"graph": graph, "file": str(path), "bytes": path.stat().st_size,
                              "seconds": 0.0 if there else round(time.perf_counter() - started, 1), "runtime": machine.runtime,
                              "device": machine.device, "compute_capability": machine.compute_capability})  # fmt: skip
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `pixel-perception build-engines`."""
    parser = Parser(prog="pixel-perception build-engines", description="Build the TensorRT engines of a bundle into the cache, so that no "
                    "first start has to. Engines that are there are kept.\nEngines belong to one machine: build them where they will run, "
                    "or with TensorRT for RTX\nahead of time for every device of a compute capability, without a GPU.")  # fmt: skip
    parser.add_argument("bundle", nargs="?", help="bundle; without it $PIXEL_PERCEPTION_BUNDLE, else the one in the cache")
    parser.add_argument("--ahead-of-time", metavar="CC", action="append", default=[],
                        help="build for devices of this compute capability, such as 8.6 (may be given several times)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of engines; without it the cache, where the runtime looks")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a progress bar")
    arguments = parser.parse_args(argv)
    targets = machines(arguments.ahead_of_time)
    built = build_engines(Bundle.open(arguments.bundle), EngineCache(arguments.out), targets, arguments.json)
    if arguments.json:
        print(json.dumps({"engines": built}))
        return 0
    for engine in built:
        took = f"built in {engine['seconds']:.1f} s" if engine["seconds"] else "was there"
        print(f"{engine['graph']:<26}{engine['bytes'] / 1e6:>8.1f} MB  {engine['compute_capability']:<5} {took}")
    return 0
