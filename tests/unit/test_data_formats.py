"""Every format: read as it comes, written as it is read, and back without a difference."""

from __future__ import annotations

import json
import tracemalloc

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.data_samples import INSTRUCTION, ROWS, SAMPLES, SCORES, write_lines
from ullme.cli import main
from ullme.data import DataSource, load_pairs, stream_pairs
from ullme.data.beir import QRELS_HEADER
from ullme.data.convert import convert
from ullme.eval.own import own_tasks

FOLDERS = ("beir", "msmarco")


def said(source):
    """Rows as query, positives, negatives, instruction and scores."""
    data = load_pairs(source)
    rows = (data[i] for i in range(len(data)))
    return [(r.query, r.positives, r.negatives, r.instruction, r.scores) for r in rows]


def expected(name):
    extra = [(INSTRUCTION, scores) if name == "flagembedding" else (None, None) for scores in SCORES]
    return [(*row, *more) for row, more in zip(ROWS, extra, strict=True)]


def target(folder, name, suffix=".jsonl"):
    """Where a format is written, and what it is called there."""
    return (folder / "back" if name in FOLDERS else folder / f"back{suffix}"), {
        "parquet": "pairs",
        "jsonl": "pairs",
    }.get(name, name)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_read_as_it_comes(tmp_path, name):
    path = SAMPLES[name](tmp_path)
    assert said(str(path)) == expected(name)
    assert said(DataSource(path=str(path), format=name)) == expected(name)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", SAMPLES)
def test_converting_there_and_back_changes_nothing(tmp_path, name, suffix):
    path = SAMPLES[name](tmp_path)
    pairs = tmp_path / f"mine{suffix}"
    assert convert(DataSource(path=str(path)), pairs) == (len(ROWS), 0, ())
    assert said(str(pairs)) == expected(name)
    back, to = target(tmp_path, name, suffix)
    convert(DataSource(path=str(pairs)), back, to)
    assert said(str(back)) == expected(name)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "nothing is left beside the output"


