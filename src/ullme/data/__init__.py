"""Training pairs: sources to rows, rows to batches, hard negatives."""

from __future__ import annotations

from ullme.data.collator import PairCollator
from ullme.data.loader import PairLoader, train_loader
from ullme.data.masking import TokenMasking
from ullme.data.mining import mine_negatives
from ullme.data.mismatched import with_mismatched
from ullme.data.sampler import PairBatchSampler
from ullme.data.schema import PairDataset, check_pairs, load_pairs
from ullme.data.source import DataSource
from ullme.data.stream import PairStream, stream_pairs
from ullme.data.windows import SHUFFLE_ROWS

__all__ = [
    "SHUFFLE_ROWS",
    "DataSource",
    "PairBatchSampler",
    "PairCollator",
    "PairDataset",
    "PairLoader",
    "PairStream",
    "TokenMasking",
    "check_pairs",
    "load_pairs",
    "mine_negatives",
    "stream_pairs",
    "train_loader",
    "with_mismatched",
]
