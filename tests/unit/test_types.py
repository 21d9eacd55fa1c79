"""Ragged texts and batches."""

import pytest
import torch

from tests.batches import random_batch
from ullme.batching import consecutive_chunks, length_sorted_batches
from ullme.types import Texts


def test_padding_on_either_side_keeps_the_tokens_and_marks_them():
    texts = Texts.from_lists([[5, 6, 7], [8], []])
    right, right_mask = texts.pad(0, "right")
    left, left_mask = texts.pad(0, "left")
    assert right.tolist() == [[5, 6, 7], [8, 0, 0], [0, 0, 0]]
    assert left.tolist() == [[5, 6, 7], [0, 0, 8], [0, 0, 0]]
    assert torch.equal(right_mask, (right != 0).long())
    assert torch.equal(left_mask, (left != 0).long())


def test_scored_part_leaves_out_context_under_either_padding():
    texts = Texts.from_lists([[5, 6, 7], [8, 9]], skip=[2, 1])
    for side in ("left", "right"):
        ids, mask = texts.pad(0, side)
        assert sorted(ids[texts.scored_NT(mask)].tolist()) == [7, 9]


def test_rows_of_texts_keep_order_and_content():
    texts = Texts.from_lists([[1, 2], [3], [4, 5, 6]], skip=[1, 0, 2])
    chosen = texts.rows([2, 0])
    assert chosen.ids_X.tolist() == [4, 5, 6, 1, 2]
    assert chosen.skip_N.tolist() == [2, 1]


def test_rows_of_a_batch_take_each_query_with_its_own_passages():
    batch = random_batch(queries=4, passages=3, seed=0, generation=True)
    part = batch.rows([3, 1])
    assert part.row_ids == (batch.row_ids[3], batch.row_ids[1])
    expected = [batch.passage.rows([b * 3 + p]).ids_X.tolist() for b in (3, 1) for p in range(3)]
    assert [part.passage.rows([i]).ids_X.tolist() for i in range(6)] == expected
    assert torch.equal(part.tokens_B(), batch.tokens_B()[[3, 1]])


def test_length_sorted_batches_hold_every_text_once_within_the_budget():
    lengths = [3, 50, 7, 7, 1, 20, 90, 4]
    batches = length_sorted_batches(lengths, max_tokens=64, max_rows=3)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= 3
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 64


@pytest.mark.parametrize("max_padding", [0, 5, 40])
def test_length_sorted_batches_bound_padding_and_open_no_batch_without_need(max_padding):
    lengths = [3, 50, 7, 7, 1, 20, 90, 4, 48]
    batches = length_sorted_batches(lengths, max_tokens=1000, max_padding=max_padding)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    waste = [[lengths[batch[0]] - lengths[i] for i in batch] for batch in batches]
    assert all(min(each) >= 0 and sum(each) <= max_padding for each in waste)
    for each, batch, following in zip(waste, batches, batches[1:], strict=False):
        assert sum(each) + lengths[batch[0]] - lengths[following[0]] > max_padding


def test_consecutive_chunks_keep_order_and_budget():
    assert consecutive_chunks([4, 4, 4, 9, 1], max_cost=8) == [[0, 1], [2], [3], [4]]
    assert consecutive_chunks([], max_cost=8) == []
