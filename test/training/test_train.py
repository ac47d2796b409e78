"""The training loop on a tiny compact model and painted scenes: it learns, stops and goes on, and fails with a sentence."""

import errno
import json
import os
import random
from dataclasses import replace

import pytest
import torch
from painted import HEIGHT, VOCABULARY, WIDTH, HashedPhrases, paint
from safetensors.torch import load_file
from stopping import stopping
from torch import nn

from pixel_perception.models.compact import Compact
from pixel_perception.models.config import CompactConfig, ImageConfig, LanguageConfig, RegionConfig
from pixel_perception.training import state
from pixel_perception.training.compact import course
from pixel_perception.training.config import ConfigError, parse
from pixel_perception.training.pixel_stage import PixelStage, collate
from pixel_perception.training.processes import Processes
from pixel_perception.training.scenes import Scene
from pixel_perception.training.state import StateError, newest
from pixel_perception.training.tasks.sample import TaskError
from pixel_perception.training.train import Run, TrainingStopped

CONFIG = CompactConfig(ImageConfig(WIDTH, HEIGHT, 32, 8, 1), region=RegionConfig(proposals=4), language=LanguageConfig(hidden=16))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return paint(tmp_path_factory.mktemp("views"))


def stage():
    torch.manual_seed(0)
    directions = nn.functional.normalize(torch.randn(9, 16), dim=-1)
    return PixelStage(Compact(CONFIG), HashedPhrases.width, directions[:6], directions[6:])


def prepare(records, rng, done):
    return collate([Scene(r) for r in records], rng, VOCABULARY, HashedPhrases(), (HEIGHT // 8, WIDTH // 8))


def config(steps, **changes):
    values = {"compact": {"stage": "pixels"}, "batch": {"total": 2, "micro": 2}, "watch": {"log": 1, "pictures": 0, "samples": 1},
              "schedule": {"steps": steps, "warmup": 5, "floor": 0.02},
              "optimiser": {"rate": 1e-3, "weight_decay": 0.02, "clip": 2.0}}  # fmt: skip
    return parse(values | changes, "test")


def run(folder, settings, records, prepare=prepare, network=None):
    processes = Processes(settings.memory)
    return Run(settings, course(settings, network or stage(), prepare, records, processes), folder, processes)


def same(a, b, tolerance=1e-6):
    first, second = load_file(a), load_file(b)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[k], second[k], atol=tolerance) for k in first)


def test_it_learns_and_shows_what(tmp_path, records):
    network = stage()
    batch = prepare(records, random.Random(0), 0)
    before = {k: v.item() for k, v in network(batch).items()}
    run(tmp_path, config(50), records, network=network).go()
    after = {k: v.item() for k, v in network(batch).items()}
    assert all(after[k] < 0.6 * before[k] for k in ("mask", "presence", "heat", "noun", "color")), (before, after)
    assert load_file(tmp_path / "weights.safetensors").keys() == network.state_dict().keys()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 50 and rows[-1]["loss/total"] < rows[0]["loss/total"] and rows[-1]["images_per_second"] > 0
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["step-00000050.png"]  # the one at the end


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, records, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, config(6), records).go()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopping(patch, 3)
        run(parts, config(6), records).go()
    assert newest(parts).name == "state-00000003" and not (parts / "weights.safetensors").exists()
    run(parts, config(6), records).go()
    same(whole / "weights.safetensors", parts / "weights.safetensors")
    assert [path.name for path in parts.glob("state-*")] == ["state-00000006"]


def test_a_finished_run_is_left_alone(tmp_path, records, capsys):
    run(tmp_path, config(1), records).go()
    before = (tmp_path / "weights.safetensors").stat().st_mtime_ns
    run(tmp_path, config(1), records).go()
    assert (tmp_path / "weights.safetensors").stat().st_mtime_ns == before
    assert "finished already, after step 1" in capsys.readouterr().out


def test_a_run_that_diverges_says_so_and_keeps_the_last_state(tmp_path, records):
    seen = []

    def broken(records, rng, done):
        batch = prepare(records, rng, done)
        seen.append(batch)
        if len(seen) > 2:
            batch["phrases"] = batch["phrases"] * float("nan")
        return batch

    said = r"step 2: the loss or its gradient is not finite \(.*presence nan.*state-00000002.*optimiser.rate"
    with pytest.raises(TrainingStopped, match=said):
        run(tmp_path, config(5, watch={"save_steps": 1}), records, broken).go()
    assert all(t.isfinite().all() for t in load_file(newest(tmp_path) / "weights.safetensors").values())


def test_too_little_memory_is_a_sentence_and_a_state(tmp_path, records, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def greedy(records, rng, done):
        batch = prepare(records, rng, done)
        return batch if done == 0 else batch | {"images": batch["images"].expand(1 << 45, -1, -1, -1, -1).clone()}

    said = r"step 1: out of memory; .*state-00000001; lower batch.micro \(2 now.*memory.checkpointing=true"
    with pytest.raises(TrainingStopped, match=said):
        run(parts, config(3), records, greedy).go()
    run(parts, config(3), records).go()
    run(whole, config(3), records).go()
    same(whole / "weights.safetensors", parts / "weights.safetensors")


def test_a_full_disk_leaves_the_state_before_whole(tmp_path, records, monkeypatch):
    save = state.save_file

    def full(tensors, path):
        save(tensors, path)
        if "state-00000002" in str(path) and path.name == "moments.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said = r"state-00000002: cannot be written \(No space left on device\); the state in .*state-00000001 is still whole"
    with monkeypatch.context() as patch, pytest.raises(StateError, match=said):
        patch.setattr(state, "save_file", full)
        run(tmp_path, config(3, watch={"save_steps": 1}), records).go()
    assert [path.name for path in tmp_path.iterdir() if "state" in path.name] == ["state-00000001"]
    run(tmp_path, config(3), records).go()


def test_a_state_of_another_network_or_other_views_is_refused(tmp_path, records):
    run(tmp_path, config(1), records).go()
    larger = replace(CONFIG, image=ImageConfig(WIDTH, HEIGHT, 64, 8, 1))
    larger = PixelStage(Compact(larger), HashedPhrases.width, torch.randn(6, 16), torch.randn(3, 16))
    with pytest.raises(StateError, match=r"weights.safetensors: .*expected \[.*64.*\] as the network has, found \[.*32.*\]: another size"):
        run(tmp_path, config(2), records, network=larger)
    with pytest.raises(TaskError, match="views 4 and this run 3: not the same run"):
        run(tmp_path, config(2), records[:3])


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path, records):
    with pytest.raises(ConfigError, match=r"batch.total: expected a multiple of batch.micro x processes \(2 x 1\), found 3"):
        run(tmp_path, config(1, batch={"total": 3, "micro": 2}), records)
