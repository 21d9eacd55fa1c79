"""Tasks whose data lie in local folders: for machines without a network, and for data of one's own."""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets import get_dataset_config_names
from mteb.abstasks import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from ullme.eval.own import OwnRetrieval, content_hash
from ullme.eval.tasks import known_tasks, with_parts

#: Environment variable that names the data folder when ``data_dir`` is not given.
DATA_DIR_VARIABLE = "ULLME_MTEB_DATA"


def data_folder(data_dir: str | Path | None) -> Path | None:
    """The folder of local task data: the argument, else ``$ULLME_MTEB_DATA``, else None for the hub.

    Raises:
        ValueError: it does not exist.
    """
    given = data_dir if data_dir is not None else os.environ.get(DATA_DIR_VARIABLE)
    if not given:
        return None
    folder = Path(given).expanduser().resolve()
    if not folder.is_dir():
        origin = "data_dir" if data_dir is not None else DATA_DIR_VARIABLE
        raise ValueError(f"{origin}: folder {str(given)!r} does not exist; give the folder that holds <org>/<dataset>")
    return folder


def with_local_data(task: AbsTask, root: Path) -> AbsTask:
    """A copy of the task that reads ``root/<org>/<name>`` in place of the hub dataset ``<org>/<name>``.

    A folder ``root/<org>/<name>@<revision>``, with the revision that the task names, is preferred. The dataset revision
    of the copy, which mteb writes into results, is ``local-`` and a hash of the folder's content. mteb's own task
    objects and metadata are shared by the whole process and stay as they are.

    Raises:
        ValueError: the folder is missing, lacks a subset, or may hold the rows of another version of the task.
    """
    if isinstance(task, AbsTaskAggregate):
        return with_parts(task, [with_local_data(part, root) for part in task.tasks])
    if isinstance(task, OwnRetrieval):
        return task
    own = copy.copy(task)
    folder = _folder(task, root)
    _require_subsets(task, folder)
    dataset = {**task.metadata.dataset, "path": str(folder), "revision": f"local-{content_hash(folder)}"}
    own.metadata = task.metadata.model_copy(update={"dataset": dataset})
    return own


def local_revision(task: AbsTask) -> str | None:
    """What identifies the local data of a task; None for data of the hub."""
    if isinstance(task, AbsTaskAggregate):
        parts = [local_revision(part) for part in task.tasks]
        return None if None in parts else hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:12]
    revision = task.metadata.dataset["revision"]
    return revision.removeprefix("local-") if revision.startswith("local-") else None


@contextmanager
def cache_of(local: str | None) -> Iterator[None]:
    """Keep what ``datasets`` makes of local data apart by their content (``local_revision``).

    It converts a folder with a README once, and finds what it made by the folder's last name and the README alone:
    other data under an equal name would be read for it, and so would the data before a change.
    """
    before = datasets.config.HF_DATASETS_CACHE
    if local is not None:
        datasets.config.HF_DATASETS_CACHE = Path(before) / f"local-{local}"
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


def _folder(task: AbsTask, root: Path) -> Path:
    name, path, revision = task.metadata.name, task.metadata.dataset["path"], task.metadata.dataset["revision"]
    exact = root / f"{path}@{revision}"
    if exact.is_dir():
        return exact
    folder = root / path
    if not folder.is_dir():
        raise ValueError(
            f"task {name!r}: folder {str(folder)!r} is missing; put a copy of the hub dataset {path!r} there, or leave "
            f"data_dir (and {DATA_DIR_VARIABLE}) out to download it"
        )
    older = _earlier_version(task)
    if older:
        raise ValueError(
            f"task {name!r}: {str(folder)!r} also serves {older!r}, which reads another revision, and no folder says "
            f"whose rows it holds; put this task's rows into {exact.name!r} beside it"
        )
    return folder


def _require_subsets(task: AbsTask, folder: Path) -> None:
    if not task.metadata.is_multilingual or task.fast_loading:
        return
    configs = get_dataset_config_names(str(folder))
    there = [s for s in task.metadata.hf_subsets if any(c == s or c.startswith(f"{s}-") for c in configs)]
    absent = [s for s in task.hf_subsets if s not in there]
    if absent:
        raise ValueError(
            f"task {task.metadata.name!r}: {str(folder)!r} has no subset {absent[0]!r}; add it, or ask for "
            f"those that are there (hf_subsets={there}, or their languages)"
        )


def _earlier_version(task: AbsTask) -> str | None:
    """Another task that reads another revision of the same dataset, if this task is a later version (``.v2``)."""
    name, dataset = task.metadata.name, task.metadata.dataset
    if not re.search(r"\.v\d+$", name):
        return None
    for other in known_tasks().values():
        same = other.metadata.dataset["path"] == dataset["path"]
        if same and other.metadata.name != name and other.metadata.dataset["revision"] != dataset["revision"]:
            return other.metadata.name
    return None
