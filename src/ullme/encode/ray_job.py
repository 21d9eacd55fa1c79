"""A job's shards as a Ray Data job: actors that hold the model, on one machine or on many. Needs the extra ``ray``.

Source, output and model have to be on a file system that all nodes see.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ullme.encode.embedder import Load, embedder_of
from ullme.encode.folder import CorpusFolder
from ullme.encode.job import Job
from ullme.encode.pipeline import Advance, encode_shards
from ullme.encode.shards import ShardReader

#: Blocks per actor: enough that a lost one costs little and that the last actor to end is not far behind.
_BLOCKS_PER_WORKER = 16


def on_ray(
    job: Job, shards: Sequence[int], load: Load, batch_size: int, advance: Advance, *, workers: int | None = None
) -> None:
    """Write shards with actors of a Ray cluster: the one of ``RAY_ADDRESS``, the one of this process, or a local one.

    An actor that dies is started again by Ray, and the shards it had not finished are written again; a shard on disk is
    whole. Each actor gets a GPU where the cluster has any.

    Args:
        job: what is encoded, and where to.
        shards: the shards to write.
        load: the model on a device.
        batch_size: memory of one batch, in texts of 128 tokens.
        advance: progress, a shard at a time.
        workers: actors; None takes one per GPU, or one per two CPUs.

    Raises:
        ValueError: ray is not installed.
    """
    ray = require_ray()
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local = {} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **local)
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # progress is told by ``advance``
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    count = min(workers or gpus or max(1, cpus // 2), len(shards))
    blocks = min(len(shards), count * _BLOCKS_PER_WORKER)
    written = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=blocks).map_batches(
        ShardWorker,
        fn_constructor_kwargs={"job": job, "load": load, "batch_size": batch_size, "device": "cuda" if gpus else None},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count),
        num_gpus=1 if gpus else None,
    )
    for row in written.iter_rows():
        advance(int(row["rows"]), int(row["characters"]))


def require_ray() -> Any:
    """The module ``ray`` with its data sets.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError("ray: is not installed; install it with: pip install 'ullme[ray]'") from error
    return ray


class ShardWorker:
    """What one actor does: numbers of shards in, shards on disk, and rows and characters of each out."""

    def __init__(self, job: Job, load: Load, batch_size: int, device: str | None) -> None:
        self._job = job
        self._embedder = embedder_of(load(device), job.options, batch_size)
        self._reader = ShardReader(job)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write the shards of a batch that are not finished: a batch may come again after an actor was lost."""
        done = np.zeros((len(batch["shard"]), 2), dtype=np.int64)
        folder = CorpusFolder(self._job.output)
        for at, shard in enumerate(batch["shard"].tolist()):
            if folder.finished(shard):
                done[at] = self._job.rows_of(shard), 0
                continue
            done[at] = self._write(shard)
        return {"shard": batch["shard"], "rows": done[:, 0], "characters": done[:, 1]}

    def _write(self, shard: int) -> np.ndarray:
        said: list[tuple[int, int]] = []
        encode_shards(self._job, self._embedder, [shard], self._reader, lambda *step: said.append(step))
        return np.sum(said, axis=0)
