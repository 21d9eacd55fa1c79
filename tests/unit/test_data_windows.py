"""Batches of streams and weighted sources: the same for any ranks and workers, in proportion, resumed anywhere."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest
from accelerate import skip_first_batches

from tests.unit.streams import ids_of, loader_of, rows, shares_text, whole_epoch, write_jsonl, write_parquet
from ullme.data import DataSource, load_pairs, stream_pairs
from ullme.data.sampler import StreamBatchSampler
from ullme.data.stream import parts_of_stretch
from ullme.data.windows import StreamBatches, epoch_shares, proportional

#: Rows of three sources, and how many an epoch takes of each where they weigh 1, 2 and 5.
SIZES = {"a": 90, "b": 40, "c": 30}
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 5.0}


def repetitive(count, texts, seed=0):
    draw = np.random.default_rng(seed).integers(texts, size=(count, 2)).tolist()
    return [{"query": f"t{a}", "positive": f"t{b}" if a != b else "other"} for a, b in draw]


def sources_of(folder, weights=None, **options):
    """A Parquet file, a pattern of two and a JSONL file, of the sizes above."""
    parts = rows(SIZES["b"], "b")
    paths = {
        "a": write_parquet(folder / "a.parquet", rows(SIZES["a"], "a"), group=13),
        "b": str(folder / "b-*.parquet"),
        "c": write_jsonl(folder / "c.jsonl", rows(SIZES["c"], "c")),
    }
    write_parquet(folder / "b-1.parquet", parts[:25], group=10)
    write_parquet(folder / "b-2.parquet", parts[25:])
    given = weights or dict.fromkeys(SIZES)
    return [DataSource(path=path, name=name, weight=given[name], **options) for name, path in paths.items()]


@pytest.fixture(params=["stream", "stream, mixed", "weighted stream", "weighted, mixed, in memory", "weighted, mixed"])
def data(request, tmp_path):
    """The data and the options of its loader."""
    sources = sources_of(tmp_path, WEIGHTS if "weighted" in request.param else None)
    load = load_pairs if "memory" in request.param else stream_pairs
    return load(sources), {"one_source": "mixed" not in request.param, "shuffle_rows": 64}


@pytest.mark.parametrize("world_size", [3, 9])
def test_the_global_batches_do_not_depend_on_the_number_of_ranks(data, world_size):
    pairs, options = data
    for epoch in (0, 1):
        whole = ids_of(loader_of(pairs, **options), epoch)
        held = [ids_of(loader_of(pairs, rank=r, world_size=world_size, **options), epoch) for r in range(world_size)]
        for batch, *parts in zip(whole, *held, strict=True):
            assert sorted(row for part in parts for row in part) == sorted(batch)
            assert [part[0] for part in parts if part] == list(batch[:world_size])


@pytest.mark.parametrize("workers", [2])
def test_the_batches_do_not_depend_on_the_number_of_workers(data, workers):
    pairs, options = data
    alone, helped = loader_of(pairs, **options), loader_of(pairs, num_workers=workers, **options)
    alone.set_epoch(1), helped.set_epoch(1)
    for a, b in zip(alone, helped, strict=True):
        assert a.row_ids == b.row_ids and a.passage.ids_X.tolist() == b.passage.ids_X.tolist()


def test_no_batch_holds_a_text_twice_and_their_number_is_exact(data):
    pairs, options = data
    batches = StreamBatches(pairs, 8, **options)
    for epoch in range(3):
        found = whole_epoch(batches, epoch)
        assert len(found) == len(loader_of(pairs, **options)) and all(found)
        assert not any(map(shares_text, found))
        one_source = options["one_source"]
        assert all(len({row.source for row in batch}) == 1 for batch in found) or not one_source
        assert one_source or any(len({row.source for row in batch}) == 3 for batch in found)


@pytest.mark.parametrize("taken", [0, 7, 19])
def test_a_resumed_run_goes_on_with_the_next_batch(data, taken):
    pairs, options = data
    whole = ids_of(loader_of(pairs, **options), 2)
    skipped = skip_first_batches(loader_of(pairs, **options), taken)
    skipped.batch_sampler.batch_sampler.set_epoch(2)  # as transformers.Trainer does
    assert [batch.row_ids for batch in skipped] == whole[taken:]
    stopped = loader_of(pairs, num_workers=1, **options)
    stopped.set_epoch(2)
    for _, _ in zip(range(taken), stopped, strict=False):
        pass
    state = stopped.state_dict() if taken else {"epoch": 2, "batch": 0}
    resumed = loader_of(pairs, **options)
    resumed.load_state_dict(state)
    resumed.set_epoch(2)  # the epoch that is under way
    assert resumed.state_dict() == {"epoch": 2, "batch": taken}
    assert [batch.row_ids for batch in resumed] == whole[taken:]
    assert resumed.state_dict()["batch"] == len(whole)
    assert ids_of(resumed, 3) == ids_of(loader_of(pairs, **options), 3)


def test_in_memory_batches_resume_by_state_too(tmp_path):
    pairs = load_pairs(sources_of(tmp_path))
    whole = ids_of(loader_of(pairs), 1)
    resumed = loader_of(pairs)
    resumed.load_state_dict({"epoch": 1, "batch": 5})
    assert [batch.row_ids for batch in resumed] == whole[5:]
    assert [batch.row_ids for batch in resumed] == whole


def test_passing_over_batches_reads_none_of_them(data, monkeypatch):
    pairs, options = data
    loader = skip_first_batches(loader_of(pairs, **options), 15)
    read = []
    window = type(loader.dataset)._window
    monkeypatch.setattr(type(loader.dataset), "_window", lambda self, *at: read.append(at) or window(self, *at))
    next(iter(loader))
    assert len(read) == 1


def test_without_weights_every_row_comes_once_an_epoch(tmp_path):
    for options in ({}, {"one_source": False}):
        batches = StreamBatches(stream_pairs(sources_of(tmp_path)), 8, shuffle_rows=50, **options)
        for epoch in range(2):
            found = [row.row_id for batch in whole_epoch(batches, epoch) for row in batch]
            assert len(found) == len(set(found)) == 160 == len(batches)


@pytest.mark.parametrize("load", [load_pairs, stream_pairs])
@pytest.mark.parametrize("one_source", [True, False])
def test_weights_are_shares_of_an_epochs_rows(tmp_path, load, one_source):
    batches = StreamBatches(load(sources_of(tmp_path, WEIGHTS)), 5, one_source=one_source, shuffle_rows=40)
    seen = Counter()
    for epoch in range(9):
        found = [row for batch in whole_epoch(batches, epoch) for row in batch]
        assert Counter(row.source for row in found) == {"a": 20, "b": 40, "c": 100}
        seen.update((row.source, row.row_id) for row in found)
    # a source goes on where its last epoch stopped: no row comes again before all have come
    for name, times in (("a", 2), ("b", 9), ("c", 30)):
        assert {count for (source, _), count in seen.items() if source == name} == {times}


def test_a_mixed_window_holds_the_sources_in_proportion(tmp_path):
    batches = StreamBatches(stream_pairs(sources_of(tmp_path, WEIGHTS)), 8, one_source=False, shuffle_rows=32)
    for window in range(5):
        counted = Counter(row.source for row in batches.pools[0].window(0, window, 0))
        assert counted["a"] == 4 and counted["b"] == 8 and counted["c"] == 20


@pytest.mark.parametrize("seed", range(30))
def test_proportional_parts_add_up_grow_and_stay_near(seed):
    rng = np.random.default_rng(seed)
    shares = rng.integers(1, 10 ** rng.integers(1, 7), size=rng.integers(1, 9)).tolist()
    total = sum(shares)
    step = int(rng.integers(1, max(total // 3, 2)))
    ends = np.minimum(np.arange(0, min(total, 50 * step) + step, step), total)
    found = proportional(shares, ends)
    assert (found.sum(1) == ends).all() and (np.diff(found, axis=0) >= 0).all() and (found <= shares).all()
    assert np.abs(found - ends[:, None] * np.array(shares) / total).max() < 2
    assert proportional(shares, np.array([total])).tolist() == [shares]


def test_shares_without_weights_are_all_rows():
    assert epoch_shares([3, 5], None) == [3, 5]
    assert epoch_shares([30, 10], [1, 3]) == [10, 30]
    assert epoch_shares([1000, 1], [1e9, 1.0]) == [1001, 1]


def test_an_endless_stretch_is_cut_at_the_ends_of_passes():
    assert list(parts_of_stretch(5, 25, 10)) == [(0, 5, 10), (1, 0, 10), (2, 0, 5)]
    assert list(parts_of_stretch(30, 30, 10)) == []


def test_drop_last_leaves_out_the_uneven_rest(tmp_path):
    pairs = stream_pairs(sources_of(tmp_path))
    loader = loader_of(pairs, 16, drop_last=True)
    assert [len(batch) for batch in loader] == [16] * (5 + 2 + 1) == [16] * len(loader)
    mixed = StreamBatches(pairs, 16, drop_last=True, one_source=False)
    assert list(map(len, whole_epoch(mixed))) == [16] * 10
    with pytest.raises(ValueError, match="batch_size: 160 rows fill no batch of 200"):
        StreamBatches(pairs, 200, drop_last=True)
    with pytest.raises(ValueError, match="batch_size: 0 is less than 1"):
        StreamBatches(pairs, 0)


def test_repeated_texts_are_kept_apart_and_none_is_lost(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", repetitive(2000, 700))
    batches = StreamBatches(stream_pairs(path), 16, shuffle_rows=400)
    found = whole_epoch(batches)
    assert not any(map(shares_text, found))
    assert sum(map(len, found)) == 2000 and len(found) == 125


def test_rows_that_fit_no_batch_are_left_out_and_announced(tmp_path, caplog):
    made = rows(80) + [{"query": "same", "positive": f"p{i}"} for i in range(20)]
    path = write_parquet(tmp_path / "a.parquet", made, group=100)
    batches = StreamBatches(stream_pairs(path), 10)
    with caplog.at_level(logging.WARNING):
        found = whole_epoch(batches) + whole_epoch(batches, 1)
    assert sum(map(len, found)) == 2 * 90 and not any(map(shares_text, found)) and all(found)
    assert caplog.text.count("a.parquet: 10 of the 100 rows that were read together are left out of this epoch") == 1
    kept = whole_epoch(StreamBatches(stream_pairs(path), 10, unique_texts=False))
    assert sorted(map(len, kept)) == [10] * 10


@pytest.mark.parametrize("load", [load_pairs, stream_pairs])
def test_a_source_that_fills_no_batch_and_is_dropped_is_announced(tmp_path, caplog, load):
    data = load([write_jsonl(tmp_path / f"{name}.jsonl", rows(n, name)) for name, n in (("few", 6), ("more", 20))])
    for drop_last in (False, True):
        loader = loader_of(data, drop_last=drop_last)
        assert len(loader) == (2 if drop_last else 4)
        assert ("few.jsonl: its 6 rows fill no batch of 8, and drop_last" in caplog.text) == drop_last


def test_a_source_smaller_than_its_share_never_meets_itself(tmp_path):
    weights = {"a": 1.0, "b": 1.0, "c": 100.0}
    batches = StreamBatches(stream_pairs(sources_of(tmp_path, weights)), 50, one_source=False)
    found = whole_epoch(batches)
    assert not any(map(shares_text, found)) and max(map(len, found)) > 30


def test_every_source_has_a_weight_or_none(tmp_path):
    some = sources_of(tmp_path, {**WEIGHTS, "b": None})
    for load in (load_pairs, stream_pairs):
        with pytest.raises(ValueError, match=r"b-\*.parquet: weight: is missing, and .*a.parquet has one"):
            load(some)
    for wrong in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="weight"):
            DataSource(path="a.jsonl", weight=wrong)


def test_references_count_through_every_pool():
    sampler = StreamBatchSampler([3, 0, 2], 8, seed=1)
    found = [ref for (ref,) in sampler]
    assert len(found) == len(sampler) == 5
    assert [r.batch for r in found if r.pool == 0] == [0, 1, 2] and [r.batch for r in found if r.pool == 2] == [0, 1]
    sampler.start = 2
    assert [ref for (ref,) in sampler] == found[2:]
    sampler.set_epoch(1)
    assert {ref.epoch for (ref,) in sampler} == {1}
