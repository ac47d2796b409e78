"""`pixel-perception build-engines`, with TensorRT for RTX ahead of time."""

import json
from pathlib import Path

import pytest

from pixel_perception import cli
from pixel_perception.bundle import FAMILIES
from pixel_perception.export.tiny import write_tiny_bundle
from pixel_perception.runtime.engines import check_engine

pytest.importorskip("tensorrt_rtx")


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
