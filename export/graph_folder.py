"""A folder of graphs with `graphs.json`: an exported network of the papers. It is verified as a bundle is, but Perception opens bundles
only. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pixel_perception.bundle import GraphSpec, file_digest, parse
from pixel_perception.errors import PerceptionError

GRAPHS = "graphs.json"
FORMAT = 1


@dataclass(frozen=True)
class GraphList:
    """All that is known of the folder. `files` maps the name of every file that is not a graph to its SHA-256."""

    name: str
    configuration: dict
    """Of the network, as in `model.json`."""
    graphs: dict[str, GraphSpec]
    files: dict[str, str]
    compared: dict[str, dict[str, float]]
    """Graph -> output -> largest difference from torch as a part of the output's magnitude; where the language model is quantised, its
    least cosine with torch."""
    left_out: dict[str, str]
    """Part of the network that has no graph here -> why."""
    format: int = FORMAT

    def to_json(self) -> str:
        """Text of `graphs.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class GraphFolder:
    """What a folder's `graphs.json` says; no other file is looked at."""

    folder: Path
    manifest: GraphList
    digest: str

    @staticmethod
    def listed(folder: str | Path) -> GraphFolder:
        """Raises PerceptionError INVALID_BUNDLE where `graphs.json` is missing or damaged."""
        path = Path(folder) / GRAPHS
        try:
            text = path.read_bytes()
            raw = json.loads(text)
        except (OSError, ValueError) as error:
            raise PerceptionError("INVALID_BUNDLE", f"{path}: expected a list of graphs in JSON ({error}).") from None
        found = raw.get("format") if isinstance(raw, dict) else None
        if found != FORMAT:
            raise PerceptionError("INVALID_BUNDLE", f"{path}: expected format {FORMAT}, found {found!r}; export the model again.")
        return GraphFolder(Path(folder), parse(GraphList, raw, str(path)), hashlib.sha256(text).hexdigest())

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of every file that is listed, by file name."""
        return {graph.file: graph.sha256 for graph in self.manifest.graphs.values()} | self.manifest.files

    def graph(self, name: str) -> Path:
        """Path of a graph's ONNX file."""
        return self.folder / self.manifest.graphs[name].file


def write_list(folder: Path, **listed) -> None:
    """Write `graphs.json` with the digests of all files that lie in the folder; **listed: the other fields of `GraphList`."""
    graphs = {spec.file for spec in listed["graphs"].values()}
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.name not in graphs}
    (folder / GRAPHS).write_text(GraphList(files=files, **listed).to_json(), encoding="utf-8")
