"""What a training run is: dataclasses, read strictly from the YAML files in config/train and from `--set key=value`.

A file has one of the sections `pixellm`, `pixelllm` and `compact`, which says what is trained; everything else is common.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from pixel_perception.strict import build, said


class ConfigError(ValueError):
    """A configuration that cannot be used: one sentence that names the file and the field."""


@dataclass(frozen=True)
class PixelLM:
    """Lessons of PixelLM (its sections 3.2 and 5.1, papers_spec A.4 and A.8)."""

    model: str = "pixellm-7b"
    """A configuration of `models.configurations`."""
    questions: int = 3
    """Most questions about an image, where the data set does not ask its own."""
    targets: int = 3
    """Most targets of such a question."""
    refinement: float = 2.0
    """alpha of the target refinement loss; 1 switches it off, as the release does."""
    learns: tuple[str, ...] = ()
    """Beginnings of the names of parameters that learn; LoRA always does."""
    frozen: tuple[str, ...] = ()
    """Exceptions from `learns`."""


@dataclass(frozen=True)
class PixelLLM:
    """Lessons of PixelLLM (its section 5.1, papers_spec B.1 and B.8)."""

    stage: Literal["trace", "referring", "segmentation", "dense_captioning"]
    model: str = "pixelllm-t5xl"
    scale: tuple[float, float] = (1.0, 1.0)
    """Least and largest size of the image's longer side, as a share of the frame's; what does not fit is cropped."""
    flip: bool = False
    """Mirror every other image: only where texts do not say left or right."""
    texts: int = 1
    """Most texts about an image: expressions, or objects with captions."""
    context: int = 8
    """Most tokens of the text prompt."""
    places: Literal["position", "words"] = "position"
    """Tokens take the places of utterances by relative position (the release), or of their own words (the paper)."""


@dataclass(frozen=True)
class Compact:
    """Lessons of the compact model, on rendered views."""

    stage: Literal["pixels", "language"]
    views: str = ""
    """Folder of rendered views; `--data views=PATH`."""
    assets: str = ""
    """Asset folder, for its nouns and colours; `--data assets=PATH`."""


@dataclass(frozen=True)
class Batch:
    """`total` samples make one step of the optimiser; each process takes `micro` of them at a time and accumulates."""

    total: int = 8
    micro: int = 1


@dataclass(frozen=True)
class Schedule:
    """How long, and how the rates rise and fall. Either `steps` or `minutes` is the budget."""

    steps: int | None = None
    minutes: float | None = None
    warmup: int = 0
    decay: Literal["cosine", "linear", "none"] = "cosine"
    floor: float = 0.0
    """Share of the rate that is left at the end of a cosine."""


@dataclass(frozen=True)
class Optimiser:
    """AdamW. Vectors (biases, norms) do not decay."""

    rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 1.0
    factors: Mapping[str, float] = field(default_factory=dict)
    """Beginnings of parameter names, and what their rate is multiplied with; the longest that fits counts."""
    layer_decay: float = 1.0
    """Factor on the rate of EVA-02 from each block to the one before it."""


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of the language model's projections."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    modules: tuple[str, ...] = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Memory:
    """What is traded for memory."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: computation in bfloat16, and frozen weights are kept in it; what learns is kept in float32."""
    checkpointing: bool = False
    """Compute the blocks' activations again in the backward pass."""
    shard: bool = False
    """Spread weights, gradients and moments over the processes (FSDP2)."""
    workers: int = 2
    """Threads that prepare batches ahead; 0: none."""


