"""Batches: every row once, one source, no text twice, the same again after a resume."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from accelerate import skip_first_batches

from tests.tiny import tiny_tokenizer
from ullme.data import PairBatchSampler, PairCollator, PairDataset, train_loader
from ullme.data.dealing import deal, kept_apart, shared_texts
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


def several(count, seed=0, positives=2, negatives=3, **options):
    """Rows of several positives, whose negatives are positives of other rows."""
    draw = np.random.default_rng(seed)
    passages = [tuple(f"p{i}.{j}" for j in range(positives)) for i in range(count)]
    others = [draw.permutation([j for j in range(count) if j != i])[:negatives] for i in range(count)]
    return [
        PairExample(f"q{i}", passages[i], tuple(passages[j][draw.integers(positives)] for j in others[i]), **options)
        for i in range(count)
    ]


def known_as_negative(examples):
    """Whether a row's negatives hold a positive of another row that has several."""
    known = {text for e in examples if len(e.positives) > 1 for text in e.positives}
    return any(known.intersection(e.negatives) for e in examples)


KNOWN = {
    "sparse": several(400),
    "dense": several(60, negatives=20),
    "most rows have one positive": several(40)
    + [PairExample(f"x{i}", (f"y{i}",), ("p0.0", "p1.1")) for i in range(300)],
}


@pytest.fixture(params=KNOWN)
def known(request):
    return PairDataset.from_examples(KNOWN[request.param])


def test_a_positive_that_was_not_chosen_is_no_other_rows_negative():
    dataset = PairDataset.from_examples([PairExample("a", ("p one", "p two")), PairExample("b", ("c",), ("p two",))])
    assert sorted(PairBatchSampler(dataset, 2)) == [[0], [1]]


@pytest.mark.parametrize("batch_size", [8, 16])
@pytest.mark.parametrize("one_source", [True, False])
def test_no_batch_has_a_known_positive_as_a_negative(known, batch_size, one_source):
    sampler = PairBatchSampler(known, batch_size, one_source=one_source)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(len(known)))
        assert len(batches) == len(sampler) and all(0 < len(batch) <= batch_size for batch in batches)
        assert not any(known_as_negative([known[i] for i in batch]) for batch in batches)


def test_known_positives_rarely_cost_a_batch():
    for rows in (KNOWN["sparse"], KNOWN["most rows have one positive"]):
        assert len(PairBatchSampler(PairDataset.from_examples(rows), 16)) <= -(-len(rows) // 16) + 1


def test_rows_with_known_positives_come_in_an_order_of_seed_and_epoch_alone_and_ranks_share_it(known):
    test_order_depends_on_seed_and_epoch_alone(known)
    for world_size in (2, 3):
        test_ranks_share_the_global_batches(known, world_size)


def test_a_batch_that_has_all_positives_leaves_them_to_the_loss():
    dataset = PairDataset.from_examples([PairExample("a", ("p one", "p two")), PairExample("b", ("c",), ("p two",))])
    assert len(PairBatchSampler(dataset, 2, positives_per_query=2)) == 1
    assert len(PairBatchSampler(dataset, 2, unique_texts=False)) == 1


@pytest.mark.parametrize("opted_out", [(True, False), (False, True), (True, True)])
def test_rows_without_in_batch_negatives_meet_any_row(opted_out):
    rows = [PairExample("a", ("p one", "p two"), ("n",)), PairExample("b", ("c",), ("p two",))]
    rows = [replace(row, in_batch_negatives=not out) for row, out in zip(rows, opted_out, strict=True)]
    assert len(PairBatchSampler(PairDataset.from_examples(rows), 2)) == 1


def test_rows_of_one_positive_are_dealt_as_if_they_had_no_negatives():
    rows = [PairExample(q, (p,), tuple({"t1", "t2", "t3"} - {p})) for q, p in repetitive(3)]
    bare = [replace(row, negatives=()) for row in rows]
    with_negatives, without = (PairBatchSampler(PairDataset.from_examples(part), 16) for part in (rows, bare))
    assert list(with_negatives) == list(without)


def test_where_every_two_rows_conflict_each_has_a_batch_of_its_own():
    count = 100
    dataset = PairDataset.from_examples(
        PairExample(f"q{i}", (f"p{i}", f"r{i}"), tuple(f"p{j}" for j in range(i))) for i in range(count)
    )
    assert sorted(PairBatchSampler(dataset, count)) == [[i] for i in range(count)]


def test_small_batches_are_announced(caplog):
    with caplog.at_level(logging.WARNING):
        PairBatchSampler(DATASETS["one query"], 10)
    assert "s0: some texts repeat so often that its rows need 30 batches of 10 instead of 5" in caplog.text


def test_only_texts_of_several_rows_are_shared():
    row_X, key_X = np.array([0, 0, 1, 1, 2, 2]), np.array([5, 5, 5, 6, 7, 8])
    assert shared_texts(row_X, key_X) == {0: [5], 1: [5]}


def test_marks_keep_positives_from_negatives_and_nothing_else_apart():
    positives = (np.array([0, 0, 1, 2]), np.array([5, 6, 5, 9]))
    negatives = (np.array([2, 2, 3, 4, 4]), np.array([5, 8, 9, 5, 5]))
    marks = kept_apart(positives, negatives)
    assert set(marks) == {0, 1, 2, 3, 4}
    for a in range(5):
        for b in range(5):
            apart = any(mark ^ 1 in marks[b] for mark in marks[a])
            assert apart == ({a, b} in [{0, 2}, {0, 4}, {1, 2}, {1, 4}, {2, 3}])


def test_many_rows_with_one_negative_are_dealt_quickly_around_the_rows_that_know_it():
    know, have, rows = 20, 5000, 8000
    marks = {row: [7, -2] if row < know else [-1] for row in range(know + have)}
    batches = deal(range(rows), marks, 64, np.random.default_rng(0))
    assert sorted(row for batch in batches for row in batch) == list(range(rows)) and len(batches) == rows // 64
    for batch in batches:
        assert (knowing := sum(row < know for row in batch)) <= 1
        assert not knowing or not any(know <= row < know + have for row in batch)


def test_dealing_ends_quickly_when_every_row_shares_one_text():
    rows = range(5000)
    batches = deal(rows, {row: [1, 2 + row % 50] for row in rows}, 64, np.random.default_rng(0))
    assert sorted(batches) == [[row] for row in rows]
