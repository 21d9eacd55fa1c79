"""Documentation pairs: nothing leaks from passage to query or from training to test, and all is deterministic."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from rich.console import Console

from ullme.apps.doc_pairs import doc_pairs, write_jsonl
from ullme.apps.doc_sources import documented
from ullme.apps.doc_text import pair_of
from ullme.apps.retrieval import RetrievalTask
from ullme.apps.search import hits_table, read_passages, search, show_search
from ullme.data import load_pairs

PACKAGES = ("asyncio", "email", "http", "logging", "unittest", "xml", "tkinter", "importlib", "concurrent")


@pytest.fixture(scope="module")
def pairs():
    return doc_pairs(PACKAGES, seed=1)


def unit(name):
    return ".".join(name.split(".")[:2])


def test_the_same_machine_gives_the_same_pairs(pairs):
    assert doc_pairs(PACKAGES, seed=1) == pairs
    assert doc_pairs(PACKAGES, seed=2) != pairs


def test_no_subpackage_is_in_training_and_test(pairs):
    assert len(pairs.train) > 100 and len(pairs.queries) > 10
    assert not {row.source for row in pairs.train} & {unit(name) for name in pairs.corpus}


def test_a_query_leads_to_its_own_passage(pairs):
    assert set(pairs.queries) <= set(pairs.corpus)
    assert pairs.qrels == {name: {name: 1} for name in pairs.queries}


def test_no_text_comes_twice(pairs):
    queries = [row.query.lower() for row in pairs.train] + [q.lower() for q in pairs.queries.values()]
    passages = [row.positives[0] for row in pairs.train] + list(pairs.corpus.values())
    assert len(set(queries)) == len(queries) and len(set(passages)) == len(passages)


def test_no_passage_holds_its_query(pairs):
    assert not any(row.query in row.positives[0] for row in pairs.train)
    assert not any(query in pairs.corpus[name] for name, query in pairs.queries.items())


def test_negatives_are_siblings_and_never_the_positive(pairs):
    module_of = {row.positives[0]: row.source for row in pairs.train}
    assert sum(bool(row.negatives) for row in pairs.train) > 0.7 * len(pairs.train)
    for row in pairs.train:
        assert row.positives[0] not in row.negatives
        assert all(module_of[negative] == row.source for negative in row.negatives)


def test_passages_are_short(pairs):
    assert max(len(text.split()) for text in pairs.corpus.values()) <= 40


def test_limits_are_kept():
    few = doc_pairs(PACKAGES, max_train=20, max_queries=5, max_corpus=9, negatives=1, seed=1)
    assert (len(few.train), len(few.queries), len(few.corpus)) == (20, 5, 9)
    assert max(len(row.negatives) for row in few.train) <= 1


def test_training_pairs_survive_a_file(pairs, tmp_path):
    write_jsonl(pairs.train, tmp_path / "pairs.jsonl")
    read = load_pairs(tmp_path / "pairs.jsonl")
    assert [(e.query, e.positives, e.negatives) for e in (read[i] for i in range(len(read)))] == [
        (row.query, row.positives, row.negatives) for row in pairs.train
    ]


def test_sources_are_read_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "trap_package"
    package.mkdir()
    (package / "__init__.py").write_text('"""Doc."""\nraise SystemExit\n')
    (package / "broken.py").write_text('"""Doc."""\ndef (:\n')
    code = 'def f():\n    """Do f."""\nclass C:\n    """Be C."""\n    def m(self):\n        """Do m."""\n'
    (package / "good.py").write_text(code + 'def _hidden():\n    """Hide."""\n')
    (package / "tests").mkdir()
    (package / "tests" / "test_f.py").write_text('def test_f():\n    """Test f."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    found = list(documented(["trap_package", "no_such_package_here"]))
    assert [thing.name for thing in found] == [f"trap_package.good.{name}" for name in ("f", "C", "C.m")]
    assert {thing.unit for thing in found} == {"trap_package.good"}
    assert "trap_package" not in sys.modules


def test_too_little_documentation_is_refused():
    with pytest.raises(ValueError, match="packages: no_such_package_here have too little"):
        doc_pairs(["no_such_package_here"])
    with pytest.raises(ValueError, match="passage_words: 3 is too short"):
        doc_pairs(PACKAGES, passage_words=3)


LONG = "It needs at least fifteen words to tell one thing from another, so here are some more of them."


