"""Shards: every row keeps its place, and an interrupted run ends with the bytes of an uninterrupted one."""

import fcntl
import os
import resource

import numpy as np
import pytest
from sentence_transformers.util.quantization import quantize_embeddings

from tests.corpora import TEXTS, Counter, failing_load, rows, tree, vector, write_jsonl, write_source
from ullme.encode import EmbeddedCorpus, EncodeOptions, TextSource, encode_corpus, pipeline


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(pipeline, "WINDOW_ROWS", 3)


@pytest.fixture
def source(tmp_path):
    return TextSource(write_source(tmp_path, "jsonl"))


def encoded(source, output, model=None, **options):
    model = model or Counter()
    return encode_corpus(lambda device: model, source, output, EncodeOptions(**{"shard_rows": 10, **options}))


def stored(folder):
    return np.concatenate([np.array(block) for _, block in EmbeddedCorpus(folder).stored_blocks()])


@pytest.mark.parametrize("storage", ["npy", "parquet"])
@pytest.mark.parametrize("shard_rows", [1, 10, 23, 100])
def test_every_row_keeps_its_place_its_id_and_its_text(source, tmp_path, storage, shard_rows):
    manifest = encoded(source, tmp_path / "out", storage=storage, shard_rows=shard_rows)
    np.testing.assert_array_equal(stored(tmp_path / "out"), [vector(text) for text in TEXTS])
    corpus = EmbeddedCorpus(tmp_path / "out")
    entries = corpus.entries(range(23))
    assert [(e.id, e.text) for e in entries] == [(row["_id"], row["text"]) for row in rows()]
    assert [shard["rows"] for shard in manifest["shards"]] == [
        min(shard_rows, 23 - i) for i in range(0, 23, shard_rows)
    ]
    assert (manifest["rows"], manifest["dimension"], manifest["dtype"]) == (23, 8, "float32")
    corpus.check()


def test_a_shard_of_npy_can_be_mapped_into_memory_by_numpy_alone(source, tmp_path):
    encoded(source, tmp_path / "out")
    assert np.load(tmp_path / "out" / "embeddings-00002.npy", mmap_mode="r").shape == (3, 8)


@pytest.mark.parametrize("fail_after", [0, 3, 9, 10, 13, 20, 22])
@pytest.mark.parametrize("storage", ["npy", "parquet"])
def test_an_interrupted_run_continues_to_the_same_bytes(source, tmp_path, fail_after, storage):
    encoded(source, tmp_path / "whole", storage=storage)
    with pytest.raises(KeyboardInterrupt):
        encoded(source, tmp_path / "out", Counter(fail_after=fail_after), storage=storage)
    second = Counter()
    encoded(source, tmp_path / "out", second, storage=storage)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert len(second.seen) == 23 - fail_after // 10 * 10  # finished shards are not computed again


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_run_that_stops_at_any_step_of_writing_continues_to_the_same_bytes(source, tmp_path, monkeypatch, call):
    options = {"precision": "int8", "calibration_rows": 9}
    encoded(source, tmp_path / "whole", **options)
    real, steps = getattr(os, call), 0

    def stopping(*args):
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise KeyboardInterrupt
        return real(*args)

    for stop_at in range(1, 100):
        steps = 0
        monkeypatch.setattr(os, call, stopping)
        try:
            encoded(source, tmp_path / f"out{stop_at}", **options)
        except KeyboardInterrupt:
            monkeypatch.setattr(os, call, real)
            encoded(source, tmp_path / f"out{stop_at}", **options)
            assert tree(tmp_path / f"out{stop_at}") == tree(tmp_path / "whole")
        else:
            break
    assert stop_at > 10


def test_a_corpus_that_is_complete_is_left_as_it_is(source, tmp_path):
    encoded(source, tmp_path / "out")
    before, model = tree(tmp_path / "out"), Counter()
    encoded(source, tmp_path / "out", model)
    assert model.seen == [] and tree(tmp_path / "out") == before


def test_a_finished_shard_that_vanished_is_computed_again(source, tmp_path):
    encoded(source, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        encoded(source, tmp_path / "out", Counter(fail_after=20))
    (tmp_path / "out" / "embeddings-00000.npy").unlink()
    model = Counter()
    encoded(source, tmp_path / "out", model)
    assert len(model.seen) == 13 and tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shard_rows": 11}, "shard_rows=10, and this one has 11"),
        ({"normalize": True}, "normalize=False"),
        ({"truncate_dim": 4}, "truncate_dim=None"),
        ({"precision": "int8"}, "precision='float32', and this one has 'int8'"),
        ({"storage": "parquet"}, "storage='npy'"),
        ({"keep_text": False}, "keep_text=True"),
        ({"prompt": "Query: "}, "prompt='', and this one has 'Query: '"),
    ],
)
def test_other_options_are_refused_and_named(source, tmp_path, options, said, finished):
    begin(source, tmp_path / "out", finished)
    with pytest.raises(ValueError) as error:
        encoded(source, tmp_path / "out", **options)
    assert said in str(error.value) and "name a new folder, or set" in str(error.value)


def begin(source, output, finished):
    try:
        encoded(source, output, Counter(fail_after=None if finished else 10))
    except KeyboardInterrupt:
        assert not finished


@pytest.mark.parametrize("finished", [False, True])
def test_another_model_or_source_is_refused(source, tmp_path, finished):
    begin(source, tmp_path / "out", finished)
    with pytest.raises(ValueError, match="model fingerprint='counter', and this one has 'other'"):
        encoded(source, tmp_path / "out", Counter("other"))
    changed = TextSource(write_jsonl(tmp_path / "other.jsonl", rows(TEXTS[::-1])))
    with pytest.raises(ValueError, match="source digest="):
        encode_corpus(failing_load, changed, tmp_path / "out", EncodeOptions(shard_rows=10))


