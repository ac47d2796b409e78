"""The engine cache. Engines are built for real, ahead of time, by TensorRT for RTX, which needs no GPU for that."""

import dataclasses
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from pixel_perception.errors import PerceptionError
from pixel_perception.runtime import engine_file
from pixel_perception.runtime.engine_file import check_engine, write_engine
from pixel_perception.runtime.engine_key import EngineKey, Machine, key_of, onnx_digest
from pixel_perception.runtime.engines import EngineCache

trt = pytest.importorskip("tensorrt_rtx")
MACHINE = Machine.ahead_of_time(f"tensorrt_rtx {trt.__version__}", "8.6")
GRAPH = "location_head"
"""Of the tiny bundle: built in half a second."""


@pytest.fixture(scope="module")
def built(tiny, tmp_path_factory):
    """A cache with one engine, its key, and the progress that was reported."""
    cache, done = EngineCache(tmp_path_factory.mktemp("engines")), []
    key = key_of(tiny.graph(GRAPH), "fp16", MACHINE)
    cache.get(key, tiny.graph(GRAPH), lambda name, value: done.append((name, value)))
    return cache, key, done


@pytest.fixture
def cache(built, tmp_path):
    """A cache of one's own with that engine."""
    whole, key, _ = built
    copy = EngineCache(tmp_path / "engines")
    copy.folder.mkdir()
    copy.path(key).write_bytes(whole.path(key).read_bytes())
    return copy


def changed(key, **fields):
    return dataclasses.replace(key, **fields)


def files(folder):
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_an_engine_is_built_once(tiny, built):
    cache, key, done = built
    assert files(cache.folder) == [cache.path(key).name]
    assert {name for name, _ in done} == {GRAPH} and done[-1][1] == 1.0 and [v for _, v in done] == sorted(v for _, v in done)
    before = cache.path(key).stat()
    assert cache.get(key, tiny.graph(GRAPH)) == cache.path(key)
    assert cache.path(key).stat().st_mtime_ns == before.st_mtime_ns
    assert len(check_engine(cache.path(key), key)) > 100_000


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(EngineKey)])
def test_every_field_counts(built, field):
    cache, key, _ = built
    other = changed(key, **{field: "another"})
    assert other.digest != key.digest and cache.path(other) != cache.path(key) and not cache.has(other)
    assert other.differences(dataclasses.asdict(key)) == [f"{field} (expected 'another', found {engines_short(key, field)})"]


def engines_short(key, field):
    text = repr(getattr(key, field))
    return text if len(text) <= 50 else f"{text[:24]}...{text[-10:]}"


def test_a_miss_says_which_field_differed(built):
    cache, key, _ = built
    other = changed(key, driver="560.35.03", device="NVIDIA RTX 4090")
    sentence = cache.why(other)
    assert "the nearest differs in driver (expected '560.35.03', found 'any'), device (expected 'NVIDIA RTX 4090', found 'any')" in sentence
    assert "none was built before" in cache.why(changed(key, graph="proposals")) and "\n" not in sentence


def test_the_digest_covers_external_data(tmp_path):
    path = tmp_path / "language_model.onnx"
    path.write_bytes(b"graph")
    alone = onnx_digest(path)
    (tmp_path / "language_model.onnx.data").write_bytes(b"weights")
    whole = onnx_digest(path)
    (tmp_path / "language_model.onnx.data").write_bytes(b"Weights")
    os.utime(tmp_path / "language_model.onnx.data", (1, 1))  # however coarse the clock is
    assert len({alone, whole, onnx_digest(path)}) == 3


def _truncate(path, key):
    path.write_bytes(path.read_bytes()[:-1000])
    return r"expected an engine of \d+ bytes, found \d+; it is truncated"


def _flip(path, key):
    data = bytearray(path.read_bytes())
    data[-500] ^= 1
    path.write_bytes(data)
    return r"expected an engine with SHA-256 \w+, found \w+; it is damaged"


def _foreign(path, key):
    engine = check_engine(path, key)
    write_engine(path, dataclasses.asdict(changed(key, device="Orin", compute_capability="8.7")), engine)
    return r"differs in device \(expected 'any', found 'Orin'\), compute_capability \(expected '8.6', found '8.7'\)"


def _other(path, key):
    path.write_bytes(b"a text")
    return "expected an engine of this package, found another file"


def _empty(path, key):
    path.write_bytes(b"")
    return "found an empty file"


def _header(path, key):
    path.write_bytes(path.read_bytes()[:40])
    return "expected an engine's header of .* bytes, found a damaged one"


@pytest.mark.parametrize("damage", [_truncate, _flip, _foreign, _other, _empty, _header])
def test_what_is_no_engine_of_ours_is_refused(built, cache, damage):
    _, key, _ = built
    path = cache.path(key)
    with pytest.raises(PerceptionError, match=damage(path, key)) as caught:
        check_engine(path, key)
    assert str(path) in caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize("damage", [_truncate, _foreign])
def test_what_is_refused_is_built_anew(tiny, built, cache, damage, caplog):
    _, key, _ = built
    path = cache.path(key)
    reason = damage(path, key)
    cache.agree(key, {"least_cosine": 1.0})
    with caplog.at_level(logging.WARNING):
        cache.get(key, tiny.graph(GRAPH))
    assert re.search(reason, caplog.text) and "It is built now." in caplog.text
    assert check_engine(path, key) and files(cache.folder) == [path.name]
    assert not cache.has_agreed(key)  # what was found out about the one before says nothing about this one


