"""Batches side by side on a CPU: threads that each compute one batch with their share of the cores.

One batch on all cores waits at the end of every operation for the slowest core, several batches do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Batches at a time at most: each has activations of its own.
STREAMS = 4


def streams_on(device_type: str) -> int:
    """How many batches are computed at a time."""
    return min(STREAMS, torch.get_num_threads()) if device_type == "cpu" else 1


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item], streams: int) -> Iterator[Result]:
    """The function's values, in the order of the items, computed without gradient by so many threads of a CPU.

    The caller's autocast holds in every thread. What the function raises is raised here, and ends the rest.
    """
    if streams < 2 or len(items) < 2:
        yield from map(function, items)
        return
    threads = torch.get_num_threads()
    half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None

    def run(item: Item) -> Result:
        with torch.no_grad(), torch.autocast("cpu", dtype=half, enabled=half is not None):
            return function(item)

    try:
        with ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(threads // streams,)) as pool:
            yield from pool.map(run, items)
    finally:
        torch.set_num_threads(threads)  # also the number with which later threads begin