def test_a_documentation_string_becomes_query_and_passage():
    doc = f"Return the :func:`nearest <x.y>` thing.  {LONG}\n\nExamples\n--------\n>>> f(1)\n2\n\nNotes\n-----\nMore."
    assert pair_of(doc, "f", 40) == ("Return the nearest thing.", f"{LONG} More.")
    assert pair_of(doc, "f", 16)[1] == " ".join(LONG.split()[:16])


def test_a_code_name_in_the_query_is_gone_from_the_passage():
    query, passage = pair_of(f"Do what order_at_oo does.\n\norder_at_oo is odd. {LONG}", "order_at_oo", 40)
    assert "order_at_oo" in query and passage.startswith("it is odd.")
    assert "order" in pair_of(f"Return the order here.\n\nThe order is odd. {LONG}", "order", 40)[1]


@pytest.mark.parametrize(
    "doc",
    ["", "Short one.", "Only a summary here.", f"a = b + c * d / 2\n\n{LONG}", "Too little follows this.\n\nX."],
)
def test_what_makes_no_pair_is_left_out(doc):
    assert pair_of(doc, "f", 40) is None


def bag(texts):
    """Embeddings in which equal words meet."""
    rows = np.zeros((len(texts), 4096), dtype=np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.lower().split():
            row[sum(ord(c) * 31**i for i, c in enumerate(word)) % 4096] += 1
    return rows


TASK = RetrievalTask(
    {"a": "red apple pie", "b": "green pear tart", "c": "blue plum jam"},
    {"1": "apple pie", "2": "plum jam"},
    {"1": {"a": 1}, "2": {"c": 1}},
)


def test_a_perfect_encoder_scores_one_and_a_constant_one_less():
    assert TASK(bag) == {"ndcg@10": 1.0, "recall@10": 1.0, "recall@100": 1.0, "mrr": 1.0}
    assert TASK(lambda texts: np.ones((len(texts), 4)))["mrr"] < 1


def test_ndcg_is_discounted_by_rank():
    task = RetrievalTask(TASK.corpus, {"1": "apple pie"}, {"1": {"b": 1}})
    direction = {"red apple pie": 3, "green pear tart": 2, "blue plum jam": 1, "apple pie": 3}
    scores = task(lambda texts: np.array([[direction[t], 3 - direction[t]] for t in texts], dtype=np.float32))
    assert scores["ndcg@10"] == pytest.approx(1 / np.log2(3)) and scores["mrr"] == 0.5


class Bag:
    encode_query = encode_document = staticmethod(bag)


def test_search_returns_the_nearest_first():
    hits = search(Bag(), list(TASK.corpus.values()), "plum jam", top_k=2)
    assert [text for _, text in hits][0] == "blue plum jam" and hits[0][0] > hits[1][0]
    assert len(search(Bag(), ["only one"], "one", top_k=9)) == 1


def test_search_shows_a_table():
    console = Console(width=60, record=True, file=open("/dev/null", "w"))
    show_search(Bag(), list(TASK.corpus.values()), "plum jam", console=console)
    assert "blue plum jam" in console.export_text()


def test_passages_are_read_from_lines_and_rows(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \none\n")
    assert read_passages(tmp_path / "a.txt") == ["one", "two"]
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"query": "q", "positives": ["two", "three"]}\n"four"\n')
    assert read_passages(tmp_path / "a.jsonl") == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("none.txt", None, "no such file"),
        ("empty.txt", b"\n", "no passages"),
        ("bytes.txt", b"\xff\xfe", "not UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{', "line 2: broken JSON"),
        ("field.jsonl", b'{"txt": "a"}', "line 1: no text"),
    ],
)
def test_a_bad_file_of_passages_is_named(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_passages(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and said in str(error.value) and "\n" not in str(error.value)


def test_impossible_searches_are_refused():
    with pytest.raises(ValueError, match="query: empty"):
        search(Bag(), ["a"], " ")
    with pytest.raises(ValueError, match="passages: none"):
        search(Bag(), [], "a")
    with pytest.raises(ValueError, match="top_k: 0"):
        search(Bag(), ["a"], "a", top_k=0)


def test_brackets_of_a_passage_are_shown_and_not_taken_for_markup():
    console = Console(record=True, width=80)
    console.print(hits_table("a[0] [/b]", [(0.5, "x[1:] and [/bold] stay")]))
    text = console.export_text()
    assert "a[0] [/b]" in text and "x[1:] and [/bold] stay" in text