BUILD = """
import sys
from pathlib import Path
from pixel_perception.runtime.engine_key import EngineKey, Machine, key_of
from pixel_perception.runtime.engines import EngineCache
graph, folder, runtime = sys.argv[1:]
key = key_of(Path(graph), "fp16", Machine.ahead_of_time(runtime, "8.6"))
try:
    EngineCache(folder).get(key, Path(graph), lambda name, done: print(done, flush=True))
    print("engine", flush=True)
except Exception as error:
    print("refused:", error, flush=True)
"""


def builder(graph, folder, **options):
    return subprocess.Popen([sys.executable, "-c", BUILD, str(graph), str(folder), MACHINE.runtime], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **options)  # fmt: skip


def test_of_two_processes_one_builds(tiny, tmp_path):
    both = [builder(tiny.graph(GRAPH), tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [out.splitlines()[-1] for out, _ in said] == ["engine", "engine"]
    assert sum("It is built now." in err for _, err in said) == 1
    assert len(files(tmp_path)) == 1


def children(pid):
    """Process ids whose parent is `pid`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    if int(file.read().rpartition(")")[2].split()[1]) == pid:
                        found.append(int(entry))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("victim", ["builder", "waiting process"])
def test_a_killed_build_leaves_the_cache_valid(tiny, tmp_path, victim):
    """Killed in the middle, whichever process it is: no engine, no orphan that goes on building, and the next build works."""
    graph = tiny.graph("language_model")
    process = builder(graph, tmp_path)
    assert process.stdout.readline().strip() == "0.0"  # the build has begun
    (worker,) = children(process.pid)
    os.kill(worker if victim == "builder" else process.pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=300)
    if victim == "builder":
        assert "expected an engine to be built, but the build was killed by signal 9" in out
    deadline = time.monotonic() + 300
    while os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{worker}")
    assert not list(tmp_path.glob("*.engine"))
    cache, key = EngineCache(tmp_path), key_of(tiny.graph(GRAPH), "fp16", MACHINE)
    left = changed(key_of(graph, "fp16", MACHINE), graph=GRAPH)  # its lock is free, whatever it left
    assert check_engine(cache.get(key, tiny.graph(GRAPH)), key) and left.digest != key.digest
    other, _ = builder(tiny.graph(GRAPH), tmp_path).communicate(timeout=300)
    assert other.splitlines()[-1] == "engine"


def test_what_a_killed_build_left_is_removed(tiny, built, tmp_path):
    _, key, _ = built
    cache = EngineCache(tmp_path)
    work = cache.path(key).with_suffix(".building")
    work.mkdir()
    (work / "engine").write_bytes(b"half of one")
    cache.get(key, tiny.graph(GRAPH))
    assert files(tmp_path) == [cache.path(key).name]


def test_no_space(tiny, tmp_path):
    """The system refuses to write more than 100 kB into one file."""
    limited = builder(tiny.graph(GRAPH), tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))
    out, _ = limited.communicate(timeout=300)
    assert re.search(r"refused: INVALID_BUNDLE: .* cannot be written \(File too large\); expected a writable engine cache", out)
    assert files(tmp_path) == []


def test_a_cache_that_cannot_be_written(tiny, built, tmp_path):
    _, key, _ = built
    (tmp_path / "file").write_text("")
    with pytest.raises(PerceptionError, match=r"file/.*engine: cannot be written \(.*\); expected a writable engine cache"):
        EngineCache(tmp_path / "file" / "engines").get(key, tiny.graph(GRAPH))


def test_another_runtime_than_the_one_installed(tiny, built, tmp_path):
    _, key, _ = built
    with pytest.raises(PerceptionError, match="TensorRT: expected tensorrt 10.3.0, found tensorrt_rtx"):
        EngineCache(tmp_path).get(changed(key, runtime="tensorrt 10.3.0"), tiny.graph(GRAPH))
    assert files(tmp_path) == []


def test_threads_of_one_process_wait_for_each_other(tiny, tmp_path, caplog):
    key = key_of(tiny.graph(GRAPH), "fp16", MACHINE)
    threads = [threading.Thread(target=EngineCache(tmp_path).get, args=(key, tiny.graph(GRAPH))) for _ in range(2)]
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert caplog.text.count("It is built now.") == 1 and len(files(tmp_path)) == 1


def test_how_well_an_engine_agrees_is_kept_beside_it(built, cache):
    _, key, _ = built
    assert not cache.has_agreed(key)
    cache.agree(key, {"against": "onnxruntime-cpu", "least_cosine": 0.999})
    assert cache.has_agreed(key) and not cache.has_agreed(changed(key, driver="560"))
    assert json.loads(cache.path(key).with_suffix(".agreed.json").read_text())["least_cosine"] == 0.999


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert EngineCache().folder == tmp_path / "pixel_perception" / "engines"


def test_the_header_is_json_in_front_of_the_engine(built):
    cache, key, _ = built
    start = cache.path(key).read_bytes()[:4000]
    assert start.startswith(engine_file.MAGIC)
    size = int.from_bytes(start[len(engine_file.MAGIC) : len(engine_file.MAGIC) + 4], "little")
    assert json.loads(start[len(engine_file.MAGIC) + 4 :][:size])["key"] == dataclasses.asdict(key)
