"""Search over a corpus on disk: the same rows as comparing every embedding, with their texts."""

import numpy as np
import pytest
from rich.console import Console

from tests.corpora import TEXTS, Counter, rows, vector, write_jsonl, write_source
from ullme.apps.corpus_search import hits_of, require_model, show_hits
from ullme.encode import EmbeddedCorpus, EncodeOptions, TextSource, corpus, encode_corpus, nearest

MANY = [f"passage number {i}" for i in range(300)]
QUERIES = np.stack([vector(f"query {i}") for i in range(4)])
BACKENDS = ["numpy", "faiss"]


@pytest.fixture
def many(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_BLOCK_ROWS", 32)
    return TextSource(write_jsonl(tmp_path / "many.jsonl", rows(MANY)))


def opened(source, output, **options):
    encode_corpus(lambda device: Counter(), source, output, EncodeOptions(**{"shard_rows": 100, **options}))
    return EmbeddedCorpus(output)


def cosine(a, b):
    return a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


def require(backend):
    if backend == "faiss":
        pytest.importorskip("faiss", reason="faiss is not installed: pip install 'ullme[search]'")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("storage", ["npy", "parquet"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float16", 1e-3), ("int8", 0.05)])
def test_the_nearest_rows_are_those_of_all_comparisons(many, tmp_path, backend, storage, precision, tolerance):
    require(backend)
    found = nearest(opened(many, tmp_path / "out", storage=storage, precision=precision), QUERIES, 10, backend)
    score_BN = cosine(QUERIES, np.stack([vector(text) for text in MANY]))
    for hits, score_N in zip(found, score_BN, strict=True):
        best_N = np.sort(score_N)[::-1]
        np.testing.assert_allclose([score for _, score in hits], score_N[[row for row, _ in hits]], atol=tolerance)
        np.testing.assert_allclose([score for _, score in hits], best_N[:10], atol=tolerance)
        assert len({row for row, _ in hits}) == 10
        if precision == "float32":
            assert [row for row, _ in hits] == np.argsort(-score_N)[:10].tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_bits_are_ranked_by_their_distance_and_then_by_the_querys_numbers(many, tmp_path, backend, precision):
    require(backend)
    found = nearest(opened(many, tmp_path / "out", precision=precision), QUERIES, 5, backend)
    sign_ND = np.where(np.stack([vector(text) for text in MANY]) > 0, 1.0, -1.0)
    score_BN = cosine(QUERIES, sign_ND)
    distance_BN = (sign_ND[None] != np.where(QUERIES > 0, 1, -1)[:, None]).sum(-1)
    for hits, score_N, distance_N in zip(found, score_BN, distance_BN, strict=True):
        at = [row for row, _ in hits]
        np.testing.assert_allclose([score for _, score in hits], score_N[at], atol=1e-6)
        nearer_N = score_N[distance_N < np.sort(distance_N)[5 * 8 - 1]]  # certainly among the candidates
        assert sorted(score_N[at])[0] >= np.sort(nearer_N)[-5] - 1e-6


def test_a_corpus_smaller_than_what_is_asked_for_is_returned_whole(tmp_path):
    for precision in ("float32", "binary"):
        found = opened(TextSource(write_source(tmp_path, "jsonl")), tmp_path / precision, precision=precision)
        assert sorted(row for row, _ in nearest(found, QUERIES[:1], 99)[0]) == list(range(len(TEXTS)))


def test_a_text_finds_itself_and_is_shown(tmp_path):
    found = hits_of(Counter(), opened(TextSource(write_source(tmp_path, "beir")), tmp_path / "out"), TEXTS[7], 3)
    assert (found[0].id, found[0].text, round(found[0].score, 5)) == ("d7", TEXTS[7], 1.0) and len(found) == 3
    console = Console(record=True, width=80)
    show_hits("a [b]", found, console)
    shown = console.export_text()
    assert TEXTS[7] in shown and "d7" in shown and "1.000" in shown and "a [b]" in shown and "--corpus" not in shown


def test_a_truncated_corpus_is_searched_with_a_truncated_query(tmp_path):
    found = opened(TextSource(write_source(tmp_path, "jsonl")), tmp_path / "out", truncate_dim=5, normalize=True)
    assert hits_of(Counter(), found, TEXTS[3], 1)[0].id == "d3"
    with pytest.raises(ValueError, match="query: 8 dimensions, the corpus has 5"):
        nearest(found, QUERIES)


def test_texts_that_were_not_kept_come_from_the_source(tmp_path):
    source = TextSource(write_source(tmp_path, "jsonl"))
    found = opened(source, tmp_path / "out", keep_text=False)
    without = hits_of(Counter(), found, TEXTS[7], 2)
    assert [hit.text for hit in without] == [None, None]
    console = Console(record=True, width=80)
    show_hits("query", without, console)
    shown = console.export_text()
    assert "d7" in shown and "--corpus" in shown
    elsewhere = found.source(write_source(tmp_path, "parquet"))
    assert hits_of(Counter(), found, TEXTS[7], 1, texts=elsewhere)[0].text == TEXTS[7]
    other = found.source(write_jsonl(tmp_path / "other.jsonl", rows()[:5]))
    with pytest.raises(ValueError, match=r"other\.jsonl: row 8 is not 'd7'"):
        hits_of(Counter(), found, TEXTS[7], 1, texts=other)
    with pytest.raises(ValueError, match="no such file"):
        found.source(tmp_path / "none.jsonl")


def test_a_prompt_is_put_before_the_query(tmp_path):
    found = opened(TextSource(write_source(tmp_path, "jsonl")), tmp_path / "out")
    assert hits_of(Counter(), found, TEXTS[7].removeprefix("word "), 1, prompt="word ")[0].id == "d7"


def test_another_model_is_refused(tmp_path):
    found = opened(TextSource(write_source(tmp_path, "jsonl")), tmp_path / "out")
    require_model(found, "counter")
    with pytest.raises(ValueError, match=r"fingerprint counter\), this one is other; use that model"):
        require_model(found, "other")


def test_what_is_no_corpus_or_an_unfinished_one_is_refused(tmp_path):
    source = TextSource(write_source(tmp_path, "jsonl"))
    with pytest.raises(ValueError, match="is no corpus"):
        EmbeddedCorpus(tmp_path / "none")
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(lambda device: Counter(fail_after=10), source, tmp_path / "out", EncodeOptions(shard_rows=10))
    with pytest.raises(ValueError, match="is not finished; run the same ullme encode command again"):
        EmbeddedCorpus(tmp_path / "out")


def test_a_damaged_file_is_found(tmp_path):
    found = opened(TextSource(write_source(tmp_path, "jsonl")), tmp_path / "out", precision="int8")
    found.check()
    for name in ("embeddings-00000.npy", "rows-00000.parquet", "ranges.npy"):
        path = tmp_path / "out" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{name}' is missing or damaged"):
            found.check()
        path.write_bytes(content)


def test_impossible_searches_are_refused(tmp_path):
    found = opened(TextSource(write_source(tmp_path, "jsonl")), tmp_path / "out")
    with pytest.raises(ValueError, match="query: empty"):
        hits_of(Counter(), found, " ")
    with pytest.raises(ValueError, match="top_k: 0"):
        nearest(found, QUERIES, 0)
    with pytest.raises(ValueError, match="backend: 'fais' is unknown.*did you mean 'faiss'"):
        nearest(found, QUERIES, backend="fais")
