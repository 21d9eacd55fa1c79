"""Ranks, and what crosses them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes share the batch."""
    return dist.get_world_size() if is_distributed() else 1


def global_sum(value: float | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """The sum of a number over all ranks, a float64 scalar."""
    total = torch.as_tensor(value, dtype=torch.float64, device=device).clone()
    if is_distributed():
        dist.all_reduce(total)
    return total


def global_max(value: int, device: torch.device | str = "cpu") -> int:
    """The largest of a whole number over all ranks."""
    largest = torch.tensor(value, dtype=torch.long, device=device)
    if is_distributed():
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def gather_rows(rows_BX: Tensor) -> tuple[Tensor, slice]:
    """The rows of all ranks one after another, and where this rank's stand among them; no gradient crosses.

    Ranks may hold different numbers of rows; the other dimensions must agree.
    """
    if not is_distributed():
        return rows_BX, slice(0, rows_BX.shape[0])
    counts = [torch.zeros((), dtype=torch.long, device=rows_BX.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor(rows_BX.shape[0], device=rows_BX.device))
    sizes = [int(c) for c in counts]
    padded = rows_BX.new_zeros((max(sizes), *rows_BX.shape[1:]))
    padded[: rows_BX.shape[0]] = rows_BX.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    start = sum(sizes[: rank()])
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)]), slice(start, start + sizes[rank()])
