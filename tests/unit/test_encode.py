"""Sources of texts: every format gives the same rows, and a bad row is named before a model is loaded."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.corpora import TEXTS, failing_load, rows, write_jsonl, write_source
from ullme.data import DataSource
from ullme.encode import TextSource, duplicates, encode_corpus
from ullme.encode.survey import survey


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "folder", "beir"])
def test_every_format_gives_the_same_texts_in_their_order(tmp_path, kind):
    found = list(TextSource(write_source(tmp_path, kind)).rows())
    assert [row.text for row in found] == TEXTS
    ids = [str(i + 1) if kind == "txt" else f"d{i}" for i in range(len(TEXTS))]
    assert [row.id for row in found] == ids


def test_a_gzipped_file_and_a_saved_dataset_are_sources_too(tmp_path):
    plain = write_source(tmp_path, "jsonl")
    (tmp_path / "more.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    datasets.Dataset.from_list(rows()).save_to_disk(tmp_path / "saved")
    for name in ("more.jsonl.gz", "saved"):
        assert [row[1:] for row in TextSource(tmp_path / name).rows()] == [r[1:] for r in TextSource(plain).rows()]


def test_of_saved_splits_one_is_named(tmp_path):
    splits = {"train": datasets.Dataset.from_list(rows()), "test": datasets.Dataset.from_list(rows()[:2])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "both")
    with pytest.raises(
        ValueError, match="both: holds several splits; give the folder of one: .*both/train, .*both/test"
    ):
        list(TextSource(tmp_path / "both").rows())
    assert len(list(TextSource(tmp_path / "both" / "test").rows())) == 2
    datasets.DatasetDict({"test": splits["test"]}).save_to_disk(tmp_path / "one")
    assert len(list(TextSource(tmp_path / "one").rows())) == 2


def test_a_beir_passage_is_its_title_and_its_text_and_queries_are_a_part(tmp_path):
    write_jsonl(
        tmp_path / "corpus.jsonl",
        [{"_id": "a", "title": "Rome", "text": "is a city"}, {"_id": "b", "title": "Only a title", "text": ""}],
    )
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q", "text": "where?"}])
    assert [row.text for row in TextSource(tmp_path).rows()] == ["Rome is a city", "Only a title"]
    assert [(row.id, row.text) for row in TextSource(tmp_path, part="queries").rows()] == [("q", "where?")]


BEIR = {
    "corpus": [
        {"_id": "a", "title": "", "text": " no title "},
        {"_id": "b", "title": "Rome", "text": "is a city"},
        {"_id": "c", "title": "Only a title", "text": ""},
    ],
    "queries": [{"_id": "q", "text": "where is it?"}, {"_id": "r", "text": "which?"}],
}


def beir_folder(folder, layout, content=BEIR):
    """The same collection in one of the layouts that training and evaluation read."""
    for part, listed in content.items():
        lines = "".join(json.dumps(row) + "\n" for row in listed).encode()
        inside, _, suffix = layout.rpartition(" ")
        place = folder / part / "part-0" if inside else folder / part
        place.parent.mkdir(parents=True, exist_ok=True)
        if suffix in (".parquet", ".pq"):
            pq.write_table(pa.Table.from_pylist(listed), f"{place}{suffix}")
        else:
            place.with_name(place.name + suffix).write_bytes(gzip.compress(lines) if suffix.endswith(".gz") else lines)
    (folder / "qrels").mkdir()
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\nq\tb\t0\nr\tb\t1\nr\ta\t0\n")
    return folder


LAYOUTS = [".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".parquet", ".pq"]
LAYOUTS += [f"inside {suffix}" for suffix in (".jsonl", ".parquet")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_beir_folder_gives_the_texts_that_training_reads(tmp_path, layout):
    folder = beir_folder(tmp_path / "beir", layout)
    corpus = [row[1:] for row in TextSource(folder).rows()]
    assert corpus == [("a", " no title "), ("b", "Rome is a city"), ("c", "Only a title")]
    queries = [row[1:] for row in TextSource(folder, part="queries").rows()]
    assert queries == [("q", "where is it?"), ("r", "which?")]
    pairs = list(DataSource(path=str(folder)).rows())
    assert [row["query"] for row in pairs] == [text for _, text in queries]
    assert {text for row in pairs for text in row["positives"]} == {text for _, text in corpus[:2]}


def test_a_part_in_several_files_is_read_whole(tmp_path):
    for i, row in enumerate(BEIR["corpus"]):
        write_jsonl(tmp_path / "corpus" / f"part-{i}.jsonl", [row])
    assert [row.id for row in TextSource(tmp_path).rows()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no queries.jsonl; it has corpus"):
        list(TextSource(tmp_path, part="queries").rows())


def test_a_title_that_the_first_passage_lacks_is_not_lost(tmp_path):
    content = {**BEIR, "corpus": [{"_id": "a", "text": "no title"}, {"_id": "b", "title": "Rome", "text": "is a city"}]}
    folder = beir_folder(tmp_path / "beir", ".jsonl", content)
    assert [row.text for row in TextSource(folder).rows()] == ["no title", "Rome is a city"]


def test_columns_can_be_named(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"body": "x", "key": 17, "head": "T", "text": "y"}])
    found = list(TextSource(path, column="body", id_column="key", title_column="head").rows())
    assert [(row.id, row.text) for row in found] == [("17", "T x")]


def test_the_digest_is_of_the_rows_and_not_of_the_file(tmp_path):
    digests = {survey(TextSource(write_source(tmp_path, k)), 10).digest for k in ("jsonl", "parquet", "folder", "beir")}
    assert len(digests) == 1
    changed = write_jsonl(tmp_path / "c.jsonl", [*rows()[:-1], {"_id": "d22", "text": TEXTS[22] + "!"}])
    assert survey(TextSource(changed), 10).digest not in digests


def test_a_survey_counts_rows_and_characters_of_each_shard(tmp_path):
    found = survey(TextSource(write_source(tmp_path, "jsonl")), shard_rows=10, sample_rows=5)
    assert (found.rows, found.characters) == (23, sum(map(len, TEXTS)))
    assert found.shard_characters == tuple(sum(map(len, TEXTS[i : i + 10])) for i in (0, 10, 20))
    assert len(found.shard_digests) == 3 and len(set(found.sample)) == 5 and set(found.sample) <= set(TEXTS)


def test_a_sample_does_not_depend_on_the_shards_and_is_of_the_whole_source(tmp_path):
    source = TextSource(write_jsonl(tmp_path / "many.jsonl", rows([f"text {i}" for i in range(1000)])))
    samples = [survey(source, size, sample_rows=100).sample for size in (7, 1000)]
    assert samples[0] == samples[1]
    places = [int(text.split()[1]) for text in samples[0]]
    assert len(set(places)) == 100 and 400 < sum(places) / 100 < 600


@pytest.mark.parametrize("at_once", [2**20, 4])
def test_an_id_that_stands_twice_is_named_with_both_places(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(duplicates, "_AT_ONCE", at_once)
    content = [{"_id": f"d{i}", "text": "x"} for i in range(20)]
    content[11]["_id"] = content[15]["_id"] = "d3"
    path = write_jsonl(tmp_path / "r.jsonl", content)
    with pytest.raises(ValueError, match=r"r\.jsonl, row 12: id: 'd3' stands in .*r\.jsonl, row 4 too"):
        survey(TextSource(path), 5)


BAD = [
    ("a.jsonl", b'{"txet": "x"}\n', "row 1: text: no column"),
    ("a.jsonl", b'{"text": 3}\n', "row 1: text: 3 is no text"),
    ("a.jsonl", b'{"text": null}\n', "row 1: text: None is no text"),
    ("a.jsonl", b'{"text": ["x"]}\n', "is no text"),
    ("a.jsonl", b'{"text": "x"}\n{"text": " "}\n', "row 2: text: ' ' is no text"),
    ("a.jsonl", b'{"text": "x", "id": 1}\n{"text": "y"}\n', "row 2: no column 'id'"),
    ("a.jsonl", b'{"text": "x", "id": null}\n', "id: None is no id"),
    ("a.jsonl", b'{"text": "x", "id": true}\n', "id: True is no id"),
    ("a.jsonl", b'{"text": "x", "id": 1}\n{"text": "y", "id": "1"}\n', "row 2: id: '1' stands in"),
    ("a.jsonl", b'{"text": "half \\ud83d"}\n', "is no character"),
    ("a.jsonl", b'{"text": \n', "broken JSON"),
    ("a.jsonl", b'"x"\n', "not an object"),
    ("a.jsonl", b"", "no texts"),
    ("a.txt", b"", "no texts"),
    ("a.txt", b"one\n\ntwo\n", "row 2"),
    ("a.txt", b"\xff\xfe\x00", "UTF-8"),
    ("a.parquet", b"PAR1", "unreadable Parquet"),
    ("a.pdf", b"x", "tells no format"),
    ("f/readme.md", b"x", "no texts in this folder"),
    ("f/queries.jsonl", b"{}\n", "no corpus.jsonl; it has queries"),
    ("none", None, "no such file or folder"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD)
def test_a_source_that_cannot_be_used_is_refused_before_a_model_is_loaded(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    source = path.parent if path.parent.name == "f" else path
    with pytest.raises(ValueError) as error:
        encode_corpus(failing_load, TextSource(source), tmp_path / "out")
    message = str(error.value)
    assert said in message and str(source) in message and "\n" not in message
    assert not (tmp_path / "out").exists()


def test_files_of_two_formats_are_not_mixed(tmp_path):
    (tmp_path / "a.txt").write_text("x\n")
    write_jsonl(tmp_path / "b.jsonl", [{"text": json.dumps("y")}])
    with pytest.raises(ValueError, match=r"several formats \(a\.txt and b\.jsonl\)"):
        list(TextSource(tmp_path).rows())


def test_an_unknown_part_is_refused(tmp_path):
    with pytest.raises(ValueError, match="part: 'query' is unknown; .*did you mean 'queries'"):
        TextSource(tmp_path, part="query")
    with pytest.raises(ValueError, match="no queries.jsonl"):
        list(TextSource(write_source(tmp_path, "folder"), part="queries").rows())
