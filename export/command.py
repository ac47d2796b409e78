"""`pixel-perception export`: a training run becomes the parts of a bundle, once it has proved itself."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pixel_perception.bundle import MANIFEST, Thresholds, file_digest
from pixel_perception.cli import Parser
from pixel_perception.errors import PerceptionError
from pixel_perception.export import eight_bit
from pixel_perception.export.bundle import assemble, load_trained, prove, write_parts
from pixel_perception.export.language_graph import PRECISIONS
from pixel_perception.writing import replacing


def load_run(path: Path):
    """The `Compact` with its language model of a training run: a folder with weights.safetensors of the language
    stage, that file itself, or a folder of parts. Computes in fp32. Raises PerceptionError INVALID_BUNDLE."""
    from safetensors.torch import load_file

    from pixel_perception.models.compact import Compact
    from pixel_perception.models.config import CompactConfig
    from pixel_perception.models.language import Language
    from pixel_perception.training.base import load_language_model

    file = path / "weights.safetensors" if path.is_dir() else path
    parts = path.is_dir() and (path / MANIFEST).is_file()
    if not parts and not file.is_file():
        raise PerceptionError(
            "INVALID_BUNDLE", f"{file}: expected the weights of a training run, found no such file."
        )
    model = Compact(CompactConfig())
    model.language = Language(load_language_model()[0].float(), model.config)
    if parts:
        load_trained(model, path)
        return model.eval()
    state = {
        name.removeprefix("model."): t.float()
        for name, t in load_file(file).items()
        if name.startswith("model.")
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.startswith("language.base.") or "lora_" in name]
    if missing or unexpected:
        wrong = f"{missing[0]} is missing" if missing else f"{unexpected[0]} is not part of it"
        raise PerceptionError(
            "INVALID_BUNDLE", f"{file}: expected weights of the language stage of the compact model; {wrong}."
        )
    return model.eval()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `pixel-perception export`."""
    parser = Parser(
        prog="pixel-perception export",
        description="Export a training run of the compact model. The parts are written only if the bundle\nassembled from them "
        "agrees with torch on real images (see `pixel-perception parity`).\n\n"
        "With --config, export a model folder of the papers, written only if every graph agrees with torch. The\nbundle is served as the "
        "compact one is; with --images its answers are compared too.",
    )
    parser.add_argument("--config", default="compact", metavar="NAME", help="compact, pixellm-7b, pixellm-13b, pixelllm-t5xl, "
                        "pixelllm-small and the others of `pixel-perception checkpoint`")
    parser.add_argument(
        "run", type=Path, help="folder (or weights.safetensors) of a language-stage run, or a folder of parts; with --config a model folder"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the parts, for example weights/compact"
    )
    parser.add_argument("--images", type=Path,
                        help="folder with *.jpg or *.png to compare on; rendered scenes are asked about what they show")
    parser.add_argument(
        "--prompts",
        type=int,
        default=192,
        help="images and questions compared; fewer than 64 different ones prove nothing",
    )
    parser.add_argument("--language", choices=PRECISIONS, default="int8", help="weights of the language model")
    parser.add_argument("--vision", choices=eight_bit.PRECISIONS, default="fp32",
                        help="compact: matrix products of vision (not its convolutions); int8 is for CPUs, and compared like the rest")
    parser.add_argument(
        "--version", default="1", help="version written into the manifest"
    )
    parser.add_argument("--licence", default="not stated", help="with --config: licence of the weights, written into the manifest")
    parser.add_argument(
        "--provenance", type=Path, help="JSON file about run, data and metrics, copied into the manifest"
    )
    for name, value in Thresholds().__dict__.items():
        parser.add_argument(
            f"--{name}-threshold",
            type=float,
            default=value,
            help=f"{name} threshold of the bundle",
        )
    parser.add_argument(
        "--accept-drift",
        metavar="REASON",
        help="write the parts even if they disagree; the manifest says why",
    )
    arguments = parser.parse_args(argv)
    if arguments.config != "compact":
        if arguments.vision != "fp32":
            parser.error(f"--vision {arguments.vision} is for the compact model; vision of {arguments.config} is fp32")
        return _paper(arguments)
    if arguments.images is None:
        parser.error("the following arguments are required: --images")
    provenance = _provenance(arguments.provenance)
    from pixel_perception.export.parity import accepted, compare, read_samples

    samples = read_samples(arguments.images, arguments.prompts)
    model = load_run(arguments.run)
    thresholds = Thresholds(*(getattr(arguments, f"{name}_threshold") for name in Thresholds().__dict__))
    print("exporting graphs ...", flush=True)
    with replacing(arguments.out) as work, tempfile.TemporaryDirectory() as scratch:
        parts = write_parts(
            model, Path(scratch) / "parts", provenance, version=arguments.version, thresholds=thresholds,
            language_precision=arguments.language, vision_precision=arguments.vision,
        )  # fmt: skip
        figures = compare(model, assemble(parts, Path(scratch) / "bundle"), samples)
        print(json.dumps(figures))
        prove(parts, figures, accepted(figures, arguments.out, arguments.accept_drift or ""))
        shutil.copytree(parts, work, dirs_exist_ok=True)
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{arguments.out}: {size / 1e6:.1f} MB, manifest {file_digest(arguments.out / MANIFEST)[:12]}")
    return 0


def _paper(arguments) -> int:
    from pixel_perception.export.expected import expect_configuration
    from pixel_perception.export.pixelllm_bundle import export_pixelllm
    from pixel_perception.export.pixellm_bundle import export_pixellm
    from pixel_perception.export.pixellm_parity import read_samples

    expect_configuration(arguments.config, arguments.run)
    samples = read_samples(arguments.images, arguments.prompts) if arguments.images else ()
    told = {"samples": samples, "accept_drift": arguments.accept_drift or "", "licence": arguments.licence, "version": arguments.version,
            "provenance": _provenance(arguments.provenance)}  # fmt: skip
    export = export_pixellm if arguments.config.startswith("pixellm-") else export_pixelllm
    bundle = export(arguments.config, arguments.run, arguments.out, arguments.language, **told)
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{arguments.out}: {size / 1e6:.1f} MB, manifest {bundle.digest[:12]}")
    if not samples:
        print("graphs were compared on random inputs; compare answers about images with --images, or later with `pixel-perception parity`")
    return 0


def _provenance(path: Path | None) -> dict:
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PerceptionError("INVALID_BUNDLE", f"{path}: expected a JSON object ({error}).") from error
    if not isinstance(values, dict):
        raise PerceptionError(
            "INVALID_BUNDLE", f"{path}: expected a JSON object, found {type(values).__name__}."
        )
    return values
