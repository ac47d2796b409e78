"""One engine, or graph for ONNX Runtime's CUDA provider, built in a process of its own: `python -m
pixel_perception.export.build_engine`, with a job on its input.

The job is one line of JSON (see `pixel_perception.runtime.engines`); the output is lines of JSON, {"progress": 0..1} and
at the end {"engine": bytes} or {"error": one sentence}. The process ends when its input is closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from pathlib import Path
from types import ModuleType

from pixel_perception.errors import PerceptionError
from pixel_perception.export.cuda_graph import cuda_graph
from pixel_perception.export.gpu_graph import write_gpu_graph
from pixel_perception.runtime.engine_file import write_engine
from pixel_perception.runtime.engine_key import EngineKey, profiles_of
from pixel_perception.runtime.tensorrt_library import find_tensorrt


def build(trt: ModuleType, graph: Path, key: EngineKey, timing: Path, say) -> memoryview:
    """Parse and build the GPU graph in a file, always strongly typed, for this machine or ahead of time for the key's compute capability.

    `say` gets how much is done. Raises PerceptionError INVALID_BUNDLE that names the nodes which TensorRT cannot run.
    """
    logger = _logger(trt)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # from TensorRT 11 on there is nothing else
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    _parse(trt, network, logger, graph, key)
    config = builder.create_builder_config()
    if key.device == "any":
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability(trt, key.compute_capability), 0)
    for sizes in profiles_of(key.graph):
        config.add_optimization_profile(_profile(builder, network, sizes, key.graph))
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt, say)
    if key.device != "any":
        use_timings(config, timing)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise PerceptionError("INVALID_BUNDLE", f"{key.graph}: expected an engine of {key.runtime}, found: {logger.last}.")
    if key.device != "any":
        keep_timings(config, timing)
    return memoryview(engine)


def use_timings(config, file: Path) -> None:
    """Give a builder's configuration the timings of earlier builds on this device (TensorRT for RTX has none to take). A file that
    is damaged or of another library is no obstacle: timings begin anew."""
    for known in (file.read_bytes() if file.is_file() else b"", b""):
        cache = config.create_timing_cache(known)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return


def keep_timings(config, file: Path) -> None:
    """Write what a build has timed, in one step. Raises OSError."""
    cache = config.get_timing_cache()
    if cache is not None:
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        partial.write_bytes(memoryview(cache.serialize()))
        partial.replace(file)


def _tensorrt(key: EngineKey, graph: Path, converted: Path, timing: Path, say) -> memoryview:
    trt, version = find_tensorrt()
    if version != key.runtime:
        raise PerceptionError("INVALID_BUNDLE", f"TensorRT: expected {key.runtime}, found {version}.")
    if key.device == "any":
        capability(trt, key.compute_capability)  # before a large graph is converted in vain
    return build(trt, write_gpu_graph(graph, key.precision, converted), key, timing, say)


def _parse(trt: ModuleType, network, logger, graph: Path, key: EngineKey) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(graph)):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    nodes = dict.fromkeys(f"{e.node_name() or 'a node without a name'} ({e.node_operator()})" for e in errors)
    raise PerceptionError("INVALID_BUNDLE", f"{key.graph}: expected operators that {key.runtime} can run, found the unsupported "
                                            f"{', '.join(nodes) or 'graph'}: {_one_line(errors[0].desc()) if errors else logger.last}")


def capability(trt: ModuleType, wanted: str):
    """The library's name of a compute capability such as "8.6". Raises PerceptionError INVALID_QUERY where it cannot build for it
    ahead of time."""
    name = "SM" + wanted.replace(".", "")
    known = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    if name not in known:
        offered = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in known if n.startswith("SM")) or "none: only TensorRT-RTX can"
        raise PerceptionError("INVALID_QUERY", f"compute capability: expected one that engines can be built for ahead of time "
                                               f"({offered}), found {wanted}.")
    return known[name]


def _profile(builder, network, sizes: dict[str, tuple[int, int, int]], graph: str):
    """An optimisation profile that gives every dynamic axis, by its name, its sizes. Raises PerceptionError INVALID_BUNDLE for an axis
    that has none."""
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple(tensor.shape)
        if -1 in shape:
            names = [tensor.get_dimension_name(axis) for axis in range(len(shape))]
            if unknown := [n for s, n in zip(shape, names, strict=True) if s < 0 and n not in sizes]:
                raise PerceptionError("INVALID_BUNDLE", f"{graph}: expected changing axes of {tensor.name} among {', '.join(sizes)}, found "
                                                        f"{unknown[0] or 'one without a name'}.")
            shapes = [[sizes[n][which] if s < 0 else s for s, n in zip(shape, names, strict=True)] for which in range(3)]
            profile.set_shape(tensor.name, *shapes)
    return profile


def _logger(trt: ModuleType):
    class Logger(trt.ILogger):
        """Keeps the last error; what TensorRT warns of is of no use to anybody who did not write the graph."""

        last = "no reason given"

        def log(self, severity, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.last = _one_line(message)

    return Logger()


def _monitor(trt: ModuleType, say):
    class Monitor(trt.IProgressMonitor):
        """Adds up nested phases: a phase is as long as one step of the phase around it."""

        def __init__(self) -> None:
            super().__init__()
            self.phases: dict[str, list] = {}  # name: parent, steps, done

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = [parent_phase, max(num_steps, 1), 0]

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.phases[phase_name][2] = step + 1
            done, name = 0.0, phase_name
            while name in self.phases:
                parent, steps, finished = self.phases[name]
                done, name = min(1.0, (finished + done) / steps), parent
            say(done)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

    return Monitor()


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def main() -> int:
    """Build what the job on standard input says."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    os.nice(10)  # the robot goes on meanwhile
    key, said = EngineKey(**job["key"]), -1.0

    def say(done: float) -> None:
        nonlocal said
        if done >= said + 0.01:
            said = done
            print(json.dumps({"progress": round(done, 3)}), flush=True)

    try:
        say(0.0)
        out = Path(job["out"])
        if key.runtime.startswith("onnxruntime"):
            engine = cuda_graph(Path(job["graph"])).SerializeToString()
        else:
            engine = _tensorrt(key, Path(job["graph"]), out.with_name("graph.onnx"), Path(job["timing"]), say)
        write_engine(out, job["key"], engine, job["accepted_drift"])
    except PerceptionError as error:
        print(json.dumps({"error": error.message}), flush=True)
        return 1
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(job["out"]).unlink(missing_ok=True)
        print(json.dumps({"error": f"{job['out']}: cannot be written ({error.strerror or error}); expected a writable engine cache with "
                                   "enough space."}), flush=True)  # fmt: skip
        return 1
    print(json.dumps({"engine": len(engine)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
