"""A checkpoint that the disk does not take, or give back: one error, whatever library was at it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from ullme.trainer.resume import UNFINISHED, checkpoints

T = TypeVar("T")

_PROBE_BYTES = 1 << 20


def stored(act: Callable[[Path], None], place: Path) -> None:
    """Act on a checkpoint that is being written.

    Raises:
        ValueError: the disk does not take it.
    """
    try:
        act(place)
    except Exception as error:  # the libraries that write have no common error for a full disk
        if not _of_the_disk(error):
            raise
        earlier = checkpoints(place.parent)
        goes_on = f"from {earlier[-1].name}" if earlier else "at the start"
        free = shutil.disk_usage(place.parent).free / 2**20
        raise ValueError(
            f"checkpoint {str(place)!r} cannot be written ({_reason(error, place.parent)}; {free:.0f} MiB are free); "
            f"make room or check the disk, then give the same command again, which goes on {goes_on}"
        ) from error


def readable(act: Callable[[Path], T], place: Path) -> T:
    """Act on a checkpoint that is being read, and was whole a moment ago.

    Raises:
        ValueError: the disk no longer gives it back.
    """
    try:
        return act(place)
    except OSError as error:
        raise ValueError(
            f"checkpoint {str(place)!r} can no longer be read ({error}); check that every machine sees the folder and "
            "that nothing removes files from it, then give the same command again"
        ) from error


def _of_the_disk(error: Exception) -> bool:
    """Whether writing failed: torch raises RuntimeError, tokenizers a plain Exception with the system's number."""
    return isinstance(error, (OSError, SafetensorError, RuntimeError)) or "(os error " in str(error)


def _reason(error: Exception, folder: Path) -> str:
    """What the system says; torch's own error tells nothing of a full disk, so that another file is tried."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if not isinstance(error, RuntimeError):
        return str(error)
    probe = folder / f"{UNFINISHED}probe"
    try:
        probe.write_bytes(bytes(_PROBE_BYTES))
    except OSError as found:
        return found.strerror or str(found)
    finally:
        probe.unlink(missing_ok=True)
    return str(error).splitlines()[0]
