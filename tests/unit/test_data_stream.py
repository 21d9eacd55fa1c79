"""Streams: every format gives the rows that reading it whole gives, and what is wrong is named in one line."""

from __future__ import annotations

import gzip
import logging
import os
from pathlib import Path

import datasets
import numpy as np
import pytest

from tests.unit.streams import ids_of, loader_of, rows, whole_epoch, write_jsonl, write_parquet
from ullme.data import DataSource, PairStream, load_pairs, stream_pairs
from ullme.data import blocks as blocks_module
from ullme.data.blocks import JsonlBlocks, ParquetBlocks
from ullme.data.files import files_of, labels_of
from ullme.data.windows import StreamBatches

COUNT = 230


def parquet_file(folder):
    return write_parquet(folder / "a.parquet", rows(COUNT))


def parquet_files(folder):
    write_parquet(folder / "parts" / "b.parquet", rows(30, "b"))
    write_parquet(folder / "parts" / "deeper" / "a.parquet", rows(90, "a"))
    write_parquet(folder / "parts" / "one.parquet", rows(1, "one"))
    return str(folder / "parts" / "**" / "*.parquet")


def lines(folder):
    path = Path(write_jsonl(folder / "a.jsonl", rows(COUNT)))
    text = path.read_text().replace("\n", "\n\n \n", 70)
    path.write_bytes(b"\xef\xbb\xbf" + text.rstrip("\n").encode())
    return str(path)


def saved(folder):
    datasets.Dataset.from_list(rows(COUNT + 400)).save_to_disk(folder / "saved")
    return str(folder / "saved")


def hub(folder):
    write_parquet(folder / "hub" / "train.parquet", rows(COUNT))
    return str(folder / "hub")


