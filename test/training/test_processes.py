"""Several processes make the steps of one: sharded (FSDP2) over gloo, from a state that one process saved."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stopping import stopping
from test_papers import LESSONS, command, home  # noqa: F401

from pixel_perception.cli import main
from pixel_perception.training.config import Batch, Memory
from pixel_perception.training.processes import Processes, recompute, to_device

TOLERANCE = 2e-5
"""Largest difference of any weight or moment after two steps that move weights by 6e-4: sums are taken in another order."""


def test_two_processes_that_share_the_weights_make_the_steps_of_one(home, tmp_path, monkeypatch):  # noqa: F811
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    lora = LESSONS["pixellm"]["lora"] | {"dropout": 0.0}  # two processes would drop other things than one
    memory = {"workers": 0, "checkpointing": True, "shard": True}
    arguments = command(home, tmp_path, "pixellm", 4, lora=lora, optimiser={"rate": 1e-3}, memory=memory)
    assert main([*arguments, "--out", str(whole)]) == 0
    with monkeypatch.context() as patch:
        stopping(patch, 2)
        assert main([*arguments, "--out", str(parts)]) == 130
    before = load_file(parts / "state-00000002" / "weights.safetensors")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["-m", "pixel_perception.training.train"]
    done = subprocess.run([*launch, *arguments[1:], "--out", str(parts)], capture_output=True, text=True, timeout=500,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes which share the weights, 1 x 1 samples a step in each" in done.stdout
    for file in ("weights", "moments"):
        first, second = (load_file(run / "state-00000004" / f"{file}.safetensors") for run in (whole, parts))
        assert first.keys() == second.keys()
        assert max((first[key].double() - second[key].double()).abs().max().item() for key in first) < TOLERANCE
    moved = load_file(parts / "state-00000004" / "weights.safetensors")
    assert max((moved[key] - before[key]).abs().max().item() for key in before) > 20 * TOLERANCE
    one, two = (json.loads((run / "state-00000004" / "state.json").read_text()) for run in (whole, parts))
    assert (one["data"], one["samples"]) == (two["data"], two["samples"])


def test_recomputed_blocks_have_the_same_gradients():
    torch.manual_seed(0)
    block, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 4)), torch.randn(3, 4)
    block(x).square().sum().backward()
    plain = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    recompute(block)
    block(x).square().sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, block.parameters(), strict=True))


def test_what_learns_is_kept_in_float32_and_the_rest_in_bfloat16_where_asked():
    network = torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=torch.bfloat16), torch.nn.Linear(4, 4))
    network[1].requires_grad_(False)
    processes = Processes(Memory())
    processes.memory = Memory(precision="bf16")
    assert processes.place(network, []) is network
    assert [p.dtype for p in network.parameters()] == [torch.float32] * 2 + [torch.bfloat16] * 2


def test_batches_move_whole():
    batch = {"a": [torch.ones(1), "text"], "b": (Batch(), 3)}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].device.type == "meta" and moved["a"][1] == "text" and moved["b"] == (Batch(), 3)


@pytest.mark.parametrize(("values", "expected"), [((0.5, 0), [0.5, 0]), ((1, 2, 3), [1, 2, 3])])
def test_one_process_agrees_with_itself(values, expected):
    assert Processes(Memory()).agree(*values) == expected
