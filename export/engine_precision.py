"""Whether an engine's language weights may be stored in a precision: what TensorRT can run, and what passed the gate of parity."""

from __future__ import annotations

from pathlib import Path

from pixel_perception.errors import PerceptionError
from pixel_perception.export.gpu_graph import language_precision, load_graph, stored_bits

BITS = {"int4": 4, "int8": 8, "fp16": 16}
BLOCKS = {"tensorrt": {"int4": 10}, "tensorrt_rtx": {"int4": 1, "int8": 1}}
"""Library -> weights that it takes in blocks, and from which major version on: TensorRT's own parser takes INT4 alone."""


def check_precision(graph: Path, precision: str, runtime: str, accepted_drift: str = "") -> None:
    """May an engine of the bundle's language graph have weights in this precision (one of `engine_key.PRECISIONS`)?

    Fewer bits than the bundle's have not passed its gate of parity and need a reason. Raises PerceptionError INVALID_QUERY where
    the library cannot run it, or there is no reason.
    """
    model = load_graph(graph)
    wanted, stored = language_precision(model, precision), stored_bits(model)
    library, _, version = runtime.partition(" ")
    takes = [name for name, since in BLOCKS.get(library, {}).items() if int(version.partition(".")[0]) >= since]
    if wanted != "fp16" and wanted not in takes:
        raise PerceptionError("INVALID_QUERY", f"language precision: expected {' or '.join(['fp16', *takes])}, which {runtime} can run, "
                                               f"found {wanted}; use --language fp16.")
    if BITS[wanted] < min(stored, 16) and not accepted_drift:
        held = f"int{stored}" if stored < 16 else f"fp{stored}"
        raise PerceptionError("INVALID_QUERY", f"language precision: expected at least the {held} that {graph.parent} was compared with "
                              f"torch in, found {wanted}; export the bundle with --language {wanted}, which runs the gate of parity, or "
                              "give a reason with --accept-drift, which is kept with the engine.")  # fmt: skip
