"""Mined negatives are near, are no positives, and come from any encoder."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from ullme.data import mine_negatives
from ullme.types import PairExample

VECTORS = {
    "cats?": [1.0, 0.0, 0.0],
    "cat one": [0.9, 0.1, 0.0],
    "cat two": [0.95, 0.0, 0.1],
    "lynx": [0.6, 0.4, 0.0],
    "dogs?": [0.0, 1.0, 0.0],
    "dog": [0.1, 0.9, 0.0],
    "wolf": [0.3, 0.7, 0.1],
    "stone": [0.0, 0.0, 1.0],
}
PAIRS = [PairExample("cats?", ("cat one", "cat two"), row_id="a:1"), PairExample("dogs?", ("dog",), ("old",))]
CORPUS = ["lynx", "wolf", "stone", "lynx", "dog"]


def encode(texts):
    return np.array([VECTORS[text] for text in texts], dtype=np.float32)


def mined(pairs=PAIRS, **options):
    options = {"corpus": CORPUS, "count": 2, "relative_margin": None, **options}
    return [row.negatives for row in mine_negatives(pairs, encode, **options)]


def test_the_nearest_passages_that_are_no_positives_come_first():
    assert mined() == [("lynx", "wolf"), ("wolf", "lynx")]


def test_everything_else_of_a_pair_stays():
    rows = mine_negatives(PAIRS, encode, corpus=CORPUS, count=2)
    assert [(r.query, r.positives, r.row_id) for r in rows] == [(r.query, r.positives, r.row_id) for r in PAIRS]


def test_no_positive_of_the_same_query_is_mined_from_another_row():
    pairs = [PairExample("cats?", ("cat one",)), PairExample("cats?", ("cat two",)), PAIRS[1]]
    for negatives in mined(pairs, count=4):
        assert not {"cat one", "cat two"}.issubset(negatives)
    assert not {"cat one", "cat two"}.intersection(mined(pairs, count=4)[0])


def test_passages_near_the_positive_are_left_out_by_margins():
    cosine = 0.6 / np.hypot(0.6, 0.4)
    assert mined(count=1, max_score=cosine - 0.01)[0] == ("wolf",)
    assert mined(count=1, absolute_margin=1 - cosine)[0] == ("wolf",)
    assert mined(count=1, relative_margin=0.3)[0] == ("wolf",)
    assert mined(count=1, relative_margin=0.05)[0] == ("lynx",)


def test_the_range_passes_over_the_nearest():
    assert mined(count=1, range_min=1)[0] == ("wolf",)


def test_a_pair_without_a_candidate_has_no_negatives():
    assert mined(max_score=-0.5) == [(), ()]


def test_the_positives_are_the_corpus_when_none_is_given():
    assert mined(corpus=None, count=1) == [("dog",), ("cat one",)]


def test_a_query_is_never_its_own_negative():
    assert all("cats?" not in negatives for negatives in mined(corpus=["cats?", "stone"]))


def test_queries_have_an_encoder_of_their_own_and_tensors_do():
    seen = []

    def encode_query(texts):
        seen.extend(texts)
        return torch.tensor(encode(texts)) * 3

    rows = mine_negatives(PAIRS, encode, encode_query, corpus=CORPUS, count=2, relative_margin=None)
    assert [row.negatives for row in rows] == mined()
    assert seen == ["cats?", "dogs?"]


def test_sampling_follows_its_seed_and_leaves_the_global_generator_alone():
    before = random.getstate()
    draws = [mined(count=1, range_max=4, sampled=True, seed=seed) for seed in range(8)]
    assert random.getstate() == before
    assert draws == [mined(count=1, range_max=4, sampled=True, seed=seed) for seed in range(8)]
    assert len({str(draw) for draw in draws}) > 1


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="pairs: none"):
        mined([])
    with pytest.raises(ValueError, match="count: 0 is less than 1"):
        mined(count=0)
    with pytest.raises(ValueError, match="range_min"):
        mined(range_min=9, range_max=3)