@dataclass(frozen=True)
class Watch:
    """How often something is written down, in steps; 0: never."""

    log: int = 20
    pictures: int = 500
    samples: int = 3
    """Samples in a picture."""
    save_minutes: float = 10.0
    save_steps: int = 0
    """Save also after every so many steps."""


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run."""

    schedule: Schedule
    optimiser: Optimiser
    batch: Batch = field(default_factory=Batch)
    data: Mapping[str, float] = field(default_factory=dict)
    """Data sets and how often each is drawn, relative to the others."""
    split: str = "train"
    start: str | None = None
    """Weights to begin with: the folder of a model, or weights.safetensors of the compact model's stage before. None: random ones."""
    tokenizer: str | None = None
    """Folder of the papers' tokenizer; None: the one in `start`."""
    pixellm: PixelLM | None = None
    pixelllm: PixelLLM | None = None
    compact: Compact | None = None
    lora: Lora | None = None
    memory: Memory = field(default_factory=Memory)
    watch: Watch = field(default_factory=Watch)
    seed: int = 0

    @property
    def system(self) -> str:
        """The section that is there: "pixellm", "pixelllm" or "compact"."""
        return next(name for name in SYSTEMS if getattr(self, name) is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON have them; `parse` reads them again."""
        return _plain(asdict(self))


SYSTEMS = ("pixellm", "pixelllm", "compact")


def read(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """A YAML file with `overrides` ("optimiser.rate=1e-4", ...) put into it. Raises ConfigError."""
    values = _load(Path(path))
    for override in overrides:
        _put(values, override)
    return parse(values, str(path))


def parse(values: Mapping[str, Any], where: str) -> TrainConfig:
    """A configuration out of plain values; `where` begins every complaint. Raises ConfigError."""
    config = build(TrainConfig, values, where, ConfigError)
    present = [name for name in SYSTEMS if getattr(config, name) is not None]
    if len(present) != 1:
        raise ConfigError(f"{where}: expected one of the sections {', '.join(SYSTEMS)}, found {' and '.join(present) or 'none'}")

    def check(name: str, sound: bool, expected: str) -> None:
        if not sound:
            value: Any = config
            for part in name.split("."):
                value = getattr(value, part)
            raise ConfigError(f"{where}: {name}: expected {expected}, found {said(value)}")

    schedule = config.schedule
    if (schedule.steps is None) == (schedule.minutes is None):
        found = "neither" if schedule.steps is None else "both"
        raise ConfigError(f"{where}: schedule: expected either steps or minutes, found {found}")
    check("schedule.steps", schedule.steps is None or schedule.steps > 0, "1 or more")
    check("schedule.minutes", schedule.minutes is None or schedule.minutes > 0, "more than 0")
    check("schedule.warmup", schedule.warmup >= 0, "0 or more")
    check("schedule.floor", 0 <= schedule.floor <= 1, "0 to 1")
    check("batch.micro", config.batch.micro > 0, "1 or more")
    check("batch.total", config.batch.total > 0, "1 or more")
    check("optimiser.rate", config.optimiser.rate > 0, "more than 0")
    check("optimiser.clip", config.optimiser.clip > 0, "more than 0")
    check("optimiser.layer_decay", 0 < config.optimiser.layer_decay <= 1, "more than 0, at most 1")
    check("data", all(w >= 0 for w in config.data.values()), "weights of 0 or more")
    check("data", bool(config.data) == (config.system != "compact"), "weights by data set, and none for the compact model's views")
    check("lora", config.lora is None or config.system == "pixellm", "this section with pixellm only, as the others bring their own")
    if config.pixellm is not None:
        check("pixellm.questions", config.pixellm.questions > 0, "1 or more")
        check("pixellm.targets", config.pixellm.targets > 0, "1 or more")
    if config.pixelllm is not None:
        check("pixelllm.scale", 0 < config.pixelllm.scale[0] <= config.pixelllm.scale[1], "two shares, the smaller first")
        check("pixelllm.texts", config.pixelllm.texts > 0, "1 or more")
    return config


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are those of YAML 1.2: 1.1 reads 1e-4, which has no point, as a text."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
                              list("-+.0123456789"))  # fmt: skip


def _load(path: Path) -> dict[str, Any]:
    """The fields of a YAML file. Raises ConfigError."""
    try:
        values = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected fields with values, found {said(values)}")
    return values


def _put(values: dict[str, Any], override: str) -> None:
    """Put "section.field=value" into plain values, the value written as in YAML. Raises ConfigError."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected key=value, such as optimiser.rate=1e-4")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {parent} is a value and has no field {last!r}")
    try:
        values[last] = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: expected a value as YAML writes it, found {text!r}") from None


def _plain(value: Any) -> Any:
    """Mappings and tuples as YAML and JSON have them."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def flat(values: dict, above: str = "") -> dict[str, object]:
    """Nested fields as "section.field"."""
    out: dict[str, object] = {}
    for key, value in values.items():
        out |= flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return out
