"""Time and memory of a piece of work, each repetition in a fresh process, alternatives interleaved. Linux only."""

from __future__ import annotations

import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MIB = 2**20


def measured(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds that ``work`` takes, and by how many bytes the process's memory rose at its highest (resident set)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the highest value starts anew from the present one
    before = _status("VmRSS")
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "added_bytes": _status("VmHWM") - before}


def in_fresh_process(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What a script prints as JSON on its last line."""
    command = [sys.executable, script, *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.strip().splitlines()[-1])


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median, and least and greatest; of one value, the value."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def machine(threads: int) -> str:
    """Processor, threads and memory, for a log entry."""
    cpu = next((x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "?")
    total = next(int(x.split()[1]) for x in _lines("/proc/meminfo") if x.startswith("MemTotal"))
    return f"{cpu}, {threads} threads, {total / MIB:.0f} GiB, Python {platform.python_version()}"


def _status(field: str) -> int:
    return next(int(x.split()[1]) * 1024 for x in _lines("/proc/self/status") if x.startswith(field + ":"))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
