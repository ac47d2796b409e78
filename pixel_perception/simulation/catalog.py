"""Objects and surfaces that scenes are made of, read from an asset folder.

An asset folder holds `catalog.json` (a list of objects), the meshes and textures it names, and `surf/*.png`
(textures of floor, walls and table). `pixel-perception simulate --help` describes every field.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

PALETTE = {
    "red": (0.78, 0.06, 0.06), "green": (0.10, 0.55, 0.15), "blue": (0.08, 0.20, 0.75),
    "yellow": (0.92, 0.80, 0.08), "orange": (0.95, 0.45, 0.05), "purple": (0.42, 0.12, 0.60),
    "pink": (0.95, 0.45, 0.65), "white": (1.0, 1.0, 1.0), "black": (0.07, 0.07, 0.07),
    "gray": (0.45, 0.45, 0.45), "brown": (0.40, 0.22, 0.10), "cyan": (0.10, 0.75, 0.80),
}  # fmt: skip
"""Colour name to linear RGB: what a grey-textured object may be tinted with."""


class AssetError(ValueError):
    """An asset folder is missing, or an entry of it is not what was expected."""


@dataclass(frozen=True)
class Asset:
    """One object that can lie on the table."""

    id: str
    noun: str
    color: str
    synonyms: tuple[str, ...]
    mesh: str
    texture: str | None
    tint_texture: str | None
    """Grey texture to use when the object is tinted; None where it has none."""
    tintable: bool
    always_tinted: bool
    hulls: tuple[str, ...]
    scale: float
    quaternion: tuple[float, float, float, float]
    licence: str


@dataclass(frozen=True)
class Catalog:
    """All objects and surface textures of one asset folder."""

    assets: tuple[Asset, ...]
    surfaces: tuple[str, ...]

    @staticmethod
    def open(folder: str | Path, only: set[str] | None = None) -> Catalog:
        """Read `folder`; `only` keeps the objects with these ids. Raises AssetError naming file and field."""
        folder = Path(folder)
        path = folder / "catalog.json"
        if not path.is_file():
            raise AssetError(f"{path}: not found; expected an asset folder with catalog.json, meshes and surf/*.png")
        try:
            rows = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise AssetError(f"{path}: not valid JSON ({error})") from None
        assets = tuple(_asset(folder, path, i, row) for i, row in enumerate(rows))
        if only is not None:
            unknown = only - {a.id for a in assets}
            if unknown:
                raise AssetError(f"{path}: no object with id {sorted(unknown)[0]!r}")
            assets = tuple(a for a in assets if a.id in only)
        surfaces = tuple(str(p) for p in sorted((folder / "surf").glob("*.png")))
        if not assets or not surfaces:
            raise AssetError(f"{folder}: expected at least one object and one texture in surf/, "
                             f"found {len(assets)} and {len(surfaces)}")
        return Catalog(assets, surfaces)


def _asset(folder: Path, path: Path, index: int, row: dict) -> Asset:
    def file(name: str) -> str:
        if not (folder / name).is_file():
            raise AssetError(f"{path}: entry {index} names {name!r}, which is not in the folder")
        return str(folder / name)

    try:
        grey, paint = row.get("grey"), bool(row.get("paint"))
        return Asset(
            id=row["id"], noun=row["category"], color=row["color"], synonyms=tuple(row.get("syn", ())),
            mesh=file(row["mesh"]), texture=file(row["tex"]) if row.get("tex") else None,
            tint_texture=file(grey) if grey else None, tintable=paint or bool(grey), always_tinted=paint,
            hulls=tuple(file(c) for c in row.get("col", ())), scale=float(row.get("scale", 1.0)),
            quaternion=tuple(row.get("quat", (1, 0, 0, 0))), licence=row.get("lic", "unknown"),
        )  # fmt: skip
    except KeyError as error:
        raise AssetError(f"{path}: entry {index} lacks the field {error}") from None
