"""Every row on the tiny bundle: what is said, not how fast it is."""

import json

import numpy as np
import pytest

from pixel_perception.benchmark import command, llama, roofline
from pixel_perception.benchmark.rows import BARS, Row, table, take_turns
from pixel_perception.cli import main
from pixel_perception.export.tiny import write_tiny_bundle

KEYS = {"name", "ours", "reference", "unit", "ratio", "roofline"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    """All rows, one round, and the folder with what was written."""
    out = tmp_path_factory.mktemp("bench")
    arguments = [str(tiny.folder), "--rounds", "1", "--threads", "1", "--instruction", "the mug and the banana", "--out", str(out)]
    assert command.main(arguments) == 0
    return json.loads((out / "bench.json").read_text()), out


def test_every_row_has_its_name_and_numbers(measured):
    rows = {row["name"]: row for row in measured[0]["rows"]}
    assert list(rows) == list(BARS)
    assert all(row.keys() >= KEYS for row in rows.values())
    for name, row in rows.items():
        assert row["ours"] > 0 and row["unit"], name
        assert (row["roofline"] is None) == (name == "memory_mb"), name
        assert row["roofline"] is None or 0 < row["roofline"] < 1, name
    for name in ("ask_vs_reference", "codebook_run_vs_token", "follow_fps", "regions_batched"):
        assert rows[name]["reference"] > 0 and rows[name]["ratio"] > 0, name
    assert rows["codebook_run_vs_token"]["details"]["cosine"] > 0.999
    assert rows["ask_vs_reference"]["details"]["iou"] == pytest.approx(np.ones(2), abs=0.02)


def test_llama_cpp_is_missed_in_a_sentence(measured):
    """Whether it is installed or not, it cannot run a language model that was set by hand."""
    for row in measured[0]["rows"]:
        if row["name"].endswith("llamacpp"):
            assert row["reference"] is None and row["ratio"] is None and not row["reached"]
            assert row["note"] == llama.INSTALL or "provenance.base" in row["note"]


def test_surroundings_are_recorded(measured):
    about, out = measured[0]["about"], measured[1]
    assert about["threads"] == 1 and about["versions"]["onnxruntime"]
    assert all(row["details"]["load"] >= 0 and row["details"]["bandwidth"] > 0 for row in measured[0]["rows"])
    assert about["command"].startswith("pixel-perception bench ") and about["device"]
    assert "follow_fps" in (out / "bench.txt").read_text()
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_rows_of_an_earlier_run_are_kept(measured, tiny, tmp_path, capsys):
    earlier = {row["name"]: row for row in measured[0]["rows"]}
    (tmp_path / "bench.json").write_text(json.dumps(measured[0]))
    assert main(["bench", str(tiny.folder), "--rounds", "1", "--rows", "codebook_run_vs_token", "--out", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["rows"]
    assert [row["name"] for row in printed] == list(BARS)
    assert all((row == earlier[row["name"]]) == (row["name"] != "codebook_run_vs_token") for row in printed)
    (tmp_path / "bench.json").write_text("[]")
    assert main(["bench", str(tiny.folder), "--out", str(tmp_path)]) == 2
    assert "bench.json: expected rows of an earlier run" in capsys.readouterr().err


def test_unknown_rows_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--rows", "follow_fps,speed"])
    assert "--rows: expected some of decode_vs_llamacpp" in (complaint := capsys.readouterr().err) and "found speed" in complaint


def test_the_table_says_what_misses_its_bar():
    rows = {"regions_batched": Row("regions_batched", 300, 600, "ms", 2, 0.25), "follow_fps": Row("follow_fps", 20, 4, "frames/s", 5, 0.3)}
    lines = table(rows).splitlines()
    assert "2.00x" in lines[1] and "MISSED" in lines[1] and "25 %" in lines[1] and "reached" in lines[2]


def test_work_that_times_itself_is_believed():
    medians = take_turns(3, own=lambda: 7.0, other=lambda: None)
    assert medians["own"] == 7 and medians["other"] < 1


def test_operations_are_those_of_the_shapes(tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    held = {"k": (8, 3, 3, 3), "w": (10, 5)}
    nodes = [helper.make_node("Conv", ["x", "k"], ["y"]), helper.make_node("MatMul", ["y", "w"], ["z"])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
                              [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
                              [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in held.items()])  # fmt: skip
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    counted = roofline.work_of(path, {"x": np.zeros((1, 3, 12, 12), np.float32)})
    assert counted.operations == 2 * (8 * 10 * 10) * 27 + 2 * (8 * 10 * 5) * 10 and counted.weights == 0
