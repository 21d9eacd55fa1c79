"""Files of texts to files of embeddings: rows keep their order, outputs are whole or absent."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ullme import encode
from ullme.encode import TextFile, encode_file

TEXTS = [f"text {i}" for i in range(7)]


def vectors(texts):
    """An embedding that says which text it belongs to."""
    return np.array([[float(text.split()[-1]), len(text), 1.0] for text in texts], dtype=np.float32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(encode, "_BLOCK_ROWS", 3)


def written(tmp_path, kind):
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
    path = tmp_path / f"texts.{kind}"
    if kind == "txt":
        path.write_text("\n".join(TEXTS))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_every_row_keeps_its_place_and_its_id(tmp_path, kind):
    seen = []
    manifest = encode_file(
        vectors, TextFile(written(tmp_path, kind)), tmp_path / "out", {"model": "m"}, advance=seen.append
    )
    stored = np.load(tmp_path / "out" / "embeddings.npy")
    np.testing.assert_array_equal(stored, vectors(TEXTS))
    ids = [json.loads(line) for line in (tmp_path / "out" / "ids.txt").read_text().splitlines()]
    assert ids == [str(i + 1) if kind == "txt" else f"d{i}" for i in range(7)]
    assert manifest["rows"] == 7 and manifest["dimension"] == 3 and manifest["model"] == "m"
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["rows"] == 7
    assert seen == [3, 3, 1]


def test_the_array_can_be_mapped_into_memory(tmp_path):
    encode_file(vectors, TextFile(written(tmp_path, "txt")), tmp_path / "out", {})
    assert np.load(tmp_path / "out" / "embeddings.npy", mmap_mode="r").shape == (7, 3)


def test_a_row_that_fails_late_leaves_nothing(tmp_path):
    source = written(tmp_path, "jsonl")
    with source.open("a") as file:
        file.write('{"_id": "x", "text": ""}\n')
    with pytest.raises(ValueError, match="row 8: text: '' is no text"):
        encode_file(vectors, TextFile(source), tmp_path / "out", {})
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


def test_a_folder_in_use_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(ValueError, match="exists already"):
        encode_file(vectors, TextFile(written(tmp_path, "txt")), tmp_path / "out", {})
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_columns_can_be_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "text 4", "key": 17, "text": "text 5"}\n')
    encode_file(vectors, TextFile(path, column="body", id_column="key"), tmp_path / "out", {})
    assert np.load(tmp_path / "out" / "embeddings.npy")[0, 0] == 4
    assert (tmp_path / "out" / "ids.txt").read_text() == '"17"\n'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"txet": "x"}\n', "no column"),
        ("a.jsonl", b'{"text": 3}\n', "is no text"),
        ("a.jsonl", b'{"text": \n', "broken JSON"),
        ("a.jsonl", b"", "no texts"),
        ("a.txt", b"", "no texts"),
        ("a.txt", b"\xff\xfe\x00", "UTF-8"),
        ("a.parquet", b"PAR1", "unreadable Parquet"),
        ("a.pdf", b"x", "tells no format"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_before_a_model_is_needed(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        TextFile(path).check()
