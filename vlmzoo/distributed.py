"""The only file that asks for a rank: sums, gathers and the main process."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vlmzoo.types import RunError


def active() -> bool:
    """Whether several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together, 1 when alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0


def device() -> torch.device:
    """Where this process's model belongs: its own accelerator, or the CPU."""
    from accelerate import PartialState

    return PartialState().device


def barrier() -> None:
    """Wait for all processes."""
    if active():
        dist.barrier()


def start() -> None:
    """Join the group of processes that the launcher started, if it started several.

    Raises:
        RunError: see :func:`check_launch`.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    if not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # else launchers' CPU processes stay strangers
    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    check_launch()


def stop() -> None:
    """Leave the group together; a process that just ends may pull the others down with it."""
    if active():
        dist.barrier()
        # gloo's thread still needs the interpreter lock to drop the barrier's tensors; if the group is taken down at
        # that moment, by a thread that holds the lock and waits for gloo's, neither ever goes on
        time.sleep(0.2)
        dist.destroy_process_group()


def check_launch(accelerator: Any = None) -> None:
    """Refuse a launch whose processes do not know of each other.

    Args:
        accelerator: also asked how many processes it counts.

    Raises:
        RunError: the launcher announced more processes than joined the group, so each would train alone and
            write into the same folder.
    """
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    joined = world_size() if accelerator is None else accelerator.num_processes
    if wanted != joined:
        raise RunError(
            f"the launcher started {wanted} processes but {joined} joined: each would train alone. "
            "On CPU use: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N -m vlmzoo.train ..."
        )


def sum_over_ranks(values: Tensor) -> Tensor:
    """Element-wise sum over all processes (no gradient)."""
    if active():
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather_objects(value: Any) -> list[Any]:
    """The value of every process, in rank order."""
    if not active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


class _Gather(torch.autograd.Function):
    """Concatenate rows of all ranks; the gradient of a row is summed over the ranks that used it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        sizes = [int(n) for n in gather_objects(rows.shape[0])]
        ctx.start, ctx.stop = sum(sizes[: rank()]), sum(sizes[: rank() + 1])
        widest = max(sizes)  # gloo and nccl gather equal shapes only: pad, then cut
        padded = rows.new_zeros(widest, *rows.shape[1:])
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.stop]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks, [sum of B, ...], in rank order; carries gradients. Row numbers may differ by rank."""
    return _Gather.apply(rows) if active() else rows


def first_row(rows: Tensor) -> int:
    """Position of this rank's first row in :func:`gather_rows`."""
    return sum(int(n) for n in gather_objects(rows.shape[0])[: rank()]) if active() else 0
