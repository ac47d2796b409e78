"""`pixel-perception inspect` and `pixel-perception bundle verify`: what a bundle holds, and whether it is whole."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from pixel_perception.bundle import Bundle, GraphSpec, TensorSpec, verify_file
from pixel_perception.cli import Parser
from pixel_perception.errors import PerceptionError

WHICH = "bundle or folder of parts; without it $PIXEL_PERCEPTION_BUNDLE, else the bundle in the cache"
MANY = 8
"""A graph's inputs or outputs beyond this number are key/values, and told by their number."""


def inspect(argv: Sequence[str]) -> int:
    """`pixel-perception inspect`."""
    parser = Parser("pixel-perception inspect", description="Verify every file of a bundle and show what its manifest says.")
    parser.add_argument("bundle", nargs="?", help=WHICH)
    parser.add_argument("--json", action="store_true", help="print the manifest itself")
    arguments = parser.parse_args(argv)

    bundle = Bundle.listed(arguments.bundle)
    if wrong := list(filter(None, check_files(bundle).values())):
        raise PerceptionError("INVALID_BUNDLE", wrong[0])
    print(bundle.manifest.to_json() if arguments.json else describe(bundle), end="")
    return 0


def bundle(argv: Sequence[str]) -> int:
    """`pixel-perception bundle`."""
    parser = Parser("pixel-perception bundle", description="Check a bundle that came from elsewhere.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("verify", help="check every file's digest, every graph's interface, and report sizes",
                               description="Check every file of a bundle; exit code 2 and one sentence where one is not as listed.")
    check.add_argument("bundle", nargs="?", help=WHICH)
    check.add_argument("--json", action="store_true", help="print one JSON object")
    return verify(parser.parse_args(argv))


def verify(arguments) -> int:
    """`pixel-perception bundle verify`."""
    bundle = Bundle.listed(arguments.bundle)
    problems = check_files(bundle)
    wrong = list(filter(None, problems.values())) or list(filter(None, check_graphs(bundle).values()))
    files = [{"file": name, "bytes": size(bundle, name), "sha256": digest, "problem": problems[name]}
             for name, digest in bundle.digests.items()]  # fmt: skip
    total = sum(entry["bytes"] for entry in files)
    if arguments.json:
        print(json.dumps({"bundle": str(bundle.folder), "digest": bundle.digest, "bytes": total, "files": files, "problems": wrong}))
    else:
        for entry in files:
            print(f"  {entry['file']:<32}{_amount(entry['bytes'])}  {'damaged' if entry['problem'] else 'as listed'}")
        print(f"{bundle.folder}: {len(files)} files, {total / 1e6:.1f} MB, manifest {bundle.digest}")
    if wrong:
        raise PerceptionError("INVALID_BUNDLE", wrong[0] + (f" ({len(wrong) - 1} more)" if wrong[1:] else ""))
    return 0


def check_files(bundle: Bundle) -> dict[str, str]:
    """File name -> one sentence about what is wrong with it, or an empty string."""
    return {name: _sentence(verify_file, bundle.folder, name, digest) for name, digest in bundle.digests.items()}


def check_graphs(bundle: Bundle) -> dict[str, str]:
    """Graph name -> one sentence about where the graph differs from its entry in the manifest, or an empty string."""
    return {name: _sentence(_check_graph, bundle, name) for name in bundle.manifest.graphs}


def _sentence(check, *arguments) -> str:
    try:
        check(*arguments)
    except PerceptionError as error:
        return error.message
    return ""


def _check_graph(bundle: Bundle, name: str) -> None:
    import onnx

    from pixel_perception.export.bundle import graph_spec

    listed, path = bundle.manifest.graphs[name], bundle.graph(name)
    found = graph_spec(path, onnx.load(path, load_external_data=False), listed.precision)
    for key in (field.name for field in dataclasses.fields(listed)):
        expected, actual = getattr(listed, key), getattr(found, key)
        if expected != actual:
            raise PerceptionError("INVALID_BUNDLE", f"{path}: expected {key} {_plain(expected)}, found {_plain(actual)}.")


def _plain(value: object) -> str:
    return _tensors(value) if isinstance(value, tuple) else str(value)


def size(bundle: Bundle, name: str) -> int:
    """Bytes of a listed file; 0 where it is missing."""
    path = bundle.folder / name
    return path.stat().st_size if path.is_file() else 0


def _amount(count: int) -> str:
    return f"{count / 1e6:>8.1f} MB" if count >= 1e5 else f"{count / 1e3:>8.1f} kB"


def describe(bundle: Bundle) -> str:
    """A whole bundle as lines for people."""
    manifest = bundle.manifest
    total = sum(size(bundle, name) for name in bundle.digests)
    lines = [f"{manifest.name} {manifest.version} ({manifest.licence})", str(bundle.folder), f"sha256 {bundle.digest}",
             f"{total / 1e6:.1f} MB, every digest matches", f"family {manifest.family}, tasks: {', '.join(manifest.tasks)}",
             f"image {manifest.image.width}x{manifest.image.height}, context {manifest.context} tokens, "
             f"presence threshold {manifest.thresholds.presence}", ""]  # fmt: skip
    for name, graph in manifest.graphs.items():
        lines += _graph(bundle, name, graph)
    for name, digest in manifest.files.items():
        lines.append(f"  {name:<28}{_amount(size(bundle, name))}  {digest[:12]}")
    parity = bundle.parity
    lines += ["", f"parity with torch: {parity['prompts']} prompts, {parity['images']} images" if parity["backends"]
              else "parity with torch: no answers were compared"]  # fmt: skip
    for name, figures in parity["backends"].items():
        lines.append(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    for name, figures in parity.get("graphs", {}).items():
        lines.append(f"  {name} on random inputs: " + ", ".join(f"{output} {figure:.4g}" for output, figure in figures.items()))
    if manifest.accepted_drift:
        lines.append(f"accepted drift: {manifest.accepted_drift}")
    lines += ["", f"provenance: {json.dumps(manifest.provenance, indent=1)}", ""]
    return "\n".join(lines)


def _graph(bundle: Bundle, name: str, graph: GraphSpec) -> list[str]:
    return [f"  {name:<28}{_amount(size(bundle, graph.file))}  {graph.sha256[:12]}  {graph.precision}, opset {graph.opset}",
            f"      {_tensors(graph.inputs)}", f"      -> {_tensors(graph.outputs)}"]  # fmt: skip


def _tensors(tensors: Sequence[TensorSpec]) -> str:
    shown = [f"{t.name} {t.dtype} ({', '.join(map(str, t.shape))})" for t in tensors]
    if len(shown) > MANY:
        shown[3:-1] = [f"... {len(shown) - 4} more ..."]
    return "; ".join(shown)