@pytest.mark.parametrize("name", ["triplets", "tevatron", "flagembedding"])
def test_other_tools_find_the_columns_that_they_want(tmp_path, name):
    for suffix, builder in ((".jsonl", "json"), (".parquet", "parquet")):
        path = tmp_path / f"{name}{suffix}"
        convert(DataSource(path=str(SAMPLES["jsonl"](tmp_path))), path, name)
        rows = datasets.load_dataset(builder, data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
        found = rows[1]
        if name == "triplets":
            assert rows.column_names == ["anchor", "positive", "negative_1", "negative_2"]
            assert tuple(found.values()) == (ROWS[1][0], *ROWS[1][1], *ROWS[1][2])
        elif name == "tevatron":
            assert [p["text"] for p in found["negative_passages"]] == list(ROWS[1][2])
            assert {"docid", "title", "text"} == set(found["positive_passages"][0])
        else:
            assert (found["query"], found["pos"], found["neg"]) == (ROWS[1][0], list(ROWS[1][1]), list(ROWS[1][2]))


def test_a_file_of_text_triples_is_read_by_line(tmp_path):
    path = tmp_path / "triples.train.small.tsv"
    path.write_text("q one\tright\twrong\n\nq two\tyes\tno\n")
    data = load_pairs(str(path))
    assert [(r.query, r.positives, r.negatives, r.row_id) for r in (data[0], data[1])] == [
        ("q one", ("right",), ("wrong",), "triples.train.small.tsv:1"),
        ("q two", ("yes",), ("no",), "triples.train.small.tsv:3"),
    ]


def test_a_split_is_named_where_it_is_not_train(tmp_path):
    path = SAMPLES["beir"](tmp_path)
    assert said(DataSource(path=str(path), split="test")) == [
        ("of the test split", ("nobody asks for it",), (), None, None)
    ]
    with pytest.raises(ValueError, match=r"split: no qrels/tets.tsv; it has 'test', 'train'.*did you mean 'test'"):
        load_pairs(DataSource(path=str(path), split="tets"))


@pytest.mark.parametrize("name", ["triplets", "flagembedding"])
def test_other_tools_columns_are_streamed_too(tmp_path, name):
    stream = stream_pairs(str(SAMPLES[name](tmp_path)))
    rows = sorted(stream.rows[0].take(0, 2, seed=0), key=lambda row: row.row_id)
    assert [(r.query, r.positives, r.negatives) for r in rows] == ROWS
    with pytest.raises(ValueError, match="cannot be streamed; write its rows as Parquet"):
        stream_pairs(str(SAMPLES["beir"](tmp_path)))


def test_columns_of_our_own_win_over_those_of_other_tools(tmp_path):
    row = {"query": "q", "positive": "p", "pos": ["other"], "neg": ["n"], "prompt": "unread"}
    assert said(str(write_lines(tmp_path / "a.jsonl", [row]))) == [("q", ("p",), (), None, None)]
    named = DataSource(path=str(tmp_path / "a.jsonl"), format="flagembedding")
    assert said(named)[0][:4] == ("q", ("other",), ("n",), "unread")


def test_what_a_format_cannot_say_is_refused_unless_it_is_dropped(tmp_path):
    source = DataSource(path=str(SAMPLES["flagembedding"](tmp_path)))
    for to in ("triplets", "tevatron", "beir", "msmarco"):
        out, _ = target(tmp_path, to)
        with pytest.raises(ValueError, match=f"jsonl:1: instruction: .* no place in format '{to}'.*drop instruction"):
            convert(source, out, to)
        assert not out.exists()
        assert convert(source, out, to, drop=("instruction", "scores")).rows == 2
        assert said(str(out)) == expected("jsonl")
        out.rename(tmp_path / f"was-{to}")


@pytest.mark.parametrize(
    ("rows", "to", "message"),
    [
        ([("q", ["p"], ["n"]), ("q2", ["p"], [])], "triplets", ":2: negatives: 0 where the first row has 1"),
        ([("q", ["p"], ["n"]), ("q", ["n"], [])], "beir", ":2: 'n' is a positive and was a negative of this query"),
        ([("q", ["p\tx"], [])], "msmarco", r":1: 'p\tx' has a tab or line break, which TSV cannot hold"),
    ],
)
def test_rows_that_do_not_fit_a_format_are_named(tmp_path, rows, to, message):
    lines = [{"query": q, "positives": p, "negatives": n} for q, p, n in rows]
    source = DataSource(path=str(write_lines(tmp_path / "a.jsonl", lines)))
    out, _ = target(tmp_path, to)
    with pytest.raises(ValueError) as caught:
        convert(source, out, to)
    assert message in str(caught.value) and not out.exists()


def test_an_output_that_is_there_is_left_alone(tmp_path):
    source = DataSource(path=str(SAMPLES["jsonl"](tmp_path)))
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    for place, message in ((out, "is there already"), (tmp_path / "x.csv", "its name tells no format to write")):
        with pytest.raises(ValueError, match=message):
            convert(source, place)
    with pytest.raises(ValueError, match="to: 'bier' is unknown.*did you mean 'beir'"):
        convert(source, tmp_path / "b", "bier")
    assert out.read_text() == "mine"


@pytest.mark.parametrize("to", ["pairs", "beir"])
def test_memory_does_not_grow_with_the_rows(tmp_path, to):
    def peak(count):
        path, out = tmp_path / f"{count}.jsonl", tmp_path / f"{to}-{count}{'.jsonl' if to == 'pairs' else ''}"
        with path.open("w") as file:
            for i in range(count):
                row = {"query": f"query {i}", "positive": f"passage {i} " + "word " * 40, "negative": f"other {i}"}
                file.write(json.dumps(row) + "\n")
        tracemalloc.start()
        convert(DataSource(path=str(path)), out, to)
        convert(DataSource(path=str(out)), tmp_path / f"{to}-{count}-back.jsonl")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)
    assert peak(3000) < 1.2 * peak(600)


def test_row_numbers_of_a_collection_count_its_judged_queries(tmp_path):
    data = load_pairs(str(SAMPLES["beir"](tmp_path)))
    assert [data[i].row_id for i in range(2)] == ["fiqa:1", "fiqa:2"]


# ---- grades ----


def graded(folder, name, grades):
    """The BEIR sample, of whose splits these are the judgements, in this kind of file."""
    folder.mkdir(exist_ok=True)
    folder = SAMPLES["beir"](folder)
    for split in ("train", "test"):
        (folder / "qrels" / f"{split}.tsv").unlink()
        rows = [dict(zip(QRELS_HEADER, row, strict=True)) for row in grades]
        path = folder / "qrels" / f"{split}.{name}"
        if name == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif name == "jsonl":
            write_lines(path, rows)
        else:
            path.write_text("\n".join("\t".join(map(str, row)) for row in [QRELS_HEADER, *grades]) + "\n")
    return folder


def refusal(read):
    with pytest.raises(ValueError) as caught:
        read()
    return str(caught.value)


def judged_by(folder):
    """What the folder's test split judges."""
    (task,) = own_tasks(str(folder), splits=["test"])
    task.load_data()
    return task.dataset["default"]["test"]["relevant_docs"]


