"""Signs of life between the processes of a run: one that is killed, hangs or fails ends all, and is named.

A process that waits for a dead one in a collective learns it at once, by a broken connection that names nobody, or
never. So each counts in the store by which the group was formed, from a thread of its own, and watches the others.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from ullme import distributed

#: What a process writes into the store in place of its count, once it has gone.
_LEFT, _FAILED = "left", "failed: "

#: Seconds between two signs of life at most; a tenth of the timeout where that is less.
MOST_SECONDS = 5.0

#: Seconds that a process has to end by itself after another was lost, before it is ended.
GRACE_SECONDS = 5.0


class ProcessLostError(ConnectionError):
    """Another process of the run was killed, hangs, or failed; the message names it."""


@contextmanager
def watched(timeout: float) -> Iterator[None]:
    """Inside, no process of the group outlives another by much more than ``timeout`` seconds; 0 does not watch.

    The processes must enter together. A process that waits in a collective which cannot be interrupted is ended after
    a grace, with the message on standard error.

    Raises:
        ProcessLostError: another process gave no sign of life for that long, or failed.
    """
    if timeout <= 0 or not distributed.is_distributed():
        yield
        return
    watch = _Watch(timeout)
    try:
        yield
    except Exception as error:
        reason = watch.reason_of(error)
        watch.leave(f"{_FAILED}{type(error).__name__}: {error}" if reason is None else _LEFT)
        if reason is None:
            raise
        raise ProcessLostError(reason) from error
    except BaseException:
        watch.leave(_LEFT)
        raise
    watch.leave(_LEFT)


class _Watch:
    """A thread that counts for this process and watches the counts of the others."""

    def __init__(self, timeout: float) -> None:
        self._timeout, self._interval = timeout, min(timeout / 10, MOST_SECONDS)
        self._rank = distributed.rank()
        self._others = [rank for rank in range(distributed.world_size()) if rank != self._rank]
        # a connection of its own: one that the process group waits on would keep this thread waiting, too
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = getattr(store, "clone", lambda: store)()
        self._run = self._store.add(f"ullme/runs/{self._rank}", 1)  # as many on every process
        self._put("who", f"host {socket.gethostname()}, pid {os.getpid()}")
        self._put("alive", "0")
        self._put("lost", "")
        dist.barrier()
        self._names = self._read("who")
        self._reason: str | None = None
        self._lost, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ullme-liveness", daemon=True)
        self._thread.start()

    def reason_of(self, error: Exception) -> str | None:
        """Why this error came: another process that was lost; None if it is this process's own."""
        if _is_of_connection(error):
            self._lost.wait(2 * self._timeout)
        return self._reason

    def leave(self, how: str) -> None:
        """Say how this process goes, and stop watching."""
        self._over.set()
        self._thread.join()
        try:
            self._put("alive", how[:1000])
        except RuntimeError:  # the process that keeps the store has gone before
            return
        if how.startswith(_FAILED) and self._rank == 0:  # the store goes with this process: let the others read
            time.sleep(2 * self._interval)

    def _watch(self) -> None:
        seen = dict.fromkeys(self._others, ("", time.monotonic()))
        count = 0
        while not self._over.wait(self._interval):
            count += 1
            try:
                self._put("alive", str(count))
                found = self._read("alive")
                told = [reason for reason in self._read("lost").values() if reason]
            except RuntimeError:
                self._end("process 0, or what launched it, has gone, and with it the store of the group")
                return
            now = time.monotonic()
            seen = {rank: old if old[0] == found[rank] else (found[rank], now) for rank, old in seen.items()}
            reason = told[0] if told else self._lost_of(seen, now)
            if reason is not None:
                self._tell(reason)
                self._end(reason)
                return

    def _lost_of(self, seen: dict[int, tuple[str, float]], now: float) -> str | None:
        for rank, (value, since) in seen.items():
            if value.startswith(_FAILED):
                return f"process {rank} ({self._names[rank]}) {value}"
            if value != _LEFT and now - since > self._timeout:
                return (
                    f"process {rank} ({self._names[rank]}) has given no sign of life for {self._timeout:g} s: it was "
                    "killed or hangs; start the same command again to go on from the last checkpoint"
                )
        return None

    def _tell(self, reason: str) -> None:
        """Tell the others, so that all name the same process."""
        try:
            self._put("lost", reason)
        except RuntimeError:
            return
        if self._rank == 0:  # the store goes with this process
            self._over.wait(2 * self._interval)

    def _end(self, reason: str) -> None:
        """Let this process end by itself, or end it."""
        self._reason = reason
        self._lost.set()
        if self._over.wait(GRACE_SECONDS):
            return
        os.write(2, f"ullme: {reason}; this process waits for it and is ended\n".encode())
        os._exit(1)

    def _put(self, what: str, value: str) -> None:
        self._store.set(f"ullme/{self._run}/{what}/{self._rank}", value)

    def _read(self, what: str) -> dict[int, str]:
        keys = [f"ullme/{self._run}/{what}/{rank}" for rank in self._others]
        return {rank: value.decode() for rank, value in zip(self._others, self._store.multi_get(keys), strict=True)}


def _is_of_connection(error: Exception) -> bool:
    """Whether this is how a collective ends when another process is gone: by a connection, or a timeout."""
    said = str(error).lower()
    return isinstance(error, dist.DistError) or any(name in said for name in ("gloo", "nccl", "connection"))
