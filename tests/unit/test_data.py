"""Sources of pairs: every format says the same, and whatever is wrong is said in one line."""

from __future__ import annotations

import gzip
import json
import random

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from ullme.data import DataSource, PairDataset, check_pairs, load_pairs
from ullme.types import PairExample

ROWS = [
    {"query": "what purrs", "positive": "a cat purrs", "negatives": ["a dog barks", "a cow moos"]},
    {"query": "what barks", "positive": "a dog barks", "negatives": []},
    {"query": "où est-ce", "positive": "là-bas", "negatives": ["ici"]},
]


def write_jsonl(path, rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def texts(dataset):
    return [(e.query, e.positives, e.negatives, e.instruction) for e in (dataset[i] for i in range(len(dataset)))]


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_every_format_gives_the_same_pairs(tmp_path, hub_cache):
    expected = [(r["query"], (r["positive"],), tuple(r["negatives"]), None) for r in ROWS]
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(tmp_path / "splits")
    folder = tmp_path / "folder"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "train.parquet")
    sources = [
        write_jsonl(tmp_path / "a.jsonl", ROWS),
        write_jsonl(tmp_path / "a.jsonl.gz", ROWS),
        *(str(tmp_path / name) for name in ("a.parquet", "saved", "splits", "folder")),
    ]
    for source in sources:
        assert texts(load_pairs(source)) == expected, source
    assert len(load_pairs(DataSource(path=str(tmp_path / "splits"), split="test"))) == 1


def test_a_row_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]) + "\n")
    dataset = load_pairs(path)
    assert [dataset[i].row_id for i in range(2)] == ["pairs.jsonl:2", "pairs.jsonl:4"]
    assert dataset[-1] == dataset[1]
    with pytest.raises(IndexError):
        dataset[2]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode())
    assert load_pairs(path)[0].query == "what purrs"


def test_reading_many_rows_equals_reading_each(tmp_path):
    rows = [{"query": f"q{i}", "positive": f"p{i}", "negatives": [f"n{i}"] * (i % 3)} for i in range(5000)]
    dataset = load_pairs(write_jsonl(tmp_path / "many.jsonl", rows))
    index = random.Random(0).sample(range(5000), 200)
    assert dataset.__getitems__(index) == [dataset[i] for i in index]
    assert dataset.__getitems__([]) == []
    assert [dataset[i].query for i in (0, 4095, 4096, 4999)] == ["q0", "q4095", "q4096", "q4999"]
    assert dataset.negatives_N().tolist() == [i % 3 for i in range(5000)]


def test_columns_are_read_as_mapped(tmp_path):
    flag = {"question": "q", "pos": ["p", "p2"], "neg": ["n"], "prompt": "find it"}
    path = write_jsonl(tmp_path / "flag.jsonl", [flag])
    columns = {"query": "question", "positives": "pos", "negatives": "neg", "instruction": "prompt"}
    assert texts(load_pairs(DataSource(path=path, columns=columns))) == [("q", ("p", "p2"), ("n",), "find it")]
    columns = {"query": "question", "positive": ["pos"], "negative": []}
    assert texts(load_pairs(DataSource(path=path, columns=columns))) == [("q", ("p", "p2"), (), None)]


def test_numbered_columns_come_in_the_order_of_their_numbers(tmp_path):
    row = {"query": "q", "positive": "p", **{f"negative_{i}": f"n{i}" for i in (10, 2, 1)}}
    assert load_pairs(write_jsonl(tmp_path / "a.jsonl", [row]))[0].negatives == ("n1", "n2", "n10")


