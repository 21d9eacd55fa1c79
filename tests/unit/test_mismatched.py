"""Mismatched pairs: every passage after exactly one other query, whatever the order of the batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch

from tests.batches import random_batch
from ullme.data import with_mismatched
from ullme.types import Batch, Texts


def batch_of(queries: int = 5, passages: int = 3) -> Batch:
    return random_batch(queries, passages, seed=4, generation=True, ragged=True)


def texts_of(texts: Texts) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Head and tail of each text."""
    parts = [tuple(ids.tolist()) for ids in texts.ids_X.split(texts.lengths_N.tolist())]
    return [(ids[:n], ids[n:]) for ids, n in zip(parts, texts.skip_N.tolist(), strict=True)]


def one_head_per_query(batch: Batch) -> Batch:
    """As the collator makes it: the passages of a query stand after one and the same head."""
    width = batch.passage_mask_BP.shape[1]
    rows = [texts_of(batch.generation)[b * width : (b + 1) * width] for b in range(len(batch))]
    made = [[*row[0][0], *tail] if tail else [] for row in rows for _, tail in row]
    heads = [len(row[0][0]) if tail else 0 for row in rows for _, tail in row]
    return replace(batch, generation=Texts.from_lists(made, heads))


def pairs_of(batch: Batch) -> dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """The mismatched texts of each row, in an order that says nothing."""
    made = texts_of(with_mismatched(batch).mismatched)
    width = len(made) // len(batch)
    return {row: sorted(made[b * width : (b + 1) * width]) for b, row in enumerate(batch.row_ids)}


def test_every_passage_stands_after_exactly_one_query_and_that_is_not_its_own():
    batch = one_head_per_query(batch_of())
    own = [pair for pair in texts_of(batch.generation) if pair[1]]
    made = [pair for pair in texts_of(with_mismatched(batch).mismatched) if pair[1]]
    assert Counter(tail for _, tail in made) == Counter(tail for _, tail in own)
    assert not set(made) & set(own)
    assert {head for head, _ in made} == {head for head, _ in own}


def test_the_order_of_rows_does_not_decide_who_is_next():
    batch = one_head_per_query(batch_of())
    right = pairs_of(batch)
    assert pairs_of(batch.rows([3, 0, 4, 2, 1])) == right
    assert len({str(pairs) for pairs in right.values()}) == 5


def test_a_row_without_passages_is_no_member_of_the_ring():
    batch = one_head_per_query(batch_of())
    lengths = batch.generation.lengths_N.view(5, 3).clone()
    ids = batch.generation.ids_X.split(lengths.flatten().tolist())
    kept = torch.cat([part for i, part in enumerate(ids) if i // 3 != 2])
    lengths[2] = 0
    emptied = replace(batch, generation=Texts(kept, lengths.flatten(), batch.generation.skip_N))
    without = pairs_of(batch.rows([0, 1, 3, 4]))
    assert pairs_of(emptied) == {**without, batch.row_ids[2]: [((), ())] * 3}


def test_equal_queries_and_a_query_alone_have_nothing_to_be_mismatched_with():
    batch = one_head_per_query(batch_of(2))
    same = replace(batch, query_key_B=torch.zeros(2, dtype=torch.long))
    for alone in (same, batch.rows([1])):
        assert with_mismatched(alone).mismatched.lengths_N.tolist() == [0] * 3 * len(alone)


def test_a_chunk_keeps_its_own_mismatched_texts():
    batch = with_mismatched(one_head_per_query(batch_of()))
    made = texts_of(batch.mismatched)
    assert texts_of(batch.rows([3, 1]).mismatched) == [*made[9:12], *made[3:6]]
