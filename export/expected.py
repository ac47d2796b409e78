"""What is expected of an export of the papers' networks, before and while it is written."""

from __future__ import annotations

from pathlib import Path

from pixel_perception.bundle import MANIFEST
from pixel_perception.errors import PerceptionError
from pixel_perception.evaluation.networks import difference
from pixel_perception.export.parity import GATES
from pixel_perception.models.configurations import configuration, to_dict
from pixel_perception.models.folder import describe

TOLERANCE = 1e-4
"""Largest difference of an output from torch, as a part of its largest magnitude (at least 1)."""


def expect_configuration(name: str, folder: Path) -> None:
    """Raises PerceptionError INVALID_BUNDLE where a model folder holds another network than that of a configuration's name;
    the errors of `models.configurations` and `models.folder`."""
    if different := difference(to_dict(configuration(name)), describe(folder)["configuration"]):
        raise PerceptionError("INVALID_BUNDLE", f"{folder}: expected {name}, found another network: {different}.")


def expect_own(out: Path) -> None:
    """Raises PerceptionError INVALID_BUNDLE where a folder that is to be written holds anything but a bundle."""
    own = out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))
    if out.exists() and not own:
        raise PerceptionError("INVALID_BUNDLE", f"{out}: expected no folder, an empty one or one with {MANIFEST}, found other files.")


def expect_close(out: Path, graph: str, figures: dict[str, float], cosines: bool = False) -> None:
    """Raises PerceptionError INVALID_BUNDLE, by the folder `out` that is not written then, where an output of a graph differs from torch
    by more than `TOLERANCE`, or where `figures` are cosines has less than the gate of parity."""
    least = GATES["hidden_cosine"]
    for output, figure in figures.items():
        if not (figure >= least if cosines else figure <= TOLERANCE):  # so put that a NaN fails
            wanted = f"a cosine with torch of at least {least}" if cosines else f"a difference from torch of at most {TOLERANCE}"
            raise PerceptionError("INVALID_BUNDLE", f"{out}: not written: {graph}: {output}: expected {wanted}, found {figure:.3g}.")
