"""A row without query and positive is a text: its own query and its own positive."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny import tiny_tokenizer
from ullme.data import DataSource, PairBatchSampler, PairCollator, PairDataset, load_pairs
from ullme.prompts import TextTokenizer
from ullme.types import PairExample


@pytest.fixture
def source(tmp_path):
    """Rows, and ``columns`` if given, as a source of a JSON-lines file ``a.jsonl``."""

    def write(*rows, **columns):
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DataSource(path=str(path), columns=columns)

    return write


def refusal(source):
    with pytest.raises(ValueError) as error:
        load_pairs(source)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_text_alone_is_its_own_query_and_positive(source):
    wanted = PairExample("so it is", ("so it is",), source="a.jsonl", row_id="a.jsonl:1")
    assert load_pairs(source({"text": "so it is"}))[0] == wanted
    assert load_pairs(source({"sentence": "so it is", "id": 3}, text="sentence"))[0] == wanted
    assert load_pairs(source({"text": "so it is", "negatives": [], "scores": None}))[0] == wanted


def test_parquet_and_examples_at_hand_hold_texts_too(tmp_path):
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    assert [(e.query, e.positives) for e in load_pairs(tmp_path / "a.parquet")] == [
        ("one", ("one",)),
        ("two", ("two",)),
    ]
    assert PairDataset.from_examples([PairExample("one", ("one",))])[0].positives == ("one",)


def test_texts_and_pairs_may_share_a_source(source):
    rows = [{"text": "alone"}, {"query": "q", "positive": "p", "negative": "n"}, {"text": "also"}]
    dataset = load_pairs(source(*rows))
    assert [(e.query, e.positives, e.negatives) for e in dataset] == [
        ("alone", ("alone",), ()),
        ("q", ("p",), ("n",)),
        ("also", ("also",), ()),
    ]
    rows = [{"sentence": "alone"}, {"question": "q", "answer": "p"}]
    named = load_pairs(source(*rows, text="sentence", query="question", positives="answer"))
    assert [(e.query, e.positives) for e in named] == [("alone", ("alone",)), ("q", ("p",))]


def test_a_text_beside_a_pair_is_unread_unless_asked_for(source):
    row = {"query": "q", "positive": "p", "text": "t"}
    assert load_pairs(source(row))[0].query == "q"
    assert load_pairs(source(row, text="text"))[0].query == "t"
    assert load_pairs(source(row, query=[], positives=[], text="text"))[0].query == "t"


def test_a_text_takes_an_instruction(source):
    asked = load_pairs(source({"text": "t", "prompt": "find it"}, instruction="prompt"))[0]
    assert (asked.query, asked.instruction) == ("t", "find it")


BAD_ROWS = {
    "negatives": ({"text": "t", "negatives": ["n"]}, {}, "negatives: ['n'] does not go with a text alone ('text')"),
    "numbered negative": ({"text": "t", "negative_1": "n"}, {}, "negative_1: 'n' does not go with a text alone"),
    "scores": ({"text": "t", "scores": [1.0]}, {}, "columns: {scores: []} to leave it unread"),
    "named scores": ({"text": "t", "s": 0.5}, {"positive_scores": "s"}, "s: 0.5 does not go with a text alone"),
    "empty": ({"text": " "}, {}, "text: empty text ' '; fill it in"),
    "null": ({"text": None}, {}, "text: missing (null); write a text"),
    "a list": ({"text": ["a"]}, {}, "text: ['a'] is a list, not a text"),
    "two columns": ({"a": "x", "b": "y"}, {"text": ["a", "b"]}, "columns.text: one column says it; got ['a', 'b']"),
    "missing column": ({"sentense": "t"}, {"text": "sentence"}, "no column 'sentence', which columns.text names"),
    "near query": ({"text": "t", "Query": "q"}, {}, "no column 'query'; it has 'text', 'Query'; rename 'Query'"),
    "near positive": ({"text": "t", "postive": "q"}, {}, "no column 'positive' (or 'positives')"),
    "query that is named": ({"text": "t"}, {"query": "question"}, "no column 'question', which columns.query names"),
    "both": ({"s": "t", "q": "q"}, {"text": "s", "query": "q"}, "has both 's' (a text) and 'q' (a pair)"),
    "nothing": ({"body": "t"}, {}, "a text without a query goes under 'text'"),
    "query alone": ({"query": "q", "text": "t"}, {}, "no column 'positive' (or 'positives')"),
    "no query asked for": ({"query": "q", "positive": "p"}, {"query": []}, "columns.query: one column says it; got []"),
}


@pytest.mark.parametrize("row, columns, said", BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_text_is_named_with_its_cure(source, row, columns, said):
    given = source({"text": "good"} if not columns else row, row, **columns)
    message = refusal(given)
    assert f"{given.path}, line {2 if not columns else 1}: " in message and said in message


def test_a_text_does_not_clash_with_itself_but_with_its_repetition(source):
    dataset = load_pairs(source(*({"text": t} for t in ("a", "b", "a", "c"))))
    sampler = PairBatchSampler(dataset, 2)
    for epoch in range(4):
        sampler.set_epoch(epoch)
        batches = [sorted(batch) for batch in sampler]
        assert sorted(map(len, batches)) == [2, 2] and [0, 2] not in batches
    assert len(PairBatchSampler(load_pairs(source(*({"text": t} for t in "abcd"))), 4)) == 1


def test_a_text_is_tokenised_alike_as_query_and_passage(source):
    dataset = load_pairs(source({"text": "so it is"}, {"text": "and so on"}))
    batch = PairCollator(TextTokenizer(tiny_tokenizer()))(dataset.__getitems__([0, 1]))
    assert batch.query.ids_X.tolist() == batch.passage.ids_X.tolist()
    assert batch.query_key_B.tolist() == batch.passage_key_BP[:, 0].tolist()
    assert batch.positive_mask_BP.tolist() == [[True], [True]]
