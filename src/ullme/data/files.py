"""The files that a source's path names: one, or all that fit a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ullme.data.wording import nearest

_MARKS = "*?["


def is_pattern(path: str) -> bool:
    """Whether a path stands for the files that fit it, as ``data/part-*.parquet`` does."""
    return any(mark in path for mark in _MARKS) and not Path(path).exists()


def files_of(path: str) -> list[str]:
    """The path itself, or the files that fit it in the order of their names; ``**`` stands for folders at any depth.

    Raises:
        ValueError: no file fits the pattern.
    """
    path = os.path.expanduser(path) if path.startswith("~") else path
    if not is_pattern(path):
        return [path]
    found = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
    if not found:
        raise ValueError(f"{path}: no file fits this pattern{_nearest_folder(path)}; correct it")
    return found


def labels_of(files: Sequence[str], name: str) -> list[str]:
    """What stands before a row's number in its id: the source's name, or where it has several files each file's.

    Files are named from the folder on that they have in common.
    """
    if len(files) == 1:
        return [name]
    root = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    return [str(Path(os.path.relpath(file, os.path.dirname(root)))) for file in files]


def _nearest_folder(path: str) -> str:
    """The end of an error about a pattern: what is wrong with the folder before its first mark."""
    parts = Path(path).parts
    fixed = next(i for i, part in enumerate(parts) if any(mark in part for mark in _MARKS))
    folder = Path(*parts[:fixed])
    if folder.is_dir():
        return f"; {str(folder)!r} has {len(list(folder.iterdir()))} entries"
    near = nearest(folder.name, [p.name for p in folder.parent.iterdir()]) if folder.parent.is_dir() else None
    return f"; there is no folder {str(folder)!r}" + (f", did you mean {str(folder.parent / near)!r}?" if near else "")
