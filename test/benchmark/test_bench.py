"""Every row on the tiny bundle: what is said, not how fast it is."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pixel_perception.benchmark import command, llama, roofline
from pixel_perception.benchmark.rows import BARS, TORCH, Row, table, take_turns
from pixel_perception.bundle import write_manifest
from pixel_perception.cli import main
from pixel_perception.errors import PerceptionError
from pixel_perception.export.language_graph import language_graph
from pixel_perception.export.tiny import write_tiny_bundle
from pixel_perception.models.configurations import write
from pixel_perception.models.pixellm.config import PixelLMConfig

KEYS = {"name", "ours", "reference", "unit", "ratio", "roofline"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def no_compiler():
    """A machine on which torch finds no C++ compiler: compiling takes longer than all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler")
        yield


@pytest.fixture(scope="module")
def measured(tiny, no_compiler, tmp_path_factory):
    """All rows, one round, and the folder with what was written."""
    out = tmp_path_factory.mktemp("bench")
    arguments = [str(tiny.folder), "--rounds", "1", "--threads", "1", "--instruction", "the mug and the banana", "--out", str(out)]
    assert command.main(arguments) == 0
    return json.loads((out / "bench.json").read_text()), out


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    """A file with the configuration of a PixelLM whose matrices divide into the blocks of int4."""
    config, path = PixelLMConfig.tiny(), tmp_path_factory.mktemp("shape") / "small.json"
    write(replace(config, language=replace(config.language, dim=64, mlp=96)), path)
    return path


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


def test_torch_reads_the_same_language_model(measured):
    row = next(row for row in measured[0]["rows"] if row["name"] == "decode_vs_torch")
    assert row["reference"] > 0 and row["ratio"] == row["ours"] / row["reference"] and row["reached"]
    assert row["details"]["cosine_of_logits"] > 0.999 and "eager in float32" in row["note"]


def test_what_torch_cannot_do_is_missed_in_a_sentence(measured):
    rows = {row["name"]: row for row in measured[0]["rows"] if row["name"] in TORCH[1:]}
    assert all(row["ours"] > 0 and row["reference"] is None and row["reached"] is None for row in rows.values())
    assert "expected a C++ compiler, no-such-compiler or another in $CXX, found none" in rows["decode_vs_torch_compile"]["note"]
    assert all("provenance.assembled" in rows[name]["note"] for name in TORCH[2:])
    assert "not measured" in (measured[1] / "bench.txt").read_text()


def test_a_shape_with_random_weights_is_compared_with_torch(shape, tmp_path):
    arguments = ["bench", "--shape", str(shape), "--rounds", "1", "--threads", "1", "--out", str(tmp_path), "--graphs", str(tmp_path)]
    assert main([*arguments, "--rows", ",".join(TORCH[::2])]) == 0
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.onnx")}
    assert sorted(path.stem for path in kept) == ["image_encoder", "language_model", "pixel_decoder"]
    assert main([*arguments, "--rows", TORCH[0]]) == 0
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    measured = json.loads((tmp_path / "bench-small.json").read_text())
    assert [row["name"] for row in measured["rows"]] == list(TORCH[::2]) and measured["about"]["shape"] == "small, random weights"
    assert all(row["ours"] > 0 and row["reference"] > 0 and 0 < row["roofline"] < 1 for row in measured["rows"])
    # The weights are the same; what they are multiplied with has 8 bits on this side and is bf16 on torch's.
    decode, follow = measured["rows"]
    assert decode["details"]["cosine_of_logits"] > 0.99 and "int4" in decode["note"]
    assert follow["details"]["cosine_of_logits"] > 0.9999 and "3 targets" in follow["note"]


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--shape", "compact"], "expected a PixelLM, found compact"),
    (["--shape", "pixellm-9b"], "configuration: expected one of"),
    (["--shape", "pixellm-7b", "--rows", "follow_fps"], "--rows: expected some of decode_vs_torch"),
    (["bundle", "--shape", "pixellm-7b"], "expected a bundle or --shape"),
    (["--backend", "abacus"], "invalid choice: 'abacus'"),
])  # fmt: skip
def test_what_cannot_be_measured_is_said(arguments, sentence, capsys):
    try:
        code = main(["bench", *arguments])
    except SystemExit as ended:
        code = ended.code
    assert code == 2 and sentence in capsys.readouterr().err


def test_only_the_compact_model_is_measured_from_a_bundle(tmp_path, capsys):
    made = write_tiny_bundle(tmp_path / "bundle")
    write_manifest(made.folder, replace(made.manifest, family="pixellm"))
    assert main(["bench", str(made.folder), "--backend", "onnxruntime-cpu"]) == 2
    assert "expected a bundle of the compact model to measure, found one of pixellm." in capsys.readouterr().err


def test_a_shape_that_memory_does_not_hold_is_refused_before_it_is_made(shape, tmp_path):
    from pixel_perception.benchmark.shape import SHORT, Shape, named
    from pixel_perception.benchmark.subject import backend_of

    config, name = named(str(shape))
    huge = replace(config, language=replace(config.language, dim=1 << 16, mlp=1 << 18, layers=1000))
    subject = Shape(huge, name, tmp_path, backend_of("onnxruntime-cpu", 1), SHORT)
    with pytest.raises(PerceptionError, match=r"small: making and loading its language graph in int4 takes .* GB of memory"):
        subject.decoder.read([], None)
    assert not list(tmp_path.iterdir())


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
    assert roofline.operations_of(path, {"x": np.zeros((1, 3, 12, 12), np.float32)}) == 2 * (8 * 10 * 10) * 27 + 2 * (8 * 10 * 5) * 10


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("int8", 1 + 4 / 32), ("int4", 0.5 + 4 / 32)])
def test_a_token_reads_every_weight_once(precision, size, tmp_path):
    import onnx

    from pixel_perception.benchmark.shape import RandomLlama
    from pixel_perception.export.base_weights import DecoderShape

    shape = DecoderShape(2, 32, 96, 4, 2, 8, 40, 1e-6, 1e4, 64)
    weights = RandomLlama(shape, 0.02)
    onnx.save(language_graph(shape, weights, precision), tmp_path / "graph.onnx")
    count = sum(weights[name].size for name in weights if weights[name].ndim == 2 and name != "embeddings")
    assert roofline.token_of(tmp_path / "graph.onnx") == roofline.Work(2 * count, size * count)
