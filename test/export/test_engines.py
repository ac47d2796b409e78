"""`pixel-perception build-engines`, with TensorRT for RTX ahead of time."""

import dataclasses
import json
from pathlib import Path

import onnx
import pytest

from pixel_perception import cli
from pixel_perception.bundle import FAMILIES
from pixel_perception.errors import PerceptionError
from pixel_perception.export.engine_precision import check_precision
from pixel_perception.export.fused_language import FusedLanguage
from pixel_perception.export.language_graph import language_graph
from pixel_perception.export.tiny import write_tiny_bundle
from pixel_perception.runtime.engine_file import check_engine, write_engine
from pixel_perception.runtime.engine_key import EngineKey, Machine, conversion_digest, key_of
from pixel_perception.runtime.engines import EngineCache

trt = pytest.importorskip("tensorrt_rtx")
RTX = f"tensorrt_rtx {trt.__version__}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny").folder)


def test_every_engine_of_a_bundle_is_built_once(tiny, tmp_path, capsys):
    assert cli.main(["build-engines", tiny, "--ahead-of-time", "8.6", "--out", str(tmp_path), "--json"]) == 0
    engines = json.loads(capsys.readouterr().out)["engines"]
    assert {e["graph"] for e in engines} == set(FAMILIES["compact"])
    for engine in engines:
        assert engine["seconds"] > 0 and engine["compute_capability"] == "8.6" and engine["device"] == "any"
        assert Path(engine["file"]).stat().st_size == engine["bytes"] > len(check_engine(Path(engine["file"])))
    assert cli.main(["build-engines", tiny, "--ahead-of-time", "8.6", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("was there") == len(FAMILIES["compact"]) and "100 %" in printed.err


@pytest.mark.parametrize(("arguments", "said"), [
    (["--ahead-of-time", "8.7"], "compute capability: expected one that engines can be built for ahead of time (7.5, 8.0, 8.6"),
    (["--ahead-of-time", "8.6", "--out", "/proc/engines"], "cannot be written"),
])  # fmt: skip
def test_mistakes_are_one_sentence(tiny, tmp_path, capsys, arguments, said):
    if "--out" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path)]
    assert cli.main(["build-engines", tiny, *arguments, "--json"]) == 2
    printed = capsys.readouterr()
    assert said in printed.err.splitlines()[-1] and "Traceback" not in printed.err and not printed.out


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_without_a_gpu_one_has_to_say_what_for(tiny, capsys):
    assert cli.main(["build-engines", tiny]) == 2
    assert "found no driver of it" in (error := capsys.readouterr().err) and "--ahead-of-time" in error


@pytest.fixture(scope="module")
def languages(tiny, tmp_path_factory):
    """The tiny language model as bundles of every precision hold it: precision -> path."""
    source = Path(tiny) / "language_model.onnx"
    weights, paths = FusedLanguage(onnx.load(source), source), {}
    for precision in ("fp32", "int8", "int4"):
        paths[precision] = tmp_path_factory.mktemp(precision) / "language_model.onnx"
        onnx.save(language_graph(weights.shape, weights, precision), paths[precision])
    return paths


@pytest.mark.parametrize(("stored", "precision", "runtime"), [
    ("int8", "auto", "tensorrt 10.3.0"), ("fp32", "fp16", "tensorrt 8.6.1"), ("int8", "int8", RTX), ("int4", "auto", "tensorrt 10.3.0"),
    ("int4", "int8", RTX), ("int4", "int4", "tensorrt 11.0.0"),
])  # fmt: skip
def test_precisions_that_need_no_reason(languages, stored, precision, runtime):
    check_precision(languages[stored], precision, runtime)


@pytest.mark.parametrize(("stored", "precision", "runtime", "said"), [
    ("int8", "int8", "tensorrt 10.3.0", "expected fp16 or int4, which tensorrt 10.3.0 can run, found int8; use --language fp16"),
    ("int4", "auto", "tensorrt 8.6.1", "expected fp16, which tensorrt 8.6.1 can run, found int4; use --language fp16"),
    ("int8", "int4", RTX, r"expected at least the int8 that .* was compared with torch in, found int4; export .* --language int4"),
    ("fp32", "int8", RTX, "expected at least the fp32 that .*, found int8; .* --accept-drift"),
])  # fmt: skip
def test_precisions_that_a_device_lacks_or_nobody_has_compared(languages, stored, precision, runtime, said):
    with pytest.raises(PerceptionError, match=f"language precision: {said}") as caught:
        check_precision(languages[stored], precision, runtime)
    assert caught.value.code == "INVALID_QUERY" and "\n" not in caught.value.message
    if "drift" in said or "int4; export" in said:
        check_precision(languages[stored], precision, runtime, "it was tried on our scenes")


def test_a_reason_is_kept_with_the_engine(tiny, tmp_path, capsys):
    arguments = ["build-engines", tiny, "--ahead-of-time", "8.6", "--out", str(tmp_path), "--json", "--language", "int4"]
    assert cli.main(arguments) == 2 and not list(tmp_path.glob("*.engine"))  # refused before anything is built
    assert "expected at least the int8" in capsys.readouterr().err
    graph = Path(tiny) / "language_model.onnx"
    cache, machine = EngineCache(tmp_path), Machine.ahead_of_time(RTX, "8.6")
    keys = {precision: key_of(graph, precision, machine) for precision in ("auto", "int4")}
    cache.get(keys["int4"], graph, accepted_drift="it was tried")
    assert cache.last(keys.values()) == keys["int4"] and cache.accepted_drift(keys["int4"]) == "it was tried"
    assert cache.accepted_drift(keys["auto"]) == ""
    assert cli.main(["build-engines", tiny, "--list", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "language_model" in printed and "usable, accepted drift: it was tried" in printed
    assert "1 files of" in printed


def test_listing_and_pruning(tmp_path, capsys):
    """Engines of this and of another TensorRT, one of another machine, and what is no engine."""
    key = EngineKey("proposals", "0" * 64, conversion_digest(), "auto", "", **dataclasses.asdict(Machine.ahead_of_time(RTX, "8.6")))
    old, foreign = dataclasses.replace(key, runtime="tensorrt_rtx 1.0.0"), dataclasses.replace(key, runtime="tensorrt 10.3.0")
    for each in (key, old, foreign):
        write_engine(tmp_path / each.file, dataclasses.asdict(each), b"engine" * 1000)
    (tmp_path / "proposals-damaged.engine").write_bytes(b"nothing")

    def run(*arguments):
        assert cli.main(["build-engines", "--out", str(tmp_path), "--json", *arguments]) == 0
        return {Path(e["file"]).name: e["why"] for e in json.loads(capsys.readouterr().out)["engines"]}

    whys = run("--list")
    assert whys[key.file] == whys[foreign.file] == ""  # nobody here knows what that other library can load
    assert whys[old.file] == f"made for another runtime (expected '{RTX}', found 'tensorrt_rtx 1.0.0')"
    assert whys["proposals-damaged.engine"] == "no whole engine of this package"
    assert set(run("--prune")) == {old.file, "proposals-damaged.engine"}
    assert {path.name for path in tmp_path.glob("*.engine")} == {key.file, foreign.file}
    assert set(run("--prune", "--unused", "1")) == set()
    assert set(run("--prune", "--unused", "0")) == {key.file, foreign.file} and not list(tmp_path.glob("*.engine"))
    with pytest.raises(SystemExit):
        cli.main(["build-engines", "--unused", "3"])
    assert "--unused: expected --prune beside it" in capsys.readouterr().err
