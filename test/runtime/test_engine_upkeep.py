"""What is removed from a cache of engines, and what stays, whatever happens meanwhile."""

import dataclasses
import fcntl
import multiprocessing
import os
import signal
import time

import pytest

from pixel_perception.runtime.engine_file import check_engine, write_engine
from pixel_perception.runtime.engine_key import EngineKey, Machine, conversion_digest
from pixel_perception.runtime.engine_upkeep import entries, prune
from pixel_perception.runtime.engines import EngineCache

FORK = multiprocessing.get_context("fork")
HERE = Machine("tensorrt 10.3.0", "12.6", "560.35", "Orin", "8.7")
KEY = EngineKey("proposals", "0" * 64, conversion_digest(), "auto", "", **dataclasses.asdict(HERE))
DAY = 86400


@pytest.fixture
def put(tmp_path):
    """A function that writes the engine of a key, last used so many days ago."""

    def write(days=0, **fields):
        key = dataclasses.replace(KEY, **fields)
        path = tmp_path / key.file
        write_engine(path, dataclasses.asdict(key), b"engine" * 1000)
        EngineCache(tmp_path).agree(key, {"least_cosine": 1.0})
        os.utime(path, (time.time() - days * DAY,) * 2)
        return path

    return write


@pytest.mark.parametrize(("fields", "why"), [
    ({}, ""), ({"onnx": "1" * 64}, ""), ({"precision": "int4"}, ""), ({"runtime": "onnxruntime 1.31.1"}, ""),
    ({"cuda": "any", "driver": "any", "device": "any"}, ""),
    ({"cuda": "any", "driver": "any", "device": "any", "compute_capability": "8.9"}, ""),  # for another robot
    ({"driver": "570.1"}, "made for another driver (expected '560.35', found '570.1')"),
    ({"device": "Thor", "compute_capability": "11.0"},
     "made for another device (expected 'Orin', found 'Thor'), compute_capability (expected '8.7', found '11.0')"),
    ({"runtime": "tensorrt 10.7.0"}, "made for another runtime (expected 'tensorrt 10.3.0', found 'tensorrt 10.7.0')"),
    ({"conversion": "2" * 64}, "made from its bundle by another version of this package"),
])  # fmt: skip
def test_what_this_machine_cannot_load_says_why(put, tmp_path, fields, why):
    path = put(**fields)
    (entry,) = entries(tmp_path)
    assert entry.path == path and entry.graph == "proposals" and entry.size == path.stat().st_size and entry.useless([HERE]) == why
    assert [reason for _, reason in prune(tmp_path, [HERE], 0)] == ([why] if why else [])
    assert path.exists() == (not why) == path.with_suffix(".agreed.json").exists()


def test_what_was_used_lately_may_stay(put, tmp_path):
    old, new, used = put(40, driver="550"), put(3, driver="555"), put(400)
    assert [entry.path for entry, _ in prune(tmp_path, [HERE], 30)] == [old]
    ((entry, why),) = prune(tmp_path, [HERE], 30, 100)
    assert entry.path == used and why == "not used for 400 days" and new.exists()


def test_what_is_being_built_stays_and_what_a_killed_build_left_goes(put, tmp_path):
    path = put(driver="550")
    work = path.with_suffix(".building")
    work.mkdir()
    (work / "engine").write_bytes(b"half of one")
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert prune(tmp_path, [HERE], 0) == [] and path.exists() and work.exists()
        assert all(entry.busy and not entry.useless([HERE]) for entry in entries(tmp_path))
    assert {entry.path for entry, _ in prune(tmp_path, [HERE], 0)} == {path, work}
    assert not path.exists() and not work.exists()


def _killed_at(folder, step):
    """Prune, and be killed in the place of the removal number `step`."""
    count = 0

    def counted(remove):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count > step:
                os.kill(os.getpid(), signal.SIGKILL)
            return remove(*arguments, **options)

        return call

    os.unlink, os.rmdir = counted(os.unlink), counted(os.rmdir)
    prune(folder, [HERE], 0)


@pytest.mark.parametrize("step", range(4))
def test_killed_in_between_it_leaves_whole_engines(put, tmp_path, step):
    kept, gone = put(), [put(driver=name) for name in ("550", "555")]
    process = FORK.Process(target=_killed_at, args=(tmp_path, step))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    left = [path for path in gone if path.exists()]
    assert len(left) == 2 - (step + 1) // 2
    for path in (kept, *left):
        assert check_engine(path)
    prune(tmp_path, [HERE], 0)
    assert [path.name for path in tmp_path.glob("*.engine")] == [kept.name]


def test_using_an_engine_counts(put, tmp_path):
    put(40)
    assert EngineCache(tmp_path).load(KEY, tmp_path / "proposals.onnx") == b"engine" * 1000
    assert entries(tmp_path)[0].days < 1
