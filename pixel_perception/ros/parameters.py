"""The node's parameters: one table, a plain struct, and checking apart from applying."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from pixel_perception.runtime import BACKENDS
from pixel_perception.types import MAX_TEXT

NAME = re.compile(r"[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII)
"""What ROS takes as the beginning of a relative topic name."""
READ_ONLY, UNCONFIGURED, ANY_TIME = "read only", "while unconfigured", "any time"


@dataclass(frozen=True)
class Settings:
    """Values of all parameters; the workers get this and never the node."""

    bundle: str
    backend: str
    threads: int
    cameras: tuple[str, ...]
    use_depth: bool
    autostart: bool
    instruction: str
    score_threshold: float
    max_instances: int
    max_new_tokens: int
    goal_timeout: float
    max_image_age: float
    max_rate: float
    reground_period: float
    reground_min_interval: float
    reground_score_drop: float
    depth_tolerance: float
    tf_timeout: float
    no_image_warning: float


@dataclass(frozen=True)
class Spec:
    """One parameter: default (which gives the type), when it may change, what it is for, and its range."""

    default: bool | int | float | str | list[str]
    change: str
    description: str
    low: float | None = None
    high: float | None = None


SPECS = {
    "bundle": Spec("", UNCONFIGURED, "Folder of the model bundle; empty for the assembled compact bundle in the cache."),
    "backend": Spec("auto", UNCONFIGURED, f"Backend that runs the graphs: {', '.join(BACKENDS)}."),
    "threads": Spec(0, UNCONFIGURED, "CPU threads of the backend; 0 for all cores.", 0, 256),
    "cameras": Spec([""], UNCONFIGURED, "Names of the cameras; [''] is one camera whose topics have no prefix."),
    "use_depth": Spec(True, UNCONFIGURED, "Subscribe to depth images and give centroids in metres."),
    "autostart": Spec(False, READ_ONLY, "Configure and activate at start, for those without a lifecycle manager."),
    "instruction": Spec("", ANY_TIME, f"Standing instruction from activation on, at most {MAX_TEXT} characters."),
    "score_threshold": Spec(0.0, ANY_TIME, "Presence below which a target counts as absent; 0 for the bundle's.", 0, 1),
    "max_instances": Spec(0, ANY_TIME, "Most instances in a topic's answer, best first; 0 for no limit.", 0, 65534),
    "max_new_tokens": Spec(96, ANY_TIME, "Most tokens of an answer.", 1, 1024),
    "goal_timeout": Spec(30.0, ANY_TIME, "Seconds until a goal without a timeout of its own ends.", 0.1, 3600),
    "max_image_age": Spec(1.0, ANY_TIME, "Seconds after its arrival for which a frame may answer a goal.", 0.01, 3600),
    "max_rate": Spec(0.0, ANY_TIME, "Most frames per second and camera that are followed; 0 for all.", 0, 1000),
    "reground_period": Spec(5.0, ANY_TIME, "Seconds after which language looks again; 0 for never.", 0, 3600),
    "reground_min_interval": Spec(1.0, ANY_TIME, "Least seconds between two runs of language for one camera.", 0.01, 3600),
    "reground_score_drop": Spec(0.5, ANY_TIME, "Language looks again when a score falls below this part of its value"
                                               " at grounding; 0 for never.", 0, 1),
    "depth_tolerance": Spec(0.05, ANY_TIME, "Most seconds between the stamps of an image and its depth.", 0, 10),
    "tf_timeout": Spec(0.2, ANY_TIME, "Seconds to wait for a transform at the image's stamp.", 0, 10),
    "no_image_warning": Spec(5.0, ANY_TIME, "Seconds without a frame, though publishers exist, until a warning.", 0.1, 3600),
}  # fmt: skip


def declare(node: Node) -> Settings:
    """Declare every parameter on the node and return their values, overrides included.

    Raises rclpy's ParameterException for an override of another type or out of range, ValueError for one that
    `refusal` refuses.
    """
    for name, spec in SPECS.items():
        node.declare_parameter(name, spec.default, _descriptor(spec))
    settings = from_values({name: node.get_parameter(name).value for name in SPECS})
    sentence = refusal([node.get_parameter(name) for name in SPECS], configured=False)
    if sentence:
        raise ValueError(sentence)
    return settings


def from_values(values: dict) -> Settings:
    """Settings of plain values, a list becoming a tuple."""
    return Settings(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def refusal(changes: Sequence[Parameter], configured: bool) -> str:
    """One sentence why these changes cannot be made, or an empty string. Changes nothing.

    Types, ranges and read-only parameters are rclpy's business (the descriptors say them).
    """
    for change in changes:
        spec = SPECS.get(change.name)
        if spec is None:
            continue
        if configured and spec.change == UNCONFIGURED:
            return f"{change.name}: expected no change while the node is configured; clean it up first, then set it."
        if change.name == "backend" and change.value not in BACKENDS:
            return f"backend: expected one of {', '.join(BACKENDS)}, found {change.value!r}."
        if change.name == "instruction" and len(change.value) > MAX_TEXT:
            return f"instruction: expected at most {MAX_TEXT} characters, found {len(change.value)}."
        if change.name == "cameras":
            names = list(change.value)
            if not names or len(set(names)) != len(names) or (len(names) > 1 and "" in names):
                return f"cameras: expected different names, or [''] for one camera without a prefix, found {names}."
            for name in filter(None, names):
                if not NAME.fullmatch(name):
                    return f"cameras: expected names of letters, digits, _ and / that a topic can begin with, found {name!r}."
    return ""


def updated(settings: Settings, changes: Sequence[Parameter]) -> Settings:
    """Settings with changes that `refusal` let pass; other nodes' parameters (use_sim_time, qos) are left alone."""
    known = {f.name for f in fields(Settings)}
    values = {c.name: tuple(c.value) if SPECS[c.name].default == [""] else c.value for c in changes if c.name in known}
    return replace(settings, **values)


def _descriptor(spec: Spec) -> ParameterDescriptor:
    text = f"{spec.description} Can be changed: {spec.change}."
    descriptor = ParameterDescriptor(description=text, read_only=spec.change == READ_ONLY)
    if spec.low is not None:
        if isinstance(spec.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(spec.low), to_value=float(spec.high))]
        else:
            descriptor.integer_range = [IntegerRange(from_value=int(spec.low), to_value=int(spec.high), step=1)]
    return descriptor