def test_the_same_rows_in_another_file_continue_the_run(source, tmp_path):
    begin(source, tmp_path / "out", finished=False)
    model = Counter()
    encoded(TextSource(write_source(tmp_path, "parquet")), tmp_path / "out", model)
    assert len(model.seen) == 13


def test_a_source_that_changes_meanwhile_is_noticed(source, tmp_path):
    def load(device):
        write_jsonl(source.path, rows([*TEXTS[:15], "changed", *TEXTS[16:]]))
        return Counter()

    with pytest.raises(ValueError, match="rows 11 to 20 changed while they were being encoded"):
        encode_corpus(load, source, tmp_path / "out", EncodeOptions(shard_rows=10))


@pytest.mark.parametrize("precision", ["float16", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("storage", ["npy", "parquet"])
def test_what_is_stored_is_what_sentence_transformers_quantises(source, tmp_path, precision, storage):
    manifest = encoded(source, tmp_path / "out", precision=precision, storage=storage, normalize=True, truncate_dim=6)
    found, vectors = stored(tmp_path / "out"), np.stack([vector(text)[:6] for text in TEXTS])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = vectors.astype(np.float16)
    if precision != "float16":
        ranges = np.stack([vectors.min(0), vectors.max(0)])  # the source has fewer rows than are calibrated on
        expected = quantize_embeddings(vectors, precision, ranges=ranges)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype == manifest["dtype"] and manifest["dimension"] == 6
    assert (manifest["ranges"] is not None) == ("int8" in precision)


def test_the_ranges_of_bytes_are_those_of_the_recorded_number_of_texts(source, tmp_path):
    manifest = encoded(source, tmp_path / "out", precision="int8", calibration_rows=5)
    ranges_2D = np.load(tmp_path / "out" / "ranges.npy")
    inside = [vector(t) for t in TEXTS if (ranges_2D[0] <= vector(t)).all() and (vector(t) <= ranges_2D[1]).all()]
    assert manifest["options"]["calibration_rows"] == 5 and 5 <= len(inside) < 23


@pytest.mark.parametrize(
    ("part", "prompts", "given", "used"),
    [
        ("corpus", {"document": "D: ", "query": "Q: "}, None, "D: "),
        ("queries", {"document": "D: ", "query": "Q: "}, None, "Q: "),
        ("corpus", {"document": "D: "}, "", ""),
        ("corpus", {}, "mine ", "mine "),
        ("corpus", {}, None, ""),
    ],
)
def test_the_prompt_is_the_given_one_or_the_models_own(tmp_path, part, prompts, given, used):
    source = TextSource(write_source(tmp_path, "beir"), part=part)
    manifest = encoded(source, tmp_path / "out", Counter(prompts=prompts), prompt=given)
    first = next(source.rows()).text
    assert manifest["options"]["prompt"] == used
    np.testing.assert_array_equal(stored(tmp_path / "out")[0], vector(used + first))


def test_a_folder_of_something_else_is_not_touched(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(ValueError, match="exists already and holds no corpus"):
        encode_corpus(failing_load, source, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(ValueError, match="manifest.json is not of ullme encode"):
        encode_corpus(failing_load, source, tmp_path / "out")
    with pytest.raises(ValueError, match="is a file"):
        encode_corpus(failing_load, source, source.path)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "mine"]


def test_two_runs_do_not_write_one_folder(source, tmp_path):
    (tmp_path / "out" / ".unfinished").mkdir(parents=True)
    with (tmp_path / "out" / ".unfinished" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="is being written by another process"):
            encoded(source, tmp_path / "out")
    encoded(source, tmp_path / "out")


def test_an_embedding_that_is_not_finite_is_refused_with_its_row(source, tmp_path):
    model = Counter()
    model.encode = lambda texts, **_: np.stack([vector(t) if t != TEXTS[4] else vector(t) / 0 for t in texts])
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match=r"row 5: its embedding is not finite"):
        encoded(source, tmp_path / "out", model)


def test_a_file_that_cannot_be_written_whole_is_an_error_and_nothing_of_it_stays(tmp_path):
    source = TextSource(write_jsonl(tmp_path / "many.jsonl", rows([f"text {i}" for i in range(200)])))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5600, limits[1]))  # as a full disk, which the embeddings meet first
    try:
        with pytest.raises(OSError, match="File too large"):
            encoded(source, tmp_path / "out", shard_rows=200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tree(tmp_path / "out")) == [".unfinished/job.json", ".unfinished/lock"]
    encoded(source, tmp_path / "out", shard_rows=200)
    assert len(EmbeddedCorpus(tmp_path / "out")) == 200


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "int4"}, "precision: 'int4' is unknown.*did you mean 'int8'"),
        ({"storage": "parket"}, "did you mean 'parquet'"),
        ({"shard_rows": 0}, "shard_rows: 0 is too small"),
        ({"truncate_dim": 9}, "truncate_dim: 9 is more than the model's 8 dimensions; give at most 8"),
        ({"precision": "int8", "calibration_rows": 1}, "calibration_rows: 1 is too small"),
    ],
)
def test_options_that_cannot_work_are_refused(source, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        encoded(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_one_text_cannot_be_calibrated_on(tmp_path):
    source = TextSource(write_jsonl(tmp_path / "one.jsonl", rows(["alone"])))
    with pytest.raises(ValueError, match="precision: 'int8' needs at least 2 texts"):
        encoded(source, tmp_path / "out", precision="int8")
