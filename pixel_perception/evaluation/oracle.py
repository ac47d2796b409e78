"""`pixel-perception oracle FOLDER`: our networks against numbers that reference implementations gave.

A folder holds arrays (`*.npz`), the names and shapes of the weights behind them (`*_params.json`) and the rule that
makes the weights (`weights_rule.py`, which is run: point this only at folders you trust). One row comes out for each
array. Arrays that are inputs are fed as they are; their row tells the error after conversion to our own types.
"""

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

FAMILIES = ("pixel_perception.evaluation.oracle_pixellm", "pixel_perception.evaluation.oracle_pixelllm")
"""Modules with `checks(folder) -> iterator of rows`; one that is not installed is told about and passed over."""

FEATURES, BOXES, LOSSES = 1e-4, 1e-3, 1e-5
"""Tolerances: absolute on features and logits, absolute in pixels on boxes, relative on losses."""


@dataclass(frozen=True)
class Comparison:
    """One array: the largest error, absolute, or relative to the reference where the tolerance is."""

    file: str
    array: str
    max_error: float | None
    tolerance: float

    def row(self) -> dict:
        """As it is printed; None, for an error that is no finite number, never passes."""
        return asdict(self) | {"pass": self.max_error is not None and self.max_error <= self.tolerance}


def compare(file: str, array: str, ours, reference, tolerance: float = FEATURES, relative: bool = False) -> dict:
    """The row of one array: `ours` (any array or tensor) against the reference; another shape has no error but fails."""
    ours = np.asarray(ours.detach().cpu() if hasattr(ours, "detach") else ours, dtype=np.float64)
    reference = np.asarray(reference, dtype=np.float64)
    if ours.shape != reference.shape:
        return Comparison(file, array, None, tolerance).row()
    errors = np.abs(ours - reference)
    if relative:
        errors = errors / np.maximum(np.abs(reference), 1e-12)
    error = float(errors.max(initial=0.0))
    return Comparison(file, array, error if np.isfinite(error) else None, tolerance).row()


def weights_rule(folder: Path) -> ModuleType:
    """The folder's own `weights_rule.py`, run as a module. Raises FileNotFoundError without it."""
    path = folder / "weights_rule.py"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it makes the weights that the numbers belong to")
    spec = importlib.util.spec_from_file_location("oracle_weights_rule", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parameter_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a `*_params.json`, whose values are shapes or pairs of shape and type."""
    stored = json.loads(path.read_text())
    return {name: tuple(v[0] if v and isinstance(v[0], list) else v) for name, v in stored.items()}


def checks(folder: Path, log: Callable[[str], None] = lambda text: None) -> Iterator[dict]:
    """Every family's rows for a folder, file by file; then failing rows for files that no family knows."""
    done = set()
    for name in FAMILIES:
        try:
            family = importlib.import_module(name)
        except ModuleNotFoundError as error:
            log(f"{name} passed over: {error}")
            continue
        for row in family.checks(folder):
            done.add(row["file"])
            yield row
    for path in sorted(folder.glob("*.npz")):
        if path.name not in done:
            log(f"{path.name} is compared by no family")
            with np.load(path) as stored:
                yield from (Comparison(path.name, name, None, FEATURES).row() for name in stored.files)


def main(argv: list[str] | None = None) -> int:
    """Command line; 0 when every row passes, 1 when one does not, 2 when there is nothing to compare."""
    parser = argparse.ArgumentParser(prog="pixel-perception oracle", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with *.npz, *_params.json and weights_rule.py")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object for each array")
    arguments = parser.parse_args(argv)
    if not arguments.folder.is_dir():
        print(f"no such folder: {arguments.folder}", file=sys.stderr)
        return 2
    try:
        rows = list(checks(arguments.folder, lambda text: print(text, file=sys.stderr)))
    except (OSError, ValueError, KeyError) as error:
        print(f"{arguments.folder} cannot be compared: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            verdict = "pass" if row["pass"] else "FAIL"
            error = "no error" if row["max_error"] is None else f"{row['max_error']:.2e}"
            print(f"{verdict}  {row['file']:28} {row['array']:40} {error:8} of {row['tolerance']:.0e}")
    if not rows:
        print(f"nothing to compare in {arguments.folder}", file=sys.stderr)
        return 2
    return 0 if all(row["pass"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
