"""Folders written in one step: killed, without space, failing or two at once."""

import multiprocessing
import os
import signal
import time

import pytest

from pixel_perception.bundle import Bundle
from pixel_perception.export.replacing import replacing
from pixel_perception.export.tiny import write_tiny_bundle

FORK = multiprocessing.get_context("fork")


def test_replaces_what_was_there(tmp_path):
    for text in ("first", "second"):
        with replacing(tmp_path / "folder") as work:
            (work / "file").write_text(text)
        assert (tmp_path / "folder" / "file").read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_replaces_without_exchange(tmp_path, monkeypatch):
    """Where the C library knows no renameat2, two renames do it."""
    monkeypatch.setattr("pixel_perception.export.replacing.ctypes.CDLL", lambda *_, **__: object())
    test_replaces_what_was_there(tmp_path)


def test_an_error_leaves_what_was_there(tmp_path):
    write_tiny_bundle(tmp_path / "tiny")
    with pytest.raises(RuntimeError), replacing(tmp_path / "tiny") as work:
        (work / "half").write_text("written")
        raise RuntimeError
    Bundle.open(tmp_path / "tiny")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def _write_for_ever(folder, started):
    while True:
        write_tiny_bundle(folder)
        started.set()


def test_a_killed_writer_leaves_a_whole_bundle(tmp_path):
    """Killed at any moment, the bundle that was there or the new one is there; its leftovers go with the next writer."""
    folder = tmp_path / "tiny"
    for pause in (0.0, 0.03, 0.07, 0.11, 0.16):
        started = FORK.Event()
        process = FORK.Process(target=_write_for_ever, args=(folder, started))
        process.start()
        started.wait(60)
        time.sleep(pause)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        Bundle.open(folder)
    write_tiny_bundle(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_two_writers_do_not_disturb_each_other(tmp_path):
    with replacing(tmp_path / "folder") as one:
        (one / "file").write_text("one")
        with replacing(tmp_path / "folder") as two:
            (two / "file").write_text("two")
        assert (one / "file").exists()
    assert (tmp_path / "folder" / "file").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("limit", [500, 20_000, 60_000, 100_000])
def test_no_space_for_a_bundle(tmp_path, without_space, limit):
    """Wherever it runs out, in a graph or in the tensors: one sentence, and the old bundle stays."""
    before = write_tiny_bundle(tmp_path / "tiny")
    assert max(path.stat().st_size for path in before.folder.iterdir()) > 100_000
    sentence = without_space(limit, lambda: write_tiny_bundle(tmp_path / "tiny"))
    assert f"{tmp_path / 'tiny'}: cannot be written (" in sentence and "expected a writable folder with enough space" in sentence
    assert Bundle.open(tmp_path / "tiny").digest == before.digest
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]
