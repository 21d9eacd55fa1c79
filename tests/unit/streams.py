"""Files of pairs, and what a loader gives of them, for tests of streams."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq

from tests.tiny import tiny_tokenizer
from ullme.data import PairCollator, train_loader
from ullme.data.windows import BatchRef, StreamBatches
from ullme.prompts import TextTokenizer


def rows(count, name=""):
    return [{"query": f"q{name}{i}", "positive": f"p{name}{i}", "negatives": [f"n{name}{i}"]} for i in range(count)]


def write_parquet(path, rows, group=50):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return str(path)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def whole_epoch(batches: StreamBatches, epoch=0):
    """The global batches of an epoch, pool after pool."""
    return [
        batches.global_batch(BatchRef(epoch, number, b))
        for number, pool in enumerate(batches.pools)
        for b in range(pool.batches)
    ]


def loader_of(data, batch_size=8, **options):
    collator = PairCollator(TextTokenizer(tiny_tokenizer()), 1, choice="sampled")
    return train_loader(data, collator, batch_size, seed=5, **options)


def ids_of(loader, epoch=0):
    """The row ids of each batch of an epoch."""
    loader.set_epoch(epoch)
    return [batch.row_ids for batch in loader]


def shares_text(batch):
    texts = [text for row in batch for text in {row.query, *row.positives}]
    return len(texts) > len(set(texts))


def reader(path, subset=None, split=None):
    """A format of one's own, which has no blocks."""
    yield from enumerate(rows(3), start=1)