@pytest.mark.parametrize("name", ["tsv", "jsonl", "parquet"])
def test_a_grade_may_be_a_float_that_is_whole(tmp_path, name):
    folder = graded(tmp_path, name, [("0", "0", 1.0), ("0", "10", 0.0), ("1", "30", 2.0)])
    assert said(str(folder)) == [
        (ROWS[0][0], ROWS[0][1], ROWS[0][2][:1], None, None),
        (ROWS[1][0], ROWS[1][1], (), None, None),
    ]
    assert judged_by(folder) == {"0": {"0": 1, "10": 0}, "1": {"30": 2}}
    assert all(type(grade) is int for judged in judged_by(folder).values() for grade in judged.values())


@pytest.mark.parametrize(
    ("name", "grade", "shown"),
    [
        ("parquet", 0.5, "row 2: score: 0.5 is no whole number"),
        ("parquet", float("nan"), "row 2: score: nan is no whole number"),
        ("parquet", None, "row 2: score: None is no whole number"),
        ("jsonl", 0.5, "line 2: score: 0.5 is no whole number"),
        ("jsonl", float("inf"), "line 2: score: inf is no whole number"),
        ("jsonl", True, "line 2: score: True is no whole number"),
        ("jsonl", [1], "line 2: score: [1] is no whole number"),
        pytest.param("jsonl", 10**400, "line 2: score: 1000", id="jsonl-10**400"),
        ("jsonl", 1e300, "line 2: score: 1e+300 is beyond any grade"),
        ("tsv", "0.5", "line 3: score: '0.5' is no whole number"),
        ("tsv", "-inf", "line 3: score: '-inf' is no whole number"),
        ("tsv", "1_0", "line 3: score: '1_0' is no whole number"),
        ("tsv", "9" * 20, "line 3: score: '99999999999999999999' is beyond any grade"),
    ],
)
def test_a_grade_that_is_no_whole_number_is_refused_by_its_row(tmp_path, name, grade, shown):
    rows = [("0", "0", 1 if name == "jsonl" else type(grade or 0.0)(1)), ("1", "30", grade)]
    folder = graded(tmp_path, name, rows)
    for read in (lambda: load_pairs(str(folder)), lambda: judged_by(folder)):
        message = refusal(read)
        assert shown in message and f".{name}, " in message
        assert "write 1 for a right passage, else 0" in message


def test_an_infinite_grade_ends_the_command_with_one_line(tmp_path, capsys):
    folder = graded(tmp_path, "jsonl", [("0", "0", float("inf"))])
    assert main(["data", "convert", str(folder), str(tmp_path / "out.jsonl")]) == 2
    assert "score: inf is no whole number" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tsv", "jsonl", "parquet"])
def test_a_pair_judged_twice_alike_counts_once_and_otherwise_is_refused(tmp_path, name):
    once = [("0", "0", 1), ("0", "10", 0), ("1", "30", 1)]
    folder = graded(tmp_path / "alike", name, [*once, once[1], once[0]])
    assert said(str(folder))[0] == (ROWS[0][0], ROWS[0][1], ROWS[0][2][:1], None, None)
    assert judged_by(folder) == {"0": {"0": 1, "10": 0}, "1": {"30": 1}}
    folder = graded(tmp_path / "otherwise", name, [*once, ("0", "10", 1)])
    first, last = ("line 3", "line 5") if name == "tsv" else ("line 2", "line 4")
    if name == "parquet":
        first, last = "row 2", "row 4"
    for read in (lambda: load_pairs(str(folder)), lambda: judged_by(folder)):
        message = refusal(read)
        assert f"{last}: score: 1 of passage '10' for query '0', which was 0 in " in message
        assert f"{first}; remove one of the two" in message


def test_a_negative_of_triples_is_none_where_anything_calls_it_right(tmp_path):
    folder = SAMPLES["msmarco"](tmp_path)
    for name in ("qrels.train.tsv", "queries.train.tsv"):
        (folder / name.replace("train", "test")).write_text((folder / name).read_text())
    (folder / "qidpidtriples.test.tsv").write_text("121352\t0\t1\n121352\t1\t2\n121352\t2\t0\n")
    assert judged_by(folder)["121352"] == {"0": 1, "1": 1, "2": 1}
    (row, _) = said(DataSource(path=str(folder), split="test"))
    assert row[1:3] == (ROWS[0][1] + ROWS[0][2], ())
    with (folder / "qrels.test.tsv").open("a") as file:
        file.write("121352\t0\t0\t0\n")
    for read in (lambda: load_pairs(DataSource(path=str(folder), split="test")), lambda: judged_by(folder)):
        assert "qrels.test.tsv, line 3: score: 0 of passage '0' for query '121352', which was 1 in " in refusal(read)
