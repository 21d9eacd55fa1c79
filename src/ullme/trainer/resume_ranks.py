"""What one process finds, or fails at, every process knows: none waits for another that has given up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

from ullme import distributed

T = TypeVar("T")


def together(act: Callable[[], T]) -> T:
    """Act in every process; no one goes on before all have, and if one fails, all fail.

    Raises:
        ValueError: another process failed; the message says which, and at what.
    """
    if not distributed.is_distributed():
        return act()
    found: T | None = None
    failure: Exception | None = None
    try:
        found = act()
    except Exception as error:  # whatever it is: the others are told, and it is raised again
        failure = error
    told: list[Any] = [None] * distributed.world_size()
    dist.all_gather_object(told, None if failure is None else str(failure) or type(failure).__name__)
    if failure is not None:
        raise failure
    for rank, message in enumerate(told):
        if message is not None:
            raise ValueError(f"process {rank} failed: {message}")
    return cast(T, found)


def on_main(act: Callable[[], T]) -> T:
    """Act in the main process; every process gets what it finds, or fails with it.

    Raises:
        ValueError: the main process failed; the message says at what.
    """
    found = [together(lambda: act() if distributed.rank() == 0 else None)]
    if distributed.is_distributed():
        dist.broadcast_object_list(found, src=0)
    value: Any = found[0]
    return value