@pytest.fixture(params=[parquet_file, parquet_files, lines, saved, hub], ids=lambda make: make.__name__)
def path(request, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(blocks_module, "_BYTES_PER_BLOCK", 500)
    return request.param(tmp_path)


def by_id(examples):
    return {example.row_id: example for example in examples}


def test_an_epoch_has_the_rows_that_reading_everything_has(path):
    whole = load_pairs(path)
    wanted = by_id(whole[i] for i in range(len(whole)))
    assert len(wanted) == len(whole)
    stream = stream_pairs(path)
    assert len(stream) == len(whole)
    assert stream.sources == whole.sources and stream.source_rows() == whole.source_rows()
    batches = StreamBatches(stream, 7, shuffle_rows=40)
    for epoch in (0, 1):
        found = whole_epoch(batches, epoch)
        assert by_id(row for batch in found for row in batch) == wanted
        assert [len(batch) for batch in found].count(7) >= len(found) - 1
        assert len(found) == -(-len(whole) // 7)


def test_epochs_and_seeds_differ_in_their_order(path):
    stream = stream_pairs(path)

    def order(seed, epoch):
        batches = StreamBatches(stream, 7, seed=seed, shuffle_rows=40)
        return [row.row_id for batch in whole_epoch(batches, epoch) for row in batch]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1) and order(1, 0) != order(2, 0)


def test_the_head_has_the_first_rows_in_the_order_of_the_files(path):
    whole = load_pairs(path)
    head = stream_pairs(path).head(13)
    assert [head[i] for i in range(13)] == [whole[i] for i in range(13)]
    assert len(stream_pairs(path).head()) == min(len(whole), 1000)


def test_a_limit_takes_the_first_rows(path):
    for limit in (1, 33, 120, 10_000):
        source = DataSource(path=path, limit=limit)
        whole = load_pairs(source)
        found = whole_epoch(StreamBatches(stream_pairs(source), 7))
        assert {row.row_id for batch in found for row in batch} == {whole[i].row_id for i in range(len(whole))}


def test_any_part_of_a_block_can_be_read_in_any_order(path, tmp_path):
    for made in (ParquetBlocks(parquet_file(tmp_path)), JsonlBlocks(lines(tmp_path))):
        whole = [list(made.rows(b, 0, n)) for b, n in enumerate(made.block_rows.tolist())]
        assert sum(map(len, whole)) == COUNT
        for b, start, stop in [(1, 3, 5), (1, 5, 6), (1, 4, 6), (0, 0, 1), (2, 1, 3), (0, 1, 6), (1, 6, 7), (1, 0, 0)]:
            stop = min(stop, made.block_rows[b])
            assert list(made.rows(b, start, stop)) == whole[b][start:stop]


def test_a_reader_that_stops_half_way_leaves_the_next_one_whole(tmp_path):
    file = ParquetBlocks(parquet_file(tmp_path))
    whole = list(file.rows(0, 0, 50))
    list(file.rows(0, 0, 10))
    half = file.rows(0, 10, 20)
    next(half)
    half.close()
    assert list(file.rows(0, 10, 20)) == whole[10:20]


def test_rows_of_several_files_are_named_by_file_and_number(tmp_path):
    path = parquet_files(tmp_path)
    for data in (load_pairs(path), stream_pairs(path).head()):
        assert data[0].row_id == "parts/b.parquet:1"
        assert data[len(data) - 2].row_id == "parts/deeper/a.parquet:90" and data[-1].row_id == "parts/one.parquet:1"
        assert data[0].source == "*.parquet"
    named = load_pairs(DataSource(path=str(tmp_path / "parts" / "b.*"), name="one"))
    assert named[3].row_id == "one:4"


def test_files_come_in_the_order_of_their_names_and_tildes_are_homes(tmp_path, monkeypatch):
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files_of("~/*.jsonl") == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    odd = tmp_path / "odd[1].jsonl"
    odd.touch()
    assert files_of(str(odd)) == [str(odd)]
    assert labels_of(["x/1.jsonl", "y/1.jsonl"], "s") == [
        f"{Path.cwd().name}/x/1.jsonl",
        f"{Path.cwd().name}/y/1.jsonl",
    ]


def test_columns_that_say_nothing_are_not_read(tmp_path):
    made = [{**row, "embedding": [0.5] * 100, "id": i} for i, row in enumerate(rows(20))]
    stream = stream_pairs(write_parquet(tmp_path / "a.parquet", made))
    assert stream.rows[0]._files[0].columns == ["negatives", "positive", "query"]
    assert stream.head()[0] == load_pairs(tmp_path / "a.parquet")[0]


def test_a_stream_holds_no_more_rows_than_asked(tmp_path):
    write_parquet(tmp_path / "a.parquet", rows(900), group=1000)
    write_jsonl(tmp_path / "b.jsonl", rows(700, "b"))
    batches = StreamBatches(
        stream_pairs([str(tmp_path / "a.parquet"), str(tmp_path / "b.jsonl")]), 10, shuffle_rows=100
    )
    held = []
    for _ in whole_epoch(batches):
        held.append(sum(len(b) for _, window in batches._held.values() for b in window))
    assert max(held) <= 100 and len(held) == 160


def refusal(call):
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def bad_row(folder):
    made = rows(2000)
    made[1500]["positive"] = None
    path = write_parquet(folder / "a.parquet", made, group=100)
    return path, f"{path}, row 1501: positive: missing (null); write a text in quotes"


def test_a_bad_row_ends_every_rank_at_the_same_batch_and_is_named(tmp_path):
    path, said = bad_row(tmp_path)
    seen = []
    for rank in range(3):
        loader = loader_of(stream_pairs(path), rank=rank, world_size=3, shuffle_rows=100)
        taken = []
        assert refusal(lambda taken=taken, loader=loader: taken.extend(batch for batch in loader)) == said
        seen.append(loader.state_dict())
    assert seen[0]["batch"] % 12 == 0 and seen == [seen[0]] * 3


@pytest.mark.slow  # torch waits five seconds for a worker that has failed
def test_a_bad_row_that_a_worker_meets_is_named_in_one_line(tmp_path):
    path, said = bad_row(tmp_path)
    loader = loader_of(stream_pairs(path), shuffle_rows=100, num_workers=1)
    assert refusal(lambda: list(loader)) == said


def test_a_broken_line_is_named_when_it_comes(tmp_path):
    path = Path(write_jsonl(tmp_path / "a.jsonl", rows(1200)))
    path.write_text(path.read_text() + '{"query": "q",\n')
    stream = stream_pairs(path)
    assert f"{path}, line 1201, column 15: broken JSON" in refusal(lambda: whole_epoch(StreamBatches(stream, 50)))
    path.write_text('{"query": "q"}\n' + path.read_text())
    assert f"{path}, line 1: no column 'positive'" in refusal(lambda: stream_pairs(path))


def test_what_cannot_be_streamed_is_refused(tmp_path):
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(b"{}"))
    assert "cannot be streamed; unpack it" in refusal(lambda: stream_pairs(packed))
    outside = DataSource(path=str(tmp_path), format="tests.unit.streams:reader")
    assert "write its rows as Parquet" in refusal(lambda: PairStream([outside]))
    (tmp_path / "blank.jsonl").write_text("\n\n")
    assert "blank.jsonl: no rows" in refusal(lambda: stream_pairs(tmp_path / "blank.jsonl"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    assert "unreadable Parquet file" in refusal(lambda: stream_pairs(tmp_path / "bad.parquet"))
    write_parquet(tmp_path / "no.parquet", [{"query": "q", "answer": "p"}])
    assert "no column 'positive'" in refusal(lambda: stream_pairs(tmp_path / "no.parquet"))
    assert "no source" in refusal(lambda: stream_pairs([]))


def test_a_pattern_that_fits_nothing_names_the_folder(tmp_path):
    (tmp_path / "shards").mkdir()
    said = refusal(lambda: load_pairs(str(tmp_path / "shard" / "*.parquet")))
    assert f"there is no folder '{tmp_path}/shard', did you mean '{tmp_path}/shards'?" in said
    assert "has 0 entries" in refusal(lambda: stream_pairs(str(tmp_path / "shards" / "*.parquet")))


def test_a_file_that_changes_under_the_run_is_named(tmp_path):
    made = {"a.jsonl": write_jsonl, "a.parquet": write_parquet}
    for name, write in made.items():
        path = write(tmp_path / name, rows(40))
        stream = stream_pairs(path)
        write(tmp_path / name, rows(30))
        said = refusal(lambda stream=stream: whole_epoch(StreamBatches(stream, 8)))
        assert f"{path}: has fewer rows than when the run began" in said
        os.remove(path)
        assert path in refusal_or_missing(stream)


def refusal_or_missing(stream):
    with pytest.raises((ValueError, OSError)) as error:
        whole_epoch(StreamBatches(stream, 8))
    return str(error.value)


def test_instructions_scores_and_texts_reach_a_stream(tmp_path):
    scored = [{"query": "q", "positive": "p", "negatives": ["n"], "scores": [2.0, 1.0]}]
    path = write_jsonl(tmp_path / "a.jsonl", [*scored, {"query": "q2", "positive": "p2", "instruction": "own"}])
    alone = write_jsonl(tmp_path / "texts.jsonl", [{"text": "t"}])
    stream = stream_pairs([DataSource(path=path, instruction="shared"), DataSource(path=alone)])
    found = by_id(row for batch in whole_epoch(StreamBatches(stream, 4)) for row in batch)
    assert found["a.jsonl:1"].scores == (2.0, 1.0) and found["a.jsonl:1"].instruction == "shared"
    assert found["a.jsonl:2"].scores is None and found["a.jsonl:2"].instruction == "own"
    assert found["texts.jsonl:1"].positives == ("t",)


def test_workers_share_no_open_file(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", rows(300), group=300)
    stream = stream_pairs(path)  # its head leaves the row group open, half read
    assert ids_of(loader_of(stream, num_workers=2, shuffle_rows=40)) == ids_of(loader_of(stream, shuffle_rows=40))
    assert np.array_equal(stream.rows[0]._files[0].block_rows, [300])


@pytest.mark.parametrize("one_source", [True, False])
def test_no_batch_of_a_stream_has_a_known_positive_as_a_negative(tmp_path, one_source):
    """Every second row has two positives; a row's negatives are the second positives of the rows after it."""
    made = [
        {"query": f"q{i}", "positive": [f"p{i}", f"r{i}"][: 1 + i % 2], "negatives": [f"r{i + j}" for j in range(1, 5)]}
        for i in range(400)
    ]
    paths = [write_parquet(tmp_path / "a.parquet", made[:300]), write_jsonl(tmp_path / "b.jsonl", made[300:])]
    stream = stream_pairs(paths)
    options = {"shuffle_rows": 200, "one_source": one_source}
    batches = StreamBatches(stream, 8, **options)
    for epoch in (0, 1):
        found = whole_epoch(batches, epoch)
        assert sum(map(len, found)) >= 390  # a source's last window may have one batch alone
        for batch in found:
            known = {text for row in batch if len(row.positives) > 1 for text in row.positives}
            assert not any(known.intersection(row.negatives) for row in batch)
    whole = StreamBatches(stream, 400, positives_per_query=2, one_source=False)
    assert list(map(len, whole_epoch(whole))) == [400]


def test_a_streams_rows_that_know_each_others_negatives_are_left_out_where_no_batch_is_free(tmp_path, caplog):
    made = [
        {"query": f"q{i}", "positive": [f"p{i}", f"r{i}"], "negatives": [f"p{j}" for j in range(i)]} for i in range(6)
    ]
    with caplog.at_level(logging.WARNING):
        found = whole_epoch(StreamBatches(stream_pairs(write_parquet(tmp_path / "a.parquet", made)), 2))
    assert list(map(len, found)) == [1, 1, 1] and "3 of the 6 rows that were read together are left out" in caplog.text