def test_a_rows_own_instruction_comes_before_its_sources(tmp_path):
    rows = [{**ROWS[0], "instruction": "own"}, {**ROWS[1], "instruction": None}, {**ROWS[2], "instruction": ""}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    dataset = load_pairs(DataSource(path=path, instruction="shared"))
    assert [dataset[i].instruction for i in range(3)] == ["own", "shared", "shared"]


def test_rows_know_their_source(tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", ROWS)
    second = write_jsonl(tmp_path / "b.jsonl", ROWS[:2])
    dataset = load_pairs([first, DataSource(path=second, name="more", limit=1)])
    assert len(dataset) == 4
    assert [dataset.source_of(i) for i in range(4)] == [0, 0, 0, 1]
    assert dataset.source_rows() == [range(0, 3), range(3, 4)]
    assert (dataset[3].source, dataset[3].row_id) == ("more", "more:1")


def test_files_called_alike_are_told_apart_by_their_paths(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "pairs.jsonl", ROWS)
    dataset = load_pairs([str(tmp_path / name / "pairs.jsonl") for name in ("a", "b")])
    assert dataset.sources == (str(tmp_path / "a/pairs.jsonl"), str(tmp_path / "b/pairs.jsonl"))
    with pytest.raises(ValueError, match="two sources"):
        load_pairs([str(tmp_path / "a/pairs.jsonl")] * 2)


def test_summary_counts_what_is_there(tmp_path):
    said = {"rows": 3, "rows_with_negatives": 2, "rows_with_scores": 0, "passages": 6, "longest_passage": 11}
    assert check_pairs(write_jsonl(tmp_path / "a.jsonl", ROWS)) == {"a.jsonl": said}


def test_examples_at_hand_make_a_dataset():
    examples = [PairExample("q", ("p",), ("n",), instruction="do"), PairExample("q2", ("p2", "p3"))]
    assert texts(PairDataset.from_examples(examples)) == [("q", ("p",), ("n",), "do"), ("q2", ("p2", "p3"), (), None)]
    with pytest.raises(ValueError, match="pairs, row 1: query: empty text"):
        PairDataset.from_examples([PairExample(" ", ("p",))])


def test_text_keys_are_stable_and_fit_a_signed_integer(tmp_path):
    dataset = load_pairs(write_jsonl(tmp_path / "a.jsonl", ROWS))
    row_X, key_X = dataset.text_keys()
    assert row_X.tolist() == [0, 0, 1, 1, 2, 2]
    assert key_X.dtype == np.int64 and (key_X >= 0).all()
    assert key_X[0] == 818646881718675296


BAD_LINES = {
    "broken JSON": ('{"query": "q", "positive": ', "broken JSON", "one complete JSON object per line"),
    "not an object": ('["q", "p"]', "is not an object", "write {"),
    "not UTF-8": (b'{"query": "\xff", "positive": "p"}', "0xff is not UTF-8", "save the file as UTF-8"),
    "empty query": ('{"query": "", "positive": "p"}', "query: empty text ''", "fill it in or remove the row"),
    "blank passage": ('{"query": "q", "positive": " \\t"}', "positive: empty text ' \\t'", "remove the row"),
    "null query": ('{"query": null, "positive": "p"}', "query: missing (null)", "write a text in quotes"),
    "null passage": ('{"query": "q", "positive": null}', "positive: missing (null)", "write a text"),
    "number for a text": ('{"query": 7, "positive": "p"}', "query: 7 is a int, not a text", "write a text in quotes"),
    "object for a text": ('{"query": "q", "positive": {"t": 1}}', "positive: {'t': 1} is a dict", "write a text"),
    "number in a list": ('{"query": "q", "positives": ["p", 3]}', "positives[1]: 3 is a int", "write a text"),
    "empty negative": ('{"query": "q", "positive": "p", "negatives": ["a", ""]}', "negatives[1]: empty", "fill it in"),
    "half a character": ('{"query": "q \\ud83d", "positive": "p"}', "half a character", "write it in UTF-8"),
    "no positive": ('{"query": "q", "positives": []}', "positives: empty list", "at least one text"),
    "false negative": (
        '{"query": "q", "positive": "p", "negative": "p"}',
        "negative: 'p' is also a positive",
        "remove",
    ),
    "missing column": ('{"query": "q", "answer": "p"}', "no column 'positive'", "'query', 'answer'"),
    "misspelt column": ('{"query": "q", "postive": "p"}', "no column 'positive'", "rename 'postive'"),
    "misspelt optional": ('{"query": "q", "positive": "p", "negativs": ["n"]}', "'negatives'", "rename 'negativs'"),
    "capital column": ('{"Query": "q", "positive": "p"}', "no column 'query'", "rename 'Query'"),
    "two columns": ('{"query": "q", "positive": "p", "positives": ["p"]}', "both 'positive' and", "columns:"),
}


@pytest.mark.parametrize("line, said, cure", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_named_with_its_cure(tmp_path, line, said, cure):
    path = tmp_path / "bad.jsonl"
    line = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(json.dumps(ROWS[0]).encode() + b"\n" + line + b"\n" + json.dumps(ROWS[1]).encode())
    with pytest.raises(ValueError) as error:
        load_pairs(path)
    message = one_line(error)
    assert f"{path}, line 2" in message and said in message and cure in message
    assert len(message) < 300 + len(str(path))


def test_a_long_value_is_shortened(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "q", "positive": ["x" * 10000, 3]}, {"query": ["y" * 9999]}])
    with pytest.raises(ValueError) as error:
        load_pairs(path)
    assert len(one_line(error)) < 200 + len(path)


def test_a_bad_row_of_parquet_is_named_by_its_number(tmp_path):
    rows = [{"query": f"q{i}", "positive": "p" if i != 1500 else None} for i in range(2000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=700)
    with pytest.raises(ValueError) as error:
        load_pairs(tmp_path / "a.parquet")
    assert "a.parquet, row 1501: positive: missing (null)" in one_line(error)


def test_a_mapped_column_that_is_missing_is_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(ValueError) as error:
        load_pairs(DataSource(path=path, columns={"negatives": "negativ"}))
    assert "no column 'negativ', which columns.negatives names" in one_line(error)
    assert "did you mean 'negatives'?" in str(error.value)


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.parquet", "sub/missing.jsonl"])
def test_a_missing_file_is_named_with_the_nearest_one(tmp_path, name):
    path = tmp_path / name
    near = tmp_path / (name.split("/")[0].replace("missing", "mising"))
    near.touch()
    with pytest.raises(ValueError) as error:
        load_pairs(path)
    assert str(path) in one_line(error) and "no such file" in str(error.value)
    if "/" not in name:
        assert f"did you mean {str(near)!r}" in str(error.value)


def test_a_format_can_be_given_but_needs_its_file(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text(json.dumps(ROWS[0]))
    assert len(load_pairs(DataSource(path=str(path), format="jsonl"))) == 1
    for wanted, name in (("file", "jsonl"), ("file", "parquet"), ("folder", "saved")):
        with pytest.raises(ValueError) as error:
            load_pairs(DataSource(path=str(tmp_path / "pair.txt"), format=name))
        assert f"no such {wanted}, which format {name!r} needs; did you mean {str(path)!r}?" in one_line(error)


def test_files_that_are_no_data_are_named(tmp_path, hub_cache):
    good = write_jsonl(tmp_path / "good.jsonl.gz", ROWS * 1000)
    pq.write_table(pa.Table.from_pylist(ROWS * 1000), tmp_path / "whole.parquet")
    files = {
        "empty.jsonl": b"",
        "blank.jsonl": b"\n \n",
        "text.parquet": b"this is not parquet",
        "cut.parquet": (tmp_path / "whole.parquet").read_bytes()[:-200],
        "text.jsonl.gz": b"this is not gzip",
        "cut.jsonl.gz": open(good, "rb").read()[:-20],
        "notes.txt": b"a query",
    }
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), tmp_path / "norows.parquet")
    said = {
        "empty.jsonl": "no rows",
        "blank.jsonl": "no rows",
        "norows.parquet": "no rows",
        "text.parquet": "unreadable Parquet file",
        "cut.parquet": "unreadable Parquet file",
        "text.jsonl.gz": "broken gzip file",
        "cut.jsonl.gz": "broken gzip file",
        "notes.txt": "its name tells no format",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name, what in said.items():
        with pytest.raises(ValueError) as error:
            load_pairs(tmp_path / name)
        assert f"{tmp_path / name}: {what}" in one_line(error)


def test_folders_that_are_no_data_are_named(tmp_path, hub_cache):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError) as error:
        load_pairs(tmp_path / "nothing")
    assert "neither a file here nor a dataset" in one_line(error)
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(ValueError) as error:
        load_pairs(tmp_path / "saved")
    assert "unreadable saved dataset" in one_line(error)
    datasets.DatasetDict({"dev": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError) as error:
        load_pairs(tmp_path / "splits")
    assert "split: no 'train'; it has 'dev'; set split" in one_line(error)


def test_sources_are_refused_when_misspelt():
    with pytest.raises(ValidationError, match="unknown role 'positve'.*did you mean 'positive'"):
        DataSource(path="a.jsonl", columns={"positve": "pos"})
    with pytest.raises(ValidationError, match="colums"):
        DataSource(path="a.jsonl", colums={})
    with pytest.raises(ValidationError, match="limit"):
        DataSource(path="a.jsonl", limit=0)
    with pytest.raises(ValueError, match="no source"):
        load_pairs([])


def test_negatives_are_demanded_where_an_objective_needs_them(tmp_path):
    load_pairs(write_jsonl(tmp_path / "a.jsonl", ROWS)).require_negatives("objective dpo compares with them")
    without = load_pairs(write_jsonl(tmp_path / "b.jsonl", ROWS[1:2]))
    with pytest.raises(ValueError) as error:
        without.require_negatives("objective dpo compares with them")
    assert "b.jsonl: negatives: no row has one, and objective dpo" in one_line(error)
