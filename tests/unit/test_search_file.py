"""``ullme search MODEL FILE QUERY``: the texts of a file are those that every other command reads in it."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.corpora import Counter
from ullme.apps.search import read_passages
from ullme.cli import main
from ullme.data import DataSource
from ullme.encode import EncodeOptions, TextSource, encode_corpus

#: What is one text, and breaks into two where lines are split as ``str.splitlines`` splits them.
ODD = ["one\u2028line", "two\u0085lines", "three\x0cpages", "four\x1ctapes", "five"]
BOM = b"\xef\xbb\xbf"


def json_lines(texts=ODD):
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


FILES = {
    "plain.txt": ("\n".join(ODD) + "\n").encode(),
    "mark.txt": BOM + "\n".join(ODD).encode(),
    "CAPITAL.TXT": "\n".join(ODD).encode(),
    "windows.txt": "\r\n".join(ODD).encode(),
    "rows.jsonl": json_lines(),
    "mark.jsonl": BOM + json_lines(),
    "CAPITAL.JSONL": json_lines(),
    "windows.jsonl": json_lines().replace(b"\n", b"\r\n"),
    "rows.ndjson": json_lines(),
    "rows.jsonl.gz": gzip.compress(json_lines()),
    "rows.ndjson.gz": gzip.compress(json_lines()),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_the_texts_that_encode_reads_in_it(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    assert read_passages(path) == ODD == [row.text for row in TextSource(path).rows()]


@pytest.mark.parametrize("column", ["text", "passage", "sentence", "contents"])
@pytest.mark.parametrize("suffix", [".parquet", ".pq"])
def test_a_parquet_file_is_read_too(tmp_path, suffix, column):
    path = tmp_path / f"rows{suffix}"
    pq.write_table(pa.Table.from_pylist([{column: text} for text in ODD]), path)
    assert read_passages(path) == ODD == [row.text for row in TextSource(path).rows()]


@pytest.mark.parametrize("suffix", [".ndjson", ".parquet"])
def test_of_pairs_the_positives_are_searched_as_training_reads_them(tmp_path, suffix):
    path = tmp_path / f"pairs{suffix}"
    pairs = [{"query": "a", "positives": ODD[:3]}, {"query": "b", "positives": ODD[3:]}]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(pairs), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs))
    rows = DataSource(path=str(path)).rows()
    assert read_passages(path) == ODD == [text for row in rows for text in row["positives"]]


def test_blank_lines_are_passed_over_and_bare_strings_are_texts(tmp_path):
    (tmp_path / "a.txt").write_bytes(BOM + b"\n \n one \n\x0c\n\ntwo\n")
    assert read_passages(tmp_path / "a.txt") == ["one", "two"]
    (tmp_path / "a.ndjson").write_bytes(BOM + '\n"one\u2028line"\n\n{"text": "two"}\n'.encode())
    assert read_passages(tmp_path / "a.ndjson") == ["one\u2028line", "two"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'{"text": "x"}\n', "tells no format; end it in .txt, .jsonl"),
        ("a.csv", b"text\nx\n", "tells no format"),
        ("a.jsonl", b'{"text": "x"}\n\xff\n', "line 2: byte 0xff is not UTF-8; save"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": " "}\n', "line 3: no text"),
        ("a.jsonl", b'{"query": "x"}\n', "line 1: no text"),
        ("a.jsonl", b"\n\n", "no passages"),
        ("a.jsonl.gz", b"no gzip", "broken gzip file"),
        ("a.parquet", b"PAR1", "unreadable Parquet file"),
    ],
)
def test_a_file_that_cannot_be_searched_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_passages(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and said in str(error.value) and "\n" not in str(error.value)


def test_a_folder_is_refused_with_the_command_that_reads_it(tmp_path):
    with pytest.raises(ValueError, match="is a folder; .* ullme encode"):
        read_passages(tmp_path)


LONG = "how do I open a file? " * 40


def test_a_query_may_be_longer_than_a_files_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.txt").write_text(f"other\n{LONG.strip()}\n")
    source = TextSource(tmp_path / "a.txt")
    encode_corpus(lambda device: Counter(), source, tmp_path / "out", EncodeOptions(), model="counter")
    monkeypatch.setattr("ullme.cli.model_options.embedder", lambda *how: Counter())
    monkeypatch.setattr("ullme.eval.identity.fingerprint", lambda model: model.name)
    assert main(["search", str(tmp_path / "out"), LONG.strip(), "--top-k", "1"]) == 0
    assert "1.000" in capsys.readouterr().out


def test_a_text_in_the_place_of_a_file_is_one_line(tmp_path, capsys):
    assert main(["search", str(tmp_path), LONG, "query"]) == 2
    assert "no such file" in capsys.readouterr().err
