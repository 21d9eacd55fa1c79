"""The C library's heap while a model trains on a CPU."""

from __future__ import annotations

import ctypes

#: glibc's ``M_MMAP_THRESHOLD`` (malloc.h), and the bytes from which a block is the operating system's own.
_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 2**16


def return_freed_tensors() -> bool:
    """Let a tensor's memory go back to the operating system as soon as it is freed; whether this C library can.

    glibc keeps blocks of up to 32 MiB in one heap, where what backward needs stands between what is freed at once: the
    process comes to hold up to twice what is alive (benchmarks/LOG.md). It holds for the rest of the process.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    return set_option is not None and bool(set_option(_MMAP_THRESHOLD, _LARGE_BLOCK))
