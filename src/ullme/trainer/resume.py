"""Whole checkpoints: sealed by a manifest, moved into place in one step, and read only if they are as it says."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

_LOG = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
FORMAT = 1

#: What stands before the name of a folder or file that is being written, of one that makes room for its successor, and
#: of one that is being deleted: none is found by the name of a checkpoint, and what a killed process left is removed.
UNFINISHED, _REPLACED, _DELETED = ".unfinished-", ".unfinished-old-", ".unfinished-deleted-"

#: What stands before the name of a checkpoint that was found damaged.
DAMAGED = "damaged-"

_NAME = re.compile(rf"^{PREFIX_CHECKPOINT_DIR}-(\d+)$")
_BLOCK = 1 << 20


def unfinished(place: Path) -> Path:
    """Where a file or folder is written before it is moved to its place."""
    return place.with_name(UNFINISHED + place.name)


def checkpoints(run_dir: Path) -> list[Path]:
    """The folders that a run's checkpoints have by their names, in the order of their steps."""
    found = {path: _NAME.match(path.name) for path in run_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()}
    steps = {path: int(match.group(1)) for path, match in found.items() if match}
    return sorted(steps, key=lambda path: steps[path])


# ---- Writing ----


def seal(folder: Path) -> None:
    """Write down size and SHA-256 of every file in a folder, and wait until all of it is on the disk.

    From then on :func:`fault` tells whether it still is what was written.
    """
    paths = _files(folder)
    with ThreadPoolExecutor() as pool:
        entries = dict(zip(paths, pool.map(lambda name: _entry(folder / name, flush=True), paths), strict=True))
    content = {"format": FORMAT, "files": entries}
    (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for path in (folder / MANIFEST_FILE, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        flush(path)


def put(new: Path, place: Path) -> None:
    """Move a folder into its place, for good; one that is already there (a step done twice) makes room first."""
    old = place.with_name(_REPLACED + place.name)
    if place.exists():
        place.replace(old)
    new.replace(place)
    flush(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def rotate(run_dir: Path, limit: int | None, newest: Path, best: str | None) -> None:
    """Delete the oldest checkpoints beyond ``limit``, never the newest, which is whole, nor the best.

    Transformers' own ``rotate_checkpoints`` goes by the time of the folders, which a copied or repaired run folder does
    not keep, and deletes in place, so that a killed one leaves half a checkpoint under a whole one's name.
    """
    kept = {newest.resolve(), *([Path(best).resolve()] if best else [])}
    others = [place for place in checkpoints(run_dir) if place.resolve() not in kept]
    for place in others[: max(0, len(others) + len(kept) - limit)] if limit else []:
        gone = place.with_name(_DELETED + place.name)
        place.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)


def remove_unfinished(run_dir: Path) -> None:
    """Remove what a killed process was writing or deleting; a whole checkpoint among it gets its name back.

    A process killed between the two renames of :func:`put` leaves two of them, and none under its name.
    """
    for leftover in sorted(run_dir.glob(f"{UNFINISHED}*")):
        place = run_dir / leftover.name.removeprefix(_REPLACED).removeprefix(UNFINISHED)
        if leftover.is_dir() and _NAME.match(place.name) and not place.exists() and fault(leftover) is None:
            leftover.replace(place)
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- Reading ----


def last_whole(run_dir: Path) -> Path | None:
    """The last whole checkpoint of a run; None where it has none at all.

    A damaged one after it is renamed, with a warning that says what is wrong with it: the run then repeats its steps
    from the one before, to the same result.

    Raises:
        ValueError: there are checkpoints and none is whole; the message says what is wrong with each.
    """
    if not run_dir.is_dir():
        return None
    remove_unfinished(run_dir)
    faults: dict[Path, str] = {}
    for place in reversed(checkpoints(run_dir)):
        found = fault(place)
        if found is None:
            for damaged, what in faults.items():
                _set_aside(damaged, what, place)
            return place
        faults[place] = found
    if faults:
        listed = "; ".join(f"{place.name}: {what}" for place, what in faults.items())
        raise ValueError(
            f"no checkpoint in {str(run_dir)!r} is whole ({listed}); put the files back, or remove these folders to "
            "start again"
        )
    return None


def require_whole(place: Path) -> Path:
    """The checkpoint itself.

    Raises:
        ValueError: it does not exist or is damaged; the message names the file and what is wrong with it.
    """
    found = fault(place) if place.is_dir() else "there is no such folder"
    if found is not None:
        raise ValueError(f"checkpoint {str(place)!r}: {found}; put it back as it was, or use another checkpoint")
    return place


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if every file is what was written."""
    try:
        content: Any = json.loads((folder / MANIFEST_FILE).read_bytes())
        entries = dict(content["files"])
        written = content["format"]
    except FileNotFoundError:
        return f"{MANIFEST_FILE} is missing, so it was not written to its end, or not by this version of ullme"
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{MANIFEST_FILE} cannot be read ({type(error).__name__}: {error})"
    if written != FORMAT:
        return f"{MANIFEST_FILE} has format {written!r} and this version of ullme reads {FORMAT}"
    with ThreadPoolExecutor() as pool:
        return next(filter(None, pool.map(lambda item: _fault_of_file(folder, *item), sorted(entries.items()))), None)


def _fault_of_file(folder: Path, name: str, written: dict[str, Any]) -> str | None:
    path = folder / name
    try:
        size = path.stat().st_size
        if size != written["size"]:
            return f"{name} has {size} bytes and {written['size']} were written"
        return None if _entry(path) == written else f"{name} is not what was written (its SHA-256 differs)"
    except FileNotFoundError:
        return f"{name} is missing"
    except (OSError, TypeError, KeyError) as error:
        return f"{name} cannot be checked ({type(error).__name__}: {error})"


def _set_aside(damaged: Path, what: str, instead: Path) -> None:
    aside = damaged.with_name(DAMAGED + damaged.name)
    shutil.rmtree(aside, ignore_errors=True)
    damaged.replace(aside)
    _LOG.warning(
        "checkpoint %r: %s; it is now %r, to be removed when you have seen it, and the run goes on from %r",
        *(str(damaged), what, aside.name, instead.name),
    )


def _files(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST_FILE)


def _entry(path: Path, *, flush: bool = False) -> dict[str, Any]:
    """A file's line in the manifest; with ``flush`` once its content is on the disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        for block in _blocks(file):
            digest.update(block)
            size += len(block)
        if flush:
            os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def _blocks(file: Any) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block
