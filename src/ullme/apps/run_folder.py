"""A run's folder: whether it can be one, and the run file in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ullme.config import RunConfig, read_run_file
from ullme.trainer.resume import UNFINISHED, checkpoints, fault, flush, remove_unfinished, unfinished
from ullme.trainer.resume_ranks import on_main

RUN_FILE = "run.yaml"
MODEL_FOLDER = "model"
LOCK_FILE = ".lock"

#: What may differ when a run is resumed: how long, how often and how fast, but not what is learned from what. The rows
#: of a process may, with the number of processes: the checkpoint knows the rows of a step, and the trainer compares.
FREE_ON_RESUME = frozenset(
    f"trainer.{name}"
    for name in (
        "num_train_epochs max_steps chunk_tokens per_device_train_batch_size per_device_eval_batch_size "
        "gradient_checkpointing logging_steps save_steps save_total_limit eval_steps report_to run_name use_cpu "
        "fsdp ddp_timeout rank_timeout "
        "dataloader_num_workers resume output_dir rank_agreement"
    ).split()
)


def require_own_folder(config: RunConfig) -> None:
    """Pass if the run's folder is new or empty, or holds this very run, to be resumed, or one that has learned nothing.

    Raises:
        ValueError: the folder cannot be one, is in use by something else, or by a run that learns something else.
    """
    folder = config.trainer.output_dir
    _require_writable(folder)
    if not folder.exists() or all(path.name.startswith((UNFINISHED, LOCK_FILE)) for path in folder.iterdir()):
        return
    kept = folder / RUN_FILE
    name = f"trainer.output_dir: {str(folder)!r}"
    if not kept.is_file():
        raise ValueError(f"{name} is not empty and holds no run; name a new folder or empty this one")
    if not _has_learned(folder):
        return
    if not config.trainer.resume:
        raise ValueError(f"{name} holds a run and trainer.resume is false; name a new folder, or set it to true")
    for key, before, now in _differences(read_run_file(kept), config):
        raise ValueError(
            f"{name} holds a run with {key}={before!r}, and this one has {now!r}; name a new folder, or set {key} back"
        )


@contextmanager
def folder_to_oneself(config: RunConfig) -> Iterator[None]:
    """The run's folder, made ready and kept from other commands; the system lets go of it with the process.

    Raises:
        ValueError: another command trains in it, or has since it was looked at, so that it holds another run now.
    """
    folder = config.trainer.output_dir
    lock = FileLock(folder / LOCK_FILE, timeout=0)

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"trainer.output_dir: another command trains in {str(folder)!r}; wait for its end, or name a new folder"
            ) from None
        require_own_folder(config)
        _prepare(config)

    try:
        on_main(prepare)
        yield
    finally:
        lock.release()


def _prepare(config: RunConfig) -> None:
    """Remove what a killed process left half-written, and put the run file into the folder."""
    folder = config.trainer.output_dir
    remove_unfinished(folder)
    for leftover in folder.glob(f".{MODEL_FOLDER}-*"):  # as models.io names what it writes
        shutil.rmtree(leftover, ignore_errors=True)
    place = folder / RUN_FILE
    flush(config.save(unfinished(place)))
    unfinished(place).replace(place)
    flush(folder)


def _has_learned(folder: Path) -> bool:
    """Whether there is a model in a run's folder, or a checkpoint, or a whole one that a killed process was moving."""
    moved = folder.glob(f"{UNFINISHED}*{PREFIX_CHECKPOINT_DIR}-*")
    return (folder / MODEL_FOLDER).exists() or bool(checkpoints(folder)) or any(fault(path) is None for path in moved)


def _require_writable(folder: Path) -> None:
    """Raise unless the folder is there, or can be made, and files can be put into it."""
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"trainer.output_dir: {str(folder)!r} cannot be made, {str(place)!r} is a file; name another")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"trainer.output_dir: {str(folder)!r} cannot be written; name another or change its owner")


def _differences(before: RunConfig, now: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys, with both values, in which two runs learn something else."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    for key in sorted(old.keys() | new.keys()):
        watched = key not in FREE_ON_RESUME and not key.startswith(("eval.", "data.eval"))
        if watched and old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping with dotted keys."""
    if not isinstance(value, dict | list):
        return {key: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for name, inner in items for k, v in _flat(inner, f"{key}.{name}".lstrip(".")).items()}
