"""Which texts the reference model has to score: every passage of every row after its query, each once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ullme.data import PairDataset
from ullme.data.schema import text_key
from ullme.trainer.evaluation import EvalData
from ullme.types import PairExample

_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class ScoredPairs:
    """The query-passage pairs of some sets of rows, each once, in the order of their rows.

    Attributes:
        sets: the rows, by the name of their set.
        positives: passages of a row that can come up: its first positives; None for all.
        negatives: as many of its first negatives; None for all.
        digests: a hash of each set's queries and passages, in their order.
        row_N: the row of each pair, counted over all sets.
        place_N: where the passage stands in its row.
    """

    sets: Mapping[str, EvalData]
    positives: int | None
    negatives: int | None
    digests: Mapping[str, str]
    row_N: np.ndarray
    place_N: np.ndarray

    @classmethod
    def of(
        cls, sets: Mapping[str, EvalData], positives: int | None = None, negatives: int | None = None
    ) -> ScoredPairs:
        """Read every row once.

        Raises:
            ValueError: there is no row.
        """
        keys: list[int] = []
        counts: list[int] = []
        digests: dict[str, str] = {}
        for name, rows in sets.items():
            digest = hashlib.sha256()
            for example in _examples(rows, range(len(rows))):
                passages = _passages(example, positives, negatives)
                digest.update(json.dumps([example.query, passages]).encode())
                keys += [text_key(f"{len(example.query)}:{example.query}{passage}") for passage in passages]
                counts.append(len(passages))
            digests[name] = digest.hexdigest()
        if not keys:
            raise ValueError("reference: there is no row to score; give at least one pair")
        _, first_N = np.unique(np.array(keys, dtype=np.int64), return_index=True)
        first_N.sort()
        starts = np.cumsum([0, *counts])
        row_N = np.searchsorted(starts, first_N, side="right") - 1
        return cls(sets, positives, negatives, digests, row_N, first_N - starts[row_N])

    def __len__(self) -> int:
        return len(self.row_N)

    def texts(self, chosen: range) -> list[tuple[str, str, str]]:
        """Query, passage and row id of these pairs."""
        row_N, place_N = self.row_N[chosen.start : chosen.stop], self.place_N[chosen.start : chosen.stop]
        wanted = np.unique(row_N)
        examples = dict(zip(wanted.tolist(), self._rows(wanted), strict=True))
        found = []
        for row, place in zip(row_N.tolist(), place_N.tolist(), strict=True):
            example = examples[row]
            passage = _passages(example, self.positives, self.negatives)[place]
            found.append((example.query, passage, example.row_id))
        return found

    def _rows(self, wanted: np.ndarray) -> Iterator[PairExample]:
        """These rows, ascending, counted over all sets."""
        start = 0
        for rows in self.sets.values():
            here = wanted[(wanted >= start) & (wanted < start + len(rows))] - start
            yield from _examples(rows, here.tolist())
            start += len(rows)


def _examples(rows: EvalData, index: Sequence[int]) -> Iterator[PairExample]:
    for start in range(0, len(index), _BLOCK_ROWS):
        block = index[start : start + _BLOCK_ROWS]
        yield from rows.__getitems__(block) if isinstance(rows, PairDataset) else [rows[i] for i in block]


def _passages(example: PairExample, positives: int | None, negatives: int | None) -> list[str]:
    return [*example.positives[:positives], *example.negatives[:negatives]]
