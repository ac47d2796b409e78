"""The processes of a run: who computes what, in which precision, and what they agree on.

One process, several with a copy of the network each (DDP), or several that share one (FSDP2): started by `accelerate launch` or
torchrun, on one machine or more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from pixel_perception.training.config import Memory


class Processes:
    """All processes of a run as seen by one of them."""

    def __init__(self, memory: Memory):
        self.memory = memory
        accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16" if memory.precision == "bf16" else "no")
        self.device, self.rank, self.count = accelerator.device, accelerator.process_index, accelerator.num_processes
        self.main, self.autocast, self.wait = accelerator.is_main_process, accelerator.autocast, accelerator.wait_for_everyone
        self.sharded = memory.shard and self.count > 1
        if self.device.type == "cpu" and self.count > 1:  # torchrun gives each process one thread
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.count))

    def place(self, network: nn.Module, blocks: Sequence[nn.Module], methods: Sequence[tuple[nn.Module, str]] = ()) -> nn.Module:
        """Move a network to its device and spread it; returns what is to be called instead of it.

        What learns is kept in float32, whatever it was. `blocks` are computed again in the backward pass and gathered one by one,
        where `memory` says so; `methods` are modules inside of them that are also used by another method than a call. The network
        keeps its parameters' names; they are DTensors when it is sharded.
        """
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
            elif self.memory.precision == "bf16":
                parameter.data = parameter.data.to(torch.bfloat16)
        network.to(self.device)
        if self.memory.checkpointing:
            for block in blocks:
                recompute(block)
        if self.sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

            mesh = init_device_mesh(self.device.type, (self.count,))
            for module, method in methods:
                fully_shard(module, mesh=mesh)
                register_fsdp_forward_method(module, method)
            for block in blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(network, mesh=mesh)
        elif self.count > 1:
            return nn.parallel.DistributedDataParallel(network, device_ids=[self.device] if self.device.type == "cuda" else None)
        return network

    @contextmanager
    def accumulating(self, network: nn.Module, last: bool) -> Iterator[None]:
        """Gradients travel between processes only with the `last` micro-batch of a step."""
        if self.sharded:
            network.set_requires_gradient_sync(last)  # type: ignore[operator]
        with network.no_sync() if self.count > 1 and not self.sharded and not last else nullcontext():  # type: ignore[operator]
            yield

    def agree(self, *values: float) -> list[float]:
        """The largest of each value over all processes."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, device=self.device, dtype=torch.float64)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tensor.tolist()

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of each value over the processes that have it."""
        if self.count == 1:
            return values
        gathered: list[dict[str, float]] = [{}] * self.count
        torch.distributed.all_gather_object(gathered, values)
        names = dict.fromkeys(name for one in gathered for name in one)
        return {name: _mean([one[name] for one in gathered if name in one]) for name in names}

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> float:
        """Scale gradients to a common norm of at most `most`; returns the norm that they had."""
        norm = nn.utils.clip_grad_norm_(parameters, most)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def whole(tensor: Tensor) -> Tensor:
    """A tensor as one process would have it, on the CPU. Every process must ask."""
    tensor = tensor.detach()
    # A gathered tensor may be a view into a padded buffer, which would be saved with it.
    return tensor.full_tensor().cpu().clone() if isinstance(tensor, DTensor) else tensor.cpu().contiguous()


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, known to every process, placed and spread as `model` is."""
    tensor = tensor.to(model.device)
    if isinstance(model, DTensor):
        return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)
    return tensor


def recompute(block: nn.Module) -> None:
    """Forget a block's activations after its forward pass and compute them again in the backward pass."""
    forward = block.forward

    def light(*args: Any, **kwargs: Any):
        if not (block.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    block.forward = light  # type: ignore[method-assign]


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors in dataclasses, dicts, lists and tuples on a device; everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: to_device(getattr(value, f.name), device) for f in fields(value) if f.init})
    if isinstance(value, dict):
        return {k: to_device(v, device) for k, v in value.items()}
    return type(value)(to_device(v, device) for v in value) if type(value) in (list, tuple) else value


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
