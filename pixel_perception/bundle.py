"""A model on disk: a folder with `manifest.json` and the files it names, opened only after every digest matches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixel_perception.errors import PerceptionError
from pixel_perception.strict import build

FORMAT = 2
"""Version of the manifest's layout that this code reads and writes."""
MANIFEST = "manifest.json"
PARITY = "parity.json"
"""How the bundle compares with the torch model that it came from, for each backend that was at hand."""
FILES = ("tokenizer.json", PARITY)
"""What a bundle must hold beside its graphs."""
EMBEDDINGS = "language.safetensors"
"""What one with the graph `language_model` must hold as well: the table that it is fed from."""
FAMILIES = {
    "compact": ("image_encoder", "proposals", "prompt_feature_extractor", "token_fusion", "pixel_decoder", "location_head",
                "language_model"),
    "pixellm": ("image_encoder", "token_fusion", "pixel_decoder", "language_model"),
    "pixelllm": ("image_encoder", "prompt_feature_extractor", "language_encoder", "language_decoder"),
}  # fmt: skip
"""Graphs that a bundle of each family of models must hold; `runtime.families` runs them."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; a symbolic dimension is a string."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph."""

    file: str
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str
    opset: int


@dataclass(frozen=True)
class ImageSpec:
    """The network frame. Normalisation is inside the image encoder's graph."""

    width: int = 384
    height: int = 288
    fill: int = 127


@dataclass(frozen=True)
class Tokens:
    """Ids with a meaning of their own."""

    begin: int = 1
    """Opens the prompt, and the question of the compact model."""
    end: int = 2
    newline: int | None = 198
    """Closes the question of the compact model."""
    segments: tuple[int, ...] = (49152, 49153, 49154, 49155)
    """The codebook: the run that stands for one target."""
    all: int | None = 49156
    """Before the run of the compact model that stands for all of a kind."""
    image: tuple[int, ...] = ()
    """Before and behind the image's tokens, where a family marks them."""


@dataclass(frozen=True)
class Templates:
    """Questions that the model was trained with; {} is what the user says."""

    caption_region: str = "describe"
    narrate: str = "describe the scene"
    segment: str = "{}"
    """For tasks SEGMENT and REFER, about names."""
    answer: str = "{}"
    """For task ANSWER, around a sentence."""
    system: str = ""
    """Before the image."""
    turn: str = "{}"
    """A question as the language model reads it."""


@dataclass(frozen=True)
class Codebook:
    """Levels and tokens per level of one target's group; their product is the length of the run."""

    levels: int = 2
    tokens_per_level: int = 2


@dataclass(frozen=True)
class Thresholds:
    """Least presence probability, least proposal score, and the logit above which a pixel belongs to a mask."""

    presence: float = 0.5
    proposal: float = 0.3
    mask: float = 0.0


@dataclass(frozen=True)
class Detector:
    """How PixelLLM's detector thins out what it finds: of the best peaks, and then of the objects made of them, go those that overlap
    by so much, and the best so many stay."""

    peaks: int = 1000
    proposal_overlap: float = 0.9
    proposals: int = 256
    overlap: float = 0.5
    objects: int = 100


