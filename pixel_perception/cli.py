"""`pixel-perception`: one command, one sub-command per job.

Nothing heavy is imported before a sub-command runs, so that `--help` answers at once and needs no torch. A mistake of the
user ends in one sentence on stderr and exit code 2; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

COMMANDS = {
    "ask": ("pixel_perception.commands", "ask", "answer one instruction about one image"),
    "demo": ("pixel_perception.demo.run", "main", "camera, node and client as ROS 2 processes; pictures in a folder"),
    "inspect": ("pixel_perception.bundle_commands", "inspect", "show what a bundle holds, and verify it"),
    "bundle": ("pixel_perception.bundle_commands", "bundle", "verify a bundle that came from elsewhere"),
    "assemble": ("pixel_perception.commands", "assemble", "put a bundle together from base weights and trained parts"),
    "evaluate": ("pixel_perception.evaluation.command", "main", "score a model on simulated scenes, photographs or data sets"),
    "bench": ("pixel_perception.benchmark.command", "main", "measure speed and memory beside what they are compared with"),
    "simulate": ("pixel_perception.commands", "simulate", "render scenes with ground truth"),
    "data": ("pixel_perception.training.tasks.check", "main", "check a data set's folder, or show what a model would see of it"),
    "train": ("pixel_perception.training.train", "main", "teach a network what a configuration says: both papers' and the compact one"),
    "export": ("pixel_perception.export.command", "main", "turn a checkpoint into the parts that a bundle needs"),
    "build-engines": ("pixel_perception.export.engines", "main", "build a bundle's TensorRT engines before they are needed"),
    "parity": ("pixel_perception.export.parity", "main", "compare a bundle with the torch model it came from"),
    "checkpoint": ("pixel_perception.models.checkpoint_command", "main", "published weights to a model folder, or how they would map"),
    "oracle": ("pixel_perception.evaluation.oracle", "main", "compare the papers' networks with reference numbers"),
    "record": ("pixel_perception.demo.record", "main", "make the recording that the demo plays"),
}  # fmt: skip
"""Name: (module, function that takes the arguments after the name, one line of help)."""

EXTRAS = {
    "torch": "train", "transformers": "train", "peft": "train", "onnxscript": "export", "mujoco": "bench", "scipy": "bench",
    "pycocotools": "train", "pycocoevalcap": "train", "tensorboard": "train", "psutil": "bench", "matplotlib": "bench",
    "accelerate": "train", "tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt", "llama_cpp": "bench",
}  # fmt: skip
"""Which extra of the package brings a module."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one sentence, with defaults shown in the help."""

    def __init__(self, *arguments, **options) -> None:
        options.setdefault("formatter_class", _Formatter)
        super().__init__(*arguments, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        telling = isinstance(action.default, (int, float, str)) and action.default not in (False, argparse.SUPPRESS)
        return f"{text} (default: %(default)s)" if telling and action.option_strings else text


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    try:
        code = run(name, arguments[1:])
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return fail(f"{name}: interrupted", 130)
    except BrokenPipeError:  # `pixel-perception ... | head` is no mistake, and Python must not find out once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        return fail(f"{name}: {sentence}")


def run(name: str, arguments: Sequence[str]) -> int:
    """Run the sub-command `name`; returns the exit code. Raises what it raises."""
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"pixel-perception {version('pixel_perception')}")
        except PackageNotFoundError:
            print("pixel-perception (not installed: run from its sources)")
        return 0
    if name not in COMMANDS:
        return fail(f"no sub-command {name!r}; expected one of {', '.join(COMMANDS)}")
    module, function, _ = COMMANDS[name]
    return int(getattr(importlib.import_module(module), function)(arguments) or 0)


def usage() -> str:
    """Text of `pixel-perception --help`."""
    rows = "\n".join(f"  {name:<14} {line}" for name, (_, _, line) in COMMANDS.items())
    return ("usage: pixel-perception COMMAND ...\n\nLanguage goals about camera images, answered with masks, boxes, captions and "
            f"words placed in the image.\n\n{rows}\n\n`pixel-perception COMMAND --help` says more about each.")  # fmt: skip


def explain(error: Exception) -> str | None:
    """One sentence for an error that the user can do something about; None for a bug."""
    from pixel_perception.errors import PerceptionError

    if isinstance(error, PerceptionError):
        return error.message
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        if package in EXTRAS:
            return f"needs the Python package {package!r}; install pixel_perception[{EXTRAS[package]}]"
    ours = type(error).__module__.startswith("pixel_perception.")
    return " ".join(str(error).split()) if ours and isinstance(error, ValueError) else None


def fail(sentence: str, code: int = 2) -> int:
    """Print one sentence on stderr; returns `code`."""
    print(f"pixel-perception: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
