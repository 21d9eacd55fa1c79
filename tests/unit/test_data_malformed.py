"""Forty files with a mistake, in every format: one line with file, line and cure, and no output file."""

from __future__ import annotations

import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.data_samples import SAMPLES
from ullme.cli import main

GOOD = {"query": "what purrs", "positive": "a cat purrs", "negatives": ["a dog barks"]}
ANCHOR = {"anchor": "what purrs", "positive": "a cat purrs", "negative_1": "a dog barks"}
FLAG = {"query": "what purrs", "pos": ["a cat purrs"], "neg": ["a dog barks"]}
TEVATRON = {
    "query_id": "1",
    "query": "what purrs",
    "positive_passages": [{"docid": "1", "title": "", "text": "a cat purrs"}],
    "negative_passages": [],
}
CURE = re.compile(r"\b(add|give|set|write|name|correct|remove|unpack|save|separate|compress|leave|make|rename)\b")


def lines(*rows):
    """JSON lines; bytes stand for themselves."""
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


#: Name of the file, content, what its message says.
FILES = {
    "no JSON": ("a.jsonl", lines(GOOD, b"what purrs\n"), ["line 2", "broken JSON"]),
    "half a JSON": ("a.jsonl", lines(GOOD, GOOD)[:-20], ["line 2", "broken JSON"]),
    "a list": ("a.jsonl", lines(GOOD, GOOD, ["q", "p"]), ["line 3", "is not an object"]),
    "not UTF-8": ("a.jsonl", lines(GOOD, b'{"query": "\xff", "positive": "p"}\n'), ["line 2", "0xff is not UTF-8"]),
    "half a character": ("a.jsonl", lines(GOOD, {**GOOD, "query": "\ud800"}), ["line 2", "query", "half a character"]),
    "empty query": ("a.jsonl", lines(GOOD, {**GOOD, "query": " "}), ["line 2", "query", "empty text ' '"]),
    "null positive": ("a.jsonl", lines(GOOD, {**GOOD, "positive": None}), ["line 2", "positive", "missing (null)"]),
    "a number": ("a.jsonl", lines(GOOD, {**GOOD, "query": 7}), ["line 2", "query", "7 is a int"]),
    "no positive": ("a.jsonl", lines(GOOD, {"query": "q"}), ["line 2", "no column 'positive'"]),
    "no positives": ("a.jsonl", lines({"query": "q", "positives": []}), ["line 1", "positives", "empty list"]),
    "misspelt": ("a.jsonl", lines({"query": "q", "positivee": "p"}), ["line 1", "rename 'positivee'"]),
    "both sides": ("a.jsonl", lines({**GOOD, "negatives": ["a cat purrs"]}), ["line 1", "is also a positive"]),
    "scores amiss": ("a.jsonl", lines(GOOD, {**GOOD, "scores": [1]}), ["line 2", "1 scores for 2"]),
    "NaN score": ("a.jsonl", lines({**GOOD, "scores": [1, float("nan")]}), ["line 1", "nan is no finite score"]),
    "empty file": ("a.jsonl", b"\n\n", ["no rows"]),
    "broken gzip": ("a.jsonl.gz", gzip.compress(lines(*[GOOD] * 99))[:-9], ["broken gzip file"]),
    "no Parquet": ("a.parquet", b"PAR1 is how it begins", ["unreadable Parquet file"]),
    "triplets: empty anchor": ("t.jsonl", lines(ANCHOR, {**ANCHOR, "anchor": ""}), ["line 2", "anchor", "empty text"]),
    "triplets: a list of negatives": (
        "t.jsonl",
        lines(ANCHOR, {**ANCHOR, "negative_1": ["n", 3]}),
        ["line 2", "negative_1[1]", "3 is a int"],
    ),
    "triplets: the positive again": (
        "t.jsonl",
        lines({**ANCHOR, "negative_1": "a cat purrs"}),
        ["line 1", "negative_1", "is also a positive"],
    ),
    "FlagEmbedding: no pos": ("f.jsonl", lines(FLAG, {**FLAG, "pos": []}), ["line 2", "pos", "empty list"]),
    "FlagEmbedding: empty neg": (
        "f.jsonl",
        lines(FLAG, {**FLAG, "neg": ["n", ""]}),
        ["line 2", "neg[1]", "empty text"],
    ),
    "FlagEmbedding: scores of one side": (
        "f.jsonl",
        lines(FLAG, {**FLAG, "pos_scores": [1.0]}),
        ["line 2", "0 scores for 1 negatives"],
    ),
    "FlagEmbedding: a score in words": (
        "f.jsonl",
        lines({**FLAG, "pos_scores": ["high"], "neg_scores": [0]}),
        ["line 1", "pos_scores[0]", "'high' is a str"],
    ),
    "Tevatron: passage without text": (
        "v.jsonl",
        lines(TEVATRON, {**TEVATRON, "positive_passages": [{"docid": "1", "title": "t"}]}),
        ["line 2", "positive_passages[0]", "is a dict"],
    ),
    "Tevatron: empty text": (
        "v.jsonl",
        lines({**TEVATRON, "negative_passages": [{"docid": "1", "title": "", "text": ""}]}),
        ["line 1", "negative_passages[0].text", "empty text"],
    ),
    "triples: two columns": ("t.tsv", b"q\tp\tn\nq\tp\n", ["line 2", "2 columns, not 3"]),
    "triples: a tab in a text": ("t.tsv", b"q\tp\tn\tx\n", ["line 1", "4 columns, not 3"]),
    "triples: an empty text": ("t.tsv", b"q\tp\tn\nq\t\tn\n", ["line 2", "positive", "empty text"]),
    "triples: not UTF-8": ("t.tsv", b"q\tp\tn\nq\t\xe9\tn\n", ["line 2", "0xe9 is not UTF-8"]),
}
#: Format, its file, what is added to that, what the message says.
PARTS = {
    "BEIR: a text too few": ("beir", "corpus.jsonl", '{"_id": "5"}\n', ["corpus.jsonl, line 8", "None is no text"]),
    "BEIR: no id": ("beir", "corpus.jsonl", '{"text": "t"}\n', ["corpus.jsonl, line 8", "None is no id"]),
    "BEIR: an id twice": (
        "beir",
        "queries.jsonl",
        '{"_id": "0", "text": "t"}\n',
        ["line 4", "'0' stands in", "line 1"],
    ),
    "BEIR: broken queries": ("beir", "queries.jsonl", "{\n", ["queries.jsonl, line 4", "broken JSON"]),
    "BEIR: no such passage": ("beir", "qrels/train.tsv", "0\t555\t1\n", ["train.tsv, line 8", "no passage '555'"]),
    "BEIR: no such query": ("beir", "qrels/train.tsv", "x\t10\t1\n", ["train.tsv, line 8", "no query 'x'"]),
    "BEIR: no grade": ("beir", "qrels/train.tsv", "0\t10\n", ["train.tsv, line 8", "2 columns, not 3"]),
    "BEIR: a grade in words": ("beir", "qrels/train.tsv", "0\t99\tyes\n", ["train.tsv, line 8", "'yes' is no whole"]),
    "BEIR: nothing right": ("beir", "qrels/train.tsv", "7\t99\t0\n", ["line 8", "query '7' has no positive"]),
    "MS MARCO: an id alone": ("msmarco", "collection.tsv", "77\n", ["collection.tsv, line 7", "1 columns, not 2"]),
    "MS MARCO: an id twice": ("msmarco", "collection.tsv", "0\tt\n", ["collection.tsv, line 7", "'0' stands in"]),
    "MS MARCO: an empty query": ("msmarco", "queries.train.tsv", "5\t \n", ["queries.train.tsv, line 3", "an empty"]),
    "MS MARCO: no such passage": ("msmarco", "qrels.train.tsv", "121352\t0\t88\t1\n", ["line 3", "no passage '88'"]),
    "MS MARCO: a column too few": ("msmarco", "qrels.train.tsv", "121352\t3\t1\n", ["line 3", "3 columns, not 4"]),
}


