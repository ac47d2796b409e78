"""Files and folders written in one step: killed, without space, failing or two at once."""

import errno
import multiprocessing
import os
import signal
import time

import pytest

from pixel_perception.bundle import Bundle
from pixel_perception.export.tiny import write_tiny_bundle
from pixel_perception.writing import WritingError, replacing, replacing_file, write_text

FORK = multiprocessing.get_context("fork")


def test_replaces_what_was_there(tmp_path):
    for text in ("first", "second"):
        with replacing(tmp_path / "folder") as work:
            (work / "file").write_text(text)
        assert (tmp_path / "folder" / "file").read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_replaces_without_exchange(tmp_path, monkeypatch):
    """Where the C library knows no renameat2, two renames do it."""
    monkeypatch.setattr("pixel_perception.writing.ctypes.CDLL", lambda *_, **__: object())
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


def test_folders_in_the_folder_and_links_to_it(tmp_path):
    """A link to a folder on another disk keeps its target, which is replaced."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "folder")
    for text in ("first", "second"):
        with replacing(tmp_path / "link") as work:
            (work / "inner").mkdir()
            (work / "inner" / "file").write_text(text)
        assert (tmp_path / "disk" / "folder" / "inner" / "file").read_text() == text
    assert (tmp_path / "link").is_symlink() and [p.name for p in (tmp_path / "disk").iterdir()] == ["folder"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("pixel_perception.writing.fcntl.flock", flock)
    test_replaces_what_was_there(tmp_path)


def test_a_file_is_replaced_or_stays(tmp_path, without_space):
    path = tmp_path / "made" / "file"
    write_text(path, "first é")
    with pytest.raises(RuntimeError), replacing_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    sentence = without_space(10, lambda: write_text(path, "second" * 10))
    assert sentence == f"{path}: cannot be written (File too large); expected a writable place with enough space"
    assert path.read_text(encoding="utf-8") == "first é"
    write_text(path, "second")
    assert path.read_text() == "second" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for writer in (replacing, replacing_file):
        sentence = r"file/new: cannot be written \((Not a directory|File exists): .*file"
        with pytest.raises(WritingError, match=sentence), writer(tmp_path / "file" / "new"):
            pass
