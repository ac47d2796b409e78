"""The sub-command: verdicts, exit codes, and the contact sheet."""

import json

import numpy as np
import pytest
from PIL import Image

from pixel_perception.training.tasks import check
from pixel_perception.training.tasks.registry import DATA_SETS
from pixel_perception.training.tasks.sample import TaskError


def test_sound(make, capsys):
    assert check.main(["check", "refcoco", str(make("refcoco"))]) == 0
    assert capsys.readouterr().out == "train: 2 samples, all sound\ntestA: 1 samples, all sound\n"


def test_damaged(make, edit, capsys):
    folder = make("visual_genome")
    edit(folder / "train.json", lambda v: v["annotations"][1].update(bbox=[1, 2, "x", 4]))
    assert check.main(["check", "visual_genome", str(folder)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "train: 1 samples, 1 of them damaged\n"
    assert printed.err == f"{folder}/train.json: annotations[1] (id 2): bbox[2]: expected a number, found 'x'\n"
    assert check.main(["check", "visual_genome", str(folder), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["splits"] == {"train": {"samples": 1, "damaged": 1}} and said["problems"][0]["field"] == "bbox[2]"


def test_refusals(make, tmp_path):
    for words, said in ((["imagenet", str(tmp_path)], "unknown data set"), (["muse", str(tmp_path / "none")], "found no folder"),
                        (["muse", str(tmp_path), "--split", "dev"], "no split 'dev'")):  # fmt: skip
        for verb in (["check"], ["show", "--out", "x.png"]):
            with pytest.raises(TaskError, match=said):
                check.main([*verb, *words])
    with pytest.raises(TaskError, match="no sub-command"):
        check.main(["cheque"])
    with pytest.raises(TaskError, match="name of a picture"):
        check.main(["show", "muse", str(make("muse")), "--out", str(tmp_path / "sheet.nothing")])


def test_list(capsys):
    assert check.main(["list"]) == 0
    assert all(f"{name}\n" in capsys_out for capsys_out in [capsys.readouterr().out] for name in DATA_SETS)


@pytest.mark.parametrize("name", [n for n in DATA_SETS if not n.startswith("multi_") or n == "multi_refcoco"])
def test_sheet(make, tmp_path, name, capsys):
    folder, out = make(name), tmp_path / "sheet.png"
    assert check.main(["show", name, str(folder), "--out", str(out), "--count", "2", "--split", "train"]) == 0
    first = np.asarray(Image.open(out))
    assert first.ndim == 3 and first.shape[1] >= 420 and first.std() > 20
    check.main(["show", name, str(folder), "--out", str(out), "--count", "2", "--split", "train"])
    assert (np.asarray(Image.open(out)) == first).all()
