"""What a run was carried out with, beside its run file: rows, machine, versions, and how long each call of it took."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ullme import distributed
from ullme.apps.environment import commit, hardware, versions
from ullme.config import RunConfig
from ullme.data import PairDataset, PairStream
from ullme.trainer.resume import unfinished

RECORD_FILE = "calls.json"
SECONDS = ("seconds", "processor_seconds")


@contextmanager
def recorded(
    config: RunConfig, dataset: PairDataset | PairStream, held_out: PairDataset | None, device: torch.device
) -> Iterator[None]:
    """Write down in ``calls.json`` what is trained on and where, and at the end how many seconds it took.

    These are seconds on the clock, and those of the process on all its processors. A run that was interrupted has an
    entry for each call; one that was killed has no seconds. The first process writes.
    """
    if distributed.rank() != 0:
        yield
        return
    place = config.trainer.output_dir / RECORD_FILE
    call: dict[str, Any] = {"started": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    call |= dict.fromkeys(SECONDS)
    call |= {"device": _named(device), "processes": distributed.world_size()}
    call |= {"commit": commit(), "versions": versions(), "hardware": hardware()}
    rows = {"train": row_counts(dataset), "held_out": row_counts(held_out)}
    content = {"rows": rows, "calls": [*_calls(place), call]}
    _write(place, content)
    start = _now()
    yield
    call |= {name: round(now - then, 1) for name, now, then in zip(SECONDS, _now(), start, strict=True)}
    _write(place, content)


def seconds_taken(folder: Path) -> dict[str, float]:
    """What all calls of the run in a folder took together, by the names of ``SECONDS``; without killed ones."""
    calls = _calls(folder / RECORD_FILE)
    return {name: round(sum(call.get(name) or 0.0 for call in calls), 1) for name in SECONDS}


def row_counts(dataset: PairDataset | PairStream | None) -> dict[str, int] | None:
    """Rows of each source; None where they are streamed and so not counted, or there is no data."""
    if not isinstance(dataset, PairDataset):
        return None
    return {name: len(rows) for name, rows in zip(dataset.sources, dataset.source_rows(), strict=True)}


def _now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _calls(place: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(place.read_text(encoding="utf-8"))["calls"])
    except (OSError, ValueError, TypeError, KeyError):
        return []  # a record is no reason to stop a training


def _write(place: Path, content: dict[str, Any]) -> None:
    unfinished(place).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished(place).replace(place)