def test_there_are_forty():
    assert len(FILES) + len(PARTS) >= 40


def refused(path, said, capfd, where=None):
    """What converting this says, which leaves nothing behind."""
    folder = path.parent / "out"
    folder.mkdir()
    assert main(["data", "convert", str(path), str(folder / "out.jsonl")]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith(f"error: {where or path}") and err.count("\n") == 1, err
    assert all(part in err for part in said) and CURE.search(err), err
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("name", "content", "said"), FILES.values(), ids=FILES.keys())
def test_a_file_with_a_mistake_is_refused_whole(tmp_path, capfd, name, content, said):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, said, capfd)


@pytest.mark.parametrize(("sample", "file", "more", "said"), PARTS.values(), ids=PARTS.keys())
def test_a_collection_with_a_mistake_is_refused_whole(tmp_path, capfd, sample, file, more, said):
    path = SAMPLES[sample](tmp_path)
    with (path / file).open("a") as part:
        part.write(more)
    refused(path, said, capfd, path / file)


@pytest.mark.parametrize("sample", SAMPLES)
def test_what_is_missing_is_named(tmp_path, capfd, sample):
    path = tmp_path / ("none" if sample in ("beir", "msmarco") else "none.jsonl")
    folder = tmp_path / "out"
    folder.mkdir()
    assert main(["data", "convert", str(path), str(folder / "o.jsonl"), "--format", sample]) == 2
    assert f"{path}: no such file" in capfd.readouterr().err
    assert not list(folder.iterdir())


def test_a_bad_row_of_a_parquet_file_is_numbered(tmp_path, capfd):
    rows = [{"anchor": "a", "positive": "p", "negative": "n"}] * 1500 + [
        {"anchor": "a", "positive": "", "negative": "n"}
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", ["row 1501", "positive", "empty text"], capfd)


def test_bad_rows_can_be_left_out(tmp_path, capfd):
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD, b"{\n", {**GOOD, "query": ""}, GOOD))
    assert main(["data", "convert", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--skip-bad"]) == 0
    out, err = capfd.readouterr()
    assert "2 rows in" in out and "2 bad rows left out" in out
    assert "line 2" in err and "line 3" in err
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 2
    (tmp_path / "c.jsonl").write_bytes(lines(b"{\n"))
    assert main(["data", "convert", str(tmp_path / "c.jsonl"), str(tmp_path / "d.jsonl"), "--skip-bad"]) == 2
    assert "no row is good" in capfd.readouterr().err and not (tmp_path / "d.jsonl").exists()


def test_a_named_format_needs_its_columns(tmp_path, capfd):
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD))
    assert main(["data", "convert", str(tmp_path / "a.jsonl"), str(tmp_path / "b"), "--format", "tevatron"]) == 2
    assert main(["data", "convert", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--format", "tevatron"]) == 2
    assert "line 1: no column 'positive_passages', which tevatron rows have" in capfd.readouterr().err
    assert main(["data", "convert", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--format", "tevatrom"]) == 2
    assert "did you mean 'tevatron'" in capfd.readouterr().err
