"""Batches: every row once, one source, no text twice, the same again after a resume."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from accelerate import skip_first_batches

from tests.tiny import tiny_tokenizer
from ullme.data import PairBatchSampler, PairCollator, PairDataset, train_loader
from ullme.data.dealing import deal, shared_texts
from ullme.prompts import TextTokenizer
from ullme.types import PairExample


def dataset_of(*sources):
    """A dataset with one source per list of (query, positive)."""
    parts = [
        PairDataset.from_examples([PairExample(q, (p,), (f"not {p}",)) for q, p in rows], f"s{i}")
        for i, rows in enumerate(sources)
    ]
    tables = [part._rows.data.table for part in parts]
    assert all(isinstance(table, pa.Table) for table in tables)
    return PairDataset(tables, [f"s{i}" for i in range(len(sources))], [None] * len(sources))


def distinct(count, name=""):
    return [(f"q{name}{i}", f"p{name}{i}") for i in range(count)]


def repetitive(seed, count=300, texts=90):
    draw = np.random.default_rng(seed).integers(texts, size=(count, 2)).tolist()
    return [(f"t{a}", f"t{b}" if a != b else "other") for a, b in draw]


DATASETS = {
    "distinct": dataset_of(distinct(103)),
    "two sources": dataset_of(distinct(50), distinct(37, "x")),
    "repetitive": dataset_of(repetitive(0), repetitive(1, 77, 40)),
    "one query": dataset_of([("q", f"p{i}") for i in range(30)] + distinct(20)),
    "one row": dataset_of([("q", "p")]),
}


@pytest.fixture(params=DATASETS)
def dataset(request):
    return DATASETS[request.param]


def shares_text(dataset, batch):
    seen = Counter(text for i in batch for text in {dataset[i].query, *dataset[i].positives})
    return max(seen.values(), default=0) > 1


@pytest.mark.parametrize("batch_size", [1, 7, 16, 1000])
def test_every_row_comes_once_an_epoch(dataset, batch_size):
    sampler = PairBatchSampler(dataset, batch_size)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(len(dataset)))
        assert len(batches) == len(sampler)
        assert all(0 < len(batch) <= batch_size for batch in batches)


@pytest.mark.parametrize("batch_size", [7, 16, 1000])
def test_no_batch_holds_a_text_twice_or_two_sources(dataset, batch_size):
    sampler = PairBatchSampler(dataset, batch_size)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for batch in sampler:
            assert not shares_text(dataset, batch)
            assert len({dataset.source_of(i) for i in batch}) == 1


def test_batches_are_full_but_for_one_per_source_where_texts_are_distinct():
    sampler = PairBatchSampler(DATASETS["two sources"], 16)
    assert sorted(map(len, sampler)) == [2, 5] + [16] * 5


def test_a_few_repeated_texts_leave_all_batches_full_but_one():
    rows = distinct(100) + [(f"q{i}", f"again{i}") for i in range(20)]
    for seed in range(20):
        assert sorted(map(len, PairBatchSampler(dataset_of(rows), 16, seed=seed))) == [8] + [16] * 7


def test_rows_meet_others_in_every_epoch():
    sampler = PairBatchSampler(DATASETS["distinct"], 16)
    first = {frozenset(batch) for batch in sampler}
    sampler.set_epoch(1)
    assert not first & {frozenset(batch) for batch in sampler}


def test_as_many_batches_as_the_most_repeated_text_demands():
    assert len(PairBatchSampler(DATASETS["one query"], 10)) == 30
    assert len(PairBatchSampler(DATASETS["one query"], 10, unique_texts=False)) == 5


def test_repeated_texts_rarely_cost_a_batch():
    dataset = dataset_of(repetitive(2, 4000, 2500))
    for batch_size in (32, 128):
        sampler = PairBatchSampler(dataset, batch_size)
        assert len(sampler) <= -(-4000 // batch_size) + 1


def test_the_number_of_batches_is_the_same_in_every_epoch():
    for seed in range(5):
        dataset = dataset_of(repetitive(seed, 120, 30))
        for drop_last in (False, True):
            sampler = PairBatchSampler(dataset, 8, seed=seed, drop_last=drop_last)
            for epoch in range(6):
                sampler.set_epoch(epoch)
                batches = list(sampler)
                assert len(batches) == len(sampler)
                assert not any(shares_text(dataset, batch) for batch in batches)


def test_sources_mix_when_asked():
    dataset = DATASETS["two sources"]
    mixed = list(PairBatchSampler(dataset, 16, one_source=False))
    assert any(len({dataset.source_of(i) for i in batch}) == 2 for batch in mixed)
    assert sorted(map(len, mixed)) == [87 - 5 * 16] + [16] * 5


def test_drop_last_leaves_only_full_batches():
    sampler = PairBatchSampler(DATASETS["two sources"], 16, drop_last=True)
    assert [len(batch) for batch in sampler] == [16] * 5 == [16] * len(sampler)
    with pytest.raises(ValueError, match="batch_size: 1 rows fill no batch of 4"):
        PairBatchSampler(DATASETS["one row"], 4, drop_last=True)
    with pytest.raises(ValueError, match="batch_size: 0 is less than 1"):
        PairBatchSampler(DATASETS["one row"], 0)


def test_order_depends_on_seed_and_epoch_alone(dataset):
    def order(seed, epoch, before=0):
        sampler = PairBatchSampler(dataset, 8, seed=seed)
        sampler.set_epoch(before)
        list(sampler)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2, before=7)
    if len(dataset) > 1:
        assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_share_the_global_batches(dataset, world_size):
    whole = list(PairBatchSampler(dataset, 16))
    parts = [list(PairBatchSampler(dataset, 16, rank=r, world_size=world_size)) for r in range(world_size)]
    assert {len(part) for part in parts} == {len(whole)}
    for at, batch in enumerate(whole):
        held = [part[at] for part in parts]
        assert sorted(i for rows in held for i in rows) == sorted(batch)
        assert max(map(len, held)) - min(map(len, held)) <= 1


def loader_of(dataset, **options):
    collator = PairCollator(TextTokenizer(tiny_tokenizer()), 1, choice="sampled")
    return train_loader(dataset, collator, 8, seed=5, **options)


def test_a_loader_yields_batches_in_the_samplers_order():
    dataset = DATASETS["repetitive"]
    loader = loader_of(dataset)
    loader.set_epoch(1)
    wanted = [tuple(dataset[i].row_id for i in rows) for rows in loader.batch_sampler]
    assert [batch.row_ids for batch in loader] == wanted
    assert len(loader) == len(wanted)
    assert loader.collate_fn.epoch == 1


def test_skipping_seen_batches_resumes_where_the_epoch_stopped():
    dataset = DATASETS["repetitive"]
    whole = loader_of(dataset)
    whole.set_epoch(2)
    resumed = skip_first_batches(loader_of(dataset), 5)
    resumed.batch_sampler.batch_sampler.set_epoch(2)  # as transformers.Trainer does
    assert [batch.row_ids for batch in resumed] == [batch.row_ids for batch in whole][5:]
    assert resumed.collate_fn.epoch == 2


def test_workers_yield_the_same_batches():
    dataset = DATASETS["two sources"]
    alone, helped = loader_of(dataset), loader_of(dataset, num_workers=1)
    for loader in (alone, helped):
        loader.set_epoch(3)
    for a, b in zip(alone, helped, strict=True):
        assert a.row_ids == b.row_ids and a.passage.ids_X.tolist() == b.passage.ids_X.tolist()


def test_small_batches_are_announced(caplog):
    with caplog.at_level(logging.WARNING):
        PairBatchSampler(DATASETS["one query"], 10)
    assert "s0: some texts repeat so often that its rows need 30 batches of 10 instead of 5" in caplog.text


def test_only_texts_of_several_rows_are_shared():
    row_X, key_X = np.array([0, 0, 1, 1, 2, 2]), np.array([5, 5, 5, 6, 7, 8])
    assert shared_texts(row_X, key_X) == {0: [5], 1: [5]}


def test_dealing_ends_quickly_when_every_row_shares_one_text():
    rows = range(5000)
    batches = deal(rows, {row: [1, 2 + row % 50] for row in rows}, 64, np.random.default_rng(0))
    assert sorted(batches) == [[row] for row in rows]
