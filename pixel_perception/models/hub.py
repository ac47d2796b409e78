"""Checkpoints by the id of their repository: the only place that asks the network, through huggingface_hub and its cache."""

import re
from pathlib import Path

from pixel_perception.models.tensor_files import CheckpointError, weight_files

SMALL = ["*.json", "*.model", "*.txt"]


def local_folder(source: str) -> tuple[Path, str]:
    """The folder of a source, and the commit where it came from a repository: `owner/name`, or `owner/name@revision`.

    A repository's safetensors are fetched, its PyTorch files only where it has no others. Raises CheckpointError.
    """
    if Path(source).is_dir():
        return Path(source), ""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source):
        raise CheckpointError(f"{source}: expected a folder or a repository (owner/name, owner/name@revision), found neither")
    from huggingface_hub import snapshot_download

    name, _, revision = source.partition("@")
    try:
        for weights in ("*.safetensors", "*.bin"):
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=[weights, *SMALL]))
            inner = folder / "hf_model"
            try:
                weight_files(inner if inner.is_dir() else folder)
                break
            except CheckpointError:
                continue
    except Exception as error:  # of many kinds: no network, no such repository, no right to read it
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{source}: expected a folder, or a repository that the hub gives; found neither ({reason})") from None
    return folder, folder.name
