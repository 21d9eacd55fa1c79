"""A job's shards on several devices, or on several processes of one: each takes the next shard that nobody has."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from ullme.encode.embedder import Load, embedder_of
from ullme.encode.job import Job
from ullme.encode.pipeline import Advance, encode_shards


def on_devices(
    job: Job, shards: Sequence[int], load: Load, batch_size: int, advance: Advance, *, devices: Sequence[str]
) -> None:
    """Write shards with one process per device; each loads the model and reads the source for itself.

    Args:
        job: what is encoded, and where to.
        shards: the shards to write.
        load: the model on a device; has to be picklable.
        batch_size: memory of one batch, in texts of 128 tokens.
        advance: progress.
        devices: for instance ``["cuda:0", "cuda:1"]``; a device named twice gets two processes.

    Raises:
        ValueError: what a process could not do.
        ChildProcessError: a process ended without a word (killed, out of memory).
    """
    context = multiprocessing.get_context("spawn")
    taken = context.Value("q", 0)
    with ExitStack() as stack:
        running: dict[Connection, tuple[str, SpawnProcess]] = {}
        for device in devices[: len(shards)]:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(job, tuple(shards), taken, load, device, batch_size, theirs), daemon=True
            )
            process.start()
            stack.callback(_end, process)
            theirs.close()  # so that the end of the process is the end of what it says
            running[ours] = (device, process)
        _supervise(running, advance)


def _supervise(running: dict[Connection, tuple[str, SpawnProcess]], advance: Advance) -> None:
    """Pass on what the processes say until all have ended."""
    while running:
        for said in wait(list(running)):
            assert isinstance(said, Connection)
            device, process = running[said]
            try:
                message = said.recv()
            except EOFError:
                process.join()
                if process.exitcode:
                    raise ChildProcessError(
                        f"devices: the process on {device} ended with code {process.exitcode}; check that its memory "
                        "suffices, and run the same command again to continue"
                    ) from None
                del running[said]
                continue
            if isinstance(message, str):
                raise ValueError(f"devices: {device}: {message}")
            advance(*message)


def _work(
    job: Job, shards: tuple[int, ...], taken: Any, load: Load, device: str, batch_size: int, out: Connection
) -> None:
    """One process: shards that no other has taken, until there are none."""
    try:
        embedder = embedder_of(load(device), job.options, batch_size)
        encode_shards(
            job, embedder, _untaken(shards, taken), advance=lambda rows, characters: out.send((rows, characters))
        )
    except (ValueError, OSError) as error:  # a user's, told by the parent in one line
        out.send(" ".join(str(error).split()))


def _untaken(shards: tuple[int, ...], taken: Any) -> Iterator[int]:
    while True:
        with taken.get_lock():
            at = taken.value
            taken.value += 1
        if at >= len(shards):
            return
        yield shards[at]


def _end(process: SpawnProcess) -> None:
    process.terminate()
    process.join()
