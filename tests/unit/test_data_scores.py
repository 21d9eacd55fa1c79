"""A teacher's scores stay with their passages, from the file to the batch."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.tiny import tiny_tokenizer
from ullme.data import DataSource, PairCollator, PairDataset, load_pairs, mine_negatives
from ullme.data.schema import text_key
from ullme.prompts import TextTokenizer
from ullme.types import PairExample

PAIR = {"query": "q", "positives": ["p", "p2"], "negatives": ["n", "n2", "n3"]}
FLAG = {"positive_scores": "pos_scores", "negative_scores": "neg_scores"}


def load(tmp_path, *rows, **columns):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_pairs(DataSource(path=str(path), columns=columns))


def refusal(call):
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "scores, columns",
    [
        ({"scores": [5, 4.5, 3, -2, 0.25]}, {}),
        ({"teacher": [5, 4.5, 3, -2, 0.25]}, {"scores": "teacher"}),
        ({"teacher": [5, 4.5, 3, -2, 0.25]}, {"score": "teacher"}),
        ({"positive_scores": [5, 4.5], "negative_scores": [3, -2, 0.25]}, {}),
        ({"pos_scores": [5, 4.5], "neg_scores": [3, -2, 0.25]}, FLAG),
        ({"a": 5, "b": 4.5, "c": [3, -2, 0.25]}, {"scores": ["a", "b", "c"]}),
    ],
)
def test_scores_are_read_positives_first(tmp_path, scores, columns):
    assert load(tmp_path, {**PAIR, **scores}, **columns)[0].scores == (5.0, 4.5, 3.0, -2.0, 0.25)


def test_a_single_number_goes_with_a_single_column(tmp_path):
    row = {"query": "q", "positive": "p"}
    assert load(tmp_path, {**row, "scores": 0.5})[0].scores == (0.5,)
    assert load(tmp_path, {**row, "positive_score": 1})[0].scores == (1.0,)
    row["negative"] = "n"
    assert load(tmp_path, {**row, "positive_score": 1, "negative_score": 0})[0].scores == (1.0, 0.0)


def test_a_row_may_have_no_scores(tmp_path):
    row = {"query": "q", "positive": "p"}
    dataset = load(tmp_path, {**row, "scores": [0.1]}, {**row, "scores": None}, row, {**row, "scores": []})
    assert [e.scores for e in dataset] == [(0.1,), None, None, None]
    assert load(tmp_path, {**row, "pos_scores": [], "neg_scores": []}, **FLAG)[0].scores is None
    assert dataset.summary()["a.jsonl"]["rows_with_scores"] == 1
    assert load(tmp_path, {**row, "scores": "unread"}, scores=[])[0].scores is None


def test_parquet_keeps_scores(tmp_path):
    pq.write_table(pa.Table.from_pylist([{**PAIR, "scores": [0.1, 1, 2, 3, 4]}, PAIR]), tmp_path / "a.parquet")
    assert [e.scores for e in load_pairs(tmp_path / "a.parquet")] == [(0.1, 1.0, 2.0, 3.0, 4.0), None]


def test_examples_at_hand_keep_scores():
    given = PairExample("q", ("p",), ("n",), scores=(0.1, 0.2))
    assert PairDataset.from_examples([given])[0].scores == (0.1, 0.2)


BAD_SCORES = {
    "too few": ({"scores": [1, 2]}, "scores: 2 scores for 5 positives and negatives; give one number for each"),
    "one for many": ({"scores": 0.5}, "scores: 1 scores for 5 positives and negatives"),
    "too many": ({"positive_scores": [1, 2, 3], "negative_scores": [1, 2, 3]}, "positive_scores: 3 scores for 2 posit"),
    "half": ({"positive_scores": [1, 2]}, "negative_scores: 0 scores for 3 negatives; give one number for each"),
    "other half": ({"negative_scores": [1, 2, 3]}, "positive_scores: 0 scores for 2 positives"),
    "two ways": (
        {"scores": [1] * 5, "positive_scores": [1, 2], "negative_scores": [1] * 3},
        "both 'scores' and 'positive_scores' have scores; leave one unread with columns: {scores: []}",
    ),
    "null in a list": ({"scores": [1, None, 2, 3, 4]}, "scores[1]: missing (null); write the score as a number"),
    "text": ({"scores": ["1", 2, 3, 4, 5]}, "scores[0]: '1' is a str, not a number; write the score as a number"),
    "truth value": ({"scores": [True] * 5}, "scores[0]: True is a bool, not a number"),
    "not a number": ({"scores": [1, 2, math.nan, 4, 5]}, "scores[2]: nan is no finite score; correct it or remove"),
    "infinite": ({"scores": [1, 2, 3, 4, -math.inf]}, "scores[4]: -inf is no finite score"),
    "beyond float32": ({"scores": [1, 2, 3, 4, 1e39]}, "scores[4]: 1e+39 is no finite score"),
    "huge integer": ({"scores": [1, 2, 3, 4, 10**400]}, "is no finite score"),
    "object": ({"scores": {"p": 1}}, "scores: {'p': 1} is a dict, not a number"),
    "two columns": ({"negative_score": [1], "negative_scores": [1]}, "both 'negative_score' and 'negative_scores'"),
}


@pytest.mark.parametrize("scores, said", BAD_SCORES.values(), ids=BAD_SCORES.keys())
def test_bad_scores_are_named_with_their_cure(tmp_path, scores, said):
    message = refusal(lambda: load(tmp_path, PAIR, {**PAIR, **scores}))
    assert f"{tmp_path / 'a.jsonl'}, line 2: " in message and said in message


def test_scores_are_demanded_of_every_row_where_an_objective_needs_them(tmp_path):
    scored = {**PAIR, "scores": [1, 2, 3, 4, 5]}
    load(tmp_path, scored, scored).require_scores("objective margin_mse learns from them")
    message = refusal(lambda: load(tmp_path, scored, PAIR, PAIR).require_scores("objective margin_mse needs them"))
    assert message.startswith(
        "a.jsonl:2: scores: the row has none, and objective margin_mse needs them; add a 'scores'"
    )


def test_mined_negatives_do_not_inherit_scores():
    rows = [PairExample(f"q{i}", (f"p{i}",), ("n",), scores=(1.0, 0.0)) for i in range(3)]
    mined = mine_negatives(rows, lambda texts: torch.eye(8)[[len(t) % 8 for t in texts]], relative_margin=None, count=1)
    assert [row.scores for row in mined] == [None] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer(tiny_tokenizer(), max_length=64)


def test_a_batch_has_the_scores_of_its_passages(tokenizer):
    rows = [
        PairExample("a", ("p",), ("n1", "n2"), row_id="r:1", scores=(3.0, 1.5, -2.0)),
        PairExample("b", ("p1", "p2"), (), row_id="r:2", scores=(7.0, 6.0)),
    ]
    batch = PairCollator(tokenizer, positives_per_query=2)(rows)
    assert batch.teacher_BP.dtype == torch.float32
    assert batch.teacher_BP.tolist() == [[3.0, 0.0, 1.5, -2.0], [7.0, 6.0, 0.0, 0.0]]
    assert PairCollator(tokenizer, 1)(rows).teacher_BP.tolist() == [[3.0, 1.5], [7.0, 0.0]]
    assert PairCollator(tokenizer, 1)([]).teacher_BP.shape == (0, 2)
    assert PairCollator(tokenizer)([*rows, PairExample("c", ("p",))]).teacher_BP is None


def test_sampled_passages_keep_their_scores(tokenizer):
    score_of = {text_key(t): float(i) for i, t in enumerate(["p0", "p1", "p2", *(f"n{i}" for i in range(9))])}
    rows = [
        PairExample("q", ("p0", "p1", "p2"), tuple(f"n{i}" for i in range(9)), row_id=f"r:{r}", scores=(*range(12),))
        for r in range(6)
    ]
    collator = PairCollator(tokenizer, 4, positives_per_query=2, choice="sampled")
    drawn = set()
    for epoch in range(3):
        collator.set_epoch(epoch)
        batch = collator(rows)
        assert batch.teacher_BP.tolist() == [[score_of[key] for key in row] for row in batch.passage_key_BP.tolist()]
        drawn |= {tuple(row) for row in batch.teacher_BP.tolist()}
    assert len(drawn) > 6


def test_scores_that_do_not_fit_the_passages_are_refused_in_a_batch(tokenizer):
    message = refusal(lambda: PairCollator(tokenizer)([PairExample("q", ("p",), ("n",), row_id="r:1", scores=(1.0,))]))
    assert message == "r:1: scores: 1 for 2 passages; give one for each"