@dataclass(frozen=True)
class Manifest:
    """All that is known of a bundle. `files` maps the name of every file that is not a graph to its SHA-256."""

    name: str
    version: str
    licence: str
    tasks: tuple[str, ...]
    graphs: dict[str, GraphSpec]
    files: dict[str, str]
    family: str = "compact"
    """A key of `FAMILIES`."""
    auto: str = "ANSWER"
    """The task of words for which none is named."""
    context: int = 1024
    """Most tokens of prefix, question and answer together; of an encoder and a decoder, of the answer."""
    image: ImageSpec = field(default_factory=ImageSpec)
    tokens: Tokens = field(default_factory=Tokens)
    templates: Templates = field(default_factory=Templates)
    codebook: Codebook = field(default_factory=Codebook)
    thresholds: Thresholds = field(default_factory=Thresholds)
    detector: Detector = field(default_factory=Detector)
    predicting: bool = False
    """Whether a word's place is told by the state that predicts it, and not by the one that has read it."""
    vocabulary: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    accepted_drift: str = ""
    """Which gate of parity failed and why that was accepted; empty where every gate passed."""
    format: int = FORMAT

    def to_json(self) -> str:
        """Text of `manifest.json`, sealed with a digest of its own contents."""
        raw = dataclasses.asdict(self)
        return json.dumps({**raw, "seal": _seal(raw)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, where: str = MANIFEST) -> Manifest:
        """Parse a manifest; `where` names it in errors. Raises PerceptionError INVALID_BUNDLE."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise _bad(f"{where}: expected JSON, found an error at {error}.") from None
        found = raw.get("format") if isinstance(raw, dict) else None
        if found != FORMAT:
            raise _bad(f"{where}: expected format {FORMAT}, found {found!r}; assemble the bundle again with this version.")
        expected, found = raw.pop("seal", None), _seal(raw)
        manifest = parse(Manifest, raw, where)
        if expected != found:
            raise _bad(f"{where}: expected contents with SHA-256 {expected}, found {found}; the file is damaged or was edited.")
        return manifest


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    folder: Path
    manifest: Manifest
    digest: str
    """SHA-256 of `manifest.json`, which holds the digests of all other files."""

    @staticmethod
    def open(folder: str | Path | None = None) -> Bundle:
        """Read a bundle's manifest and verify every file; None opens `default_folder()`.

        Raises PerceptionError INVALID_BUNDLE naming the file, what was expected of it and what was found.
        """
        bundle = Bundle.listed(folder)
        bundle.check()
        for name, digest in bundle.digests.items():
            verify_file(bundle.folder, name, digest)
        return bundle

    @staticmethod
    def listed(folder: str | Path | None = None) -> Bundle:
        """What a folder's manifest says, with nothing else looked at: to inspect a folder of parts, or a damaged bundle.

        Raises PerceptionError INVALID_BUNDLE where the manifest itself is missing or damaged.
        """
        folder = Path(folder) if folder is not None else default_folder()
        path = folder / MANIFEST
        if not path.is_file():
            raise _bad(f"{path}: expected a bundle's manifest, found no such file; "
                       "assemble the bundle with `pixel-perception assemble` or name its folder.")
        text = path.read_bytes()
        manifest = Manifest.from_json(text.decode("utf-8", "replace"), str(path))
        return Bundle(folder, manifest, hashlib.sha256(text).hexdigest())

    def check(self) -> None:
        """Does the manifest list all that perception needs? Raises PerceptionError INVALID_BUNDLE naming what is missing."""
        manifest, path = self.manifest, self.folder / MANIFEST
        if manifest.family not in FAMILIES:
            raise _bad(f"{path}: family: expected one of {', '.join(FAMILIES)}, found {manifest.family!r}.")
        for name in FAMILIES[manifest.family]:
            if name not in manifest.graphs:
                raise _bad(f"{path}: expected the graph {name!r}, found only {', '.join(manifest.graphs) or 'none'}.")
        for name in (EMBEDDINGS, *FILES) if "language_model" in manifest.graphs else FILES:
            if name not in manifest.files:
                raise _bad(f"{path}: expected a digest of {name}, found only {', '.join(manifest.files) or 'none'}.")
        if len(manifest.tokens.segments) != manifest.codebook.levels * manifest.codebook.tokens_per_level:
            raise _bad(f"{path}: expected tokens.segments to hold levels * tokens_per_level ids, "
                       f"found {len(manifest.tokens.segments)}.")

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of every file that the manifest lists, by file name."""
        return {graph.file: graph.sha256 for graph in self.manifest.graphs.values()} | self.manifest.files

    @property
    def parity(self) -> dict:
        """What `parity.json` says; without backends where nothing was compared."""
        return json.loads(self.file(PARITY).read_text(encoding="utf-8"))

    def graph(self, name: str) -> Path:
        """Path of a graph's ONNX file."""
        return self.folder / self.manifest.graphs[name].file

    def file(self, name: str) -> Path:
        """Path of another file of the bundle."""
        return self.folder / name


def default_folder() -> Path:
    """$PIXEL_PERCEPTION_BUNDLE, else `pixel_perception/bundles/compact` in the user's cache folder."""
    named = os.environ.get("PIXEL_PERCEPTION_BUNDLE")
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pixel_perception" / "bundles" / "compact"


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: str | Path, manifest: Manifest) -> Path:
    """Write `manifest.json` in one step, so that a folder holds either no manifest or a whole one; returns its path."""
    from pixel_perception.writing import write_text  # who only reads bundles needs no safetensors

    write_text(path := Path(folder) / MANIFEST, manifest.to_json())
    return path


def _bad(message: str) -> PerceptionError:
    return PerceptionError("INVALID_BUNDLE", message)


def verify_file(folder: Path, name: str, digest: str) -> None:
    """Raises PerceptionError INVALID_BUNDLE where a listed file is missing or has another digest."""
    path = folder / name
    # A manifest is data: a name must not lead out of the bundle's folder.
    if Path(name).name != name:
        raise _bad(f"{folder / MANIFEST}: expected plain file names, found {name!r}.")
    if not path.is_file():
        raise _bad(f"{path}: expected a file with SHA-256 {digest}, found no such file.")
    found = file_digest(path)
    if found != digest:
        raise _bad(f"{path}: expected SHA-256 {digest}, found {found}; the file is damaged or of another bundle.")


def _seal(raw: dict) -> str:
    """SHA-256 of what a manifest says, however it is laid out."""
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def parse(kind: Any, value: Any, where: str) -> Any:
    """`value`, out of JSON, as `kind` (`strict.build`); `where` names the file. Raises PerceptionError INVALID_BUNDLE."""
    return build(kind, value, where, lambda sentence: _bad(f"{sentence}."))
