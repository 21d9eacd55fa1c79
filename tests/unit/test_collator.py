"""A batch holds exactly the texts of its rows, tokenised as encoding tokenises them."""

from __future__ import annotations

import pickle

import pytest
import torch

from tests.tiny import tiny_tokenizer
from ullme.data import PairCollator
from ullme.data.collator import ABSENT
from ullme.data.tables import text_key
from ullme.objectives.functional import candidates
from ullme.prompts import TextTokenizer
from ullme.templates import instruction_prompt
from ullme.types import PairExample

PAIRS = [
    PairExample("what purrs", ("a cat purrs",), ("a dog barks", "a cow moos"), row_id="a:1"),
    PairExample("what barks", ("a dog barks", "dogs do"), (), instruction="Find the animal", row_id="a:2"),
    PairExample("what moos", ("a cow moos",), ("a cat purrs", "hush", "a sheep"), row_id="a:3"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer(tiny_tokenizer(), max_length=64)


def texts_of(texts):
    return [part.tolist() for part in texts.ids_X.split(texts.lengths_N.tolist())]


def test_passages_stand_in_their_rows_positives_first(tokenizer):
    batch = PairCollator(tokenizer, positives_per_query=2)(PAIRS)
    width = 5
    assert batch.passage_mask_BP.tolist() == [
        [True, False, True, True, False],
        [True, True, False, False, False],
        [True, False, True, True, True],
    ]
    assert batch.positive_mask_BP.tolist() == [[True, False] + [False] * 3, [True, True] + [False] * 3] + [
        [True, False] + [False] * 3
    ]
    expected = [
        ["a cat purrs", None, "a dog barks", "a cow moos", None],
        ["a dog barks", "dogs do", None, None, None],
        ["a cow moos", None, "a cat purrs", "hush", "a sheep"],
    ]
    ids = texts_of(batch.passage)
    for b, row in enumerate(expected):
        for p, text in enumerate(row):
            assert ids[b * width + p] == ([] if text is None else texts_of(tokenizer.texts([text]))[0])
    assert batch.row_ids == ("a:1", "a:2", "a:3")


def test_an_instruction_stands_before_its_query_only(tokenizer):
    batch = PairCollator(tokenizer, generation=True)(PAIRS)
    prompt = "Instruct: Find the animal\nQuery: "
    wanted = tokenizer.texts([p.query for p in PAIRS], ["", prompt, ""])
    assert texts_of(batch.query) == texts_of(wanted)
    assert batch.query.skip_N.tolist() == wanted.skip_N.tolist()
    assert batch.query.skip_N[1] > 0 and batch.query.skip_N[0] == 0
    assert not batch.passage.skip_N.any()


def test_a_passage_prompt_is_context(tokenizer):
    batch = PairCollator(tokenizer, passage_prompt="passage: ")(PAIRS[:1])
    wanted = tokenizer.texts(["a cat purrs", "a dog barks", "a cow moos"], "passage: ")
    assert texts_of(batch.passage) == texts_of(wanted)
    assert (batch.passage.skip_N > 0).all()


def test_a_query_prompt_is_context_of_queries_without_an_instruction(tokenizer):
    batch = PairCollator(tokenizer, query_prompt="query: ")(PAIRS)
    own = [instruction_prompt(pair.instruction) for pair in PAIRS]
    wanted = tokenizer.texts([pair.query for pair in PAIRS], [prompt or "query: " for prompt in own])
    assert texts_of(batch.query) == texts_of(wanted)
    assert batch.query.skip_N.tolist() == wanted.skip_N.tolist() and (batch.query.skip_N > 0).all()


def test_generation_is_each_passage_after_its_query(tokenizer):
    assert PairCollator(tokenizer)(PAIRS).generation is None
    batch = PairCollator(tokenizer, generation=True)(PAIRS)
    ids, width = texts_of(batch.generation), batch.passage_mask_BP.shape[1]
    wanted = tokenizer.generation(["what moos"] * 4, ["a cow moos", "a cat purrs", "hush", "a sheep"])
    assert ids[2 * width :] == texts_of(wanted)
    assert batch.generation.skip_N[2 * width :].tolist() == wanted.skip_N.tolist()
    assert [len(i) > 0 for i in ids] == batch.passage_mask_BP.flatten().tolist()
    assert not batch.generation.skip_N[~batch.passage_mask_BP.flatten()].any()


def test_equal_texts_have_equal_keys_and_absent_ones_none(tokenizer):
    batch = PairCollator(tokenizer)(PAIRS)
    key_BP = batch.passage_key_BP
    assert key_BP[0, 1] == key_BP[1, 0] and key_BP[0, 2] == key_BP[2, 0] and key_BP[0, 0] == key_BP[2, 1]
    assert ((key_BP == ABSENT) == ~batch.passage_mask_BP).all()
    assert len(set(batch.query_key_B.tolist())) == 3 and (batch.query_key_B >= 0).all()


LONG = "a cat purrs and " * 40


@pytest.mark.parametrize("options", [{}, {"append_eos": True}, {"echo": True}], ids=str)
def test_texts_that_are_cut_to_the_same_tokens_have_equal_keys(options):
    tokenizer = TextTokenizer(tiny_tokenizer(), max_length=64, **options)
    pairs = [
        PairExample(LONG + "sleeps", (LONG + "eats", "hush"), (LONG + "runs", "a " + LONG), instruction="Find it"),
        PairExample(LONG, ("a cow moos",), (LONG + "eats", "hush", "a cat purrs and")),
    ]
    batch = PairCollator(tokenizer, positives_per_query=2, passage_prompt="passage: ")(pairs)
    key, (first, second) = batch.passage_key_BP[0, 0], batch.passage_key_BP.tolist()
    assert batch.query_key_B.tolist() == [key] * 2 and first[2] == second[2] == key
    assert len({*first, *second} - {ABSENT}) == 5 and first[1] == second[3]
    assert ((batch.passage_key_BP == ABSENT) == ~batch.passage_mask_BP).all()


def test_a_key_is_of_the_text_unless_it_is_cut(tokenizer):
    batch = PairCollator(tokenizer, passage_prompt="passage: ")(PAIRS)
    assert batch.query_key_B.tolist() == [text_key(pair.query) for pair in PAIRS]
    assert batch.passage_key_BP[0].tolist() == [*map(text_key, ["a cat purrs", "a dog barks", "a cow moos"]), ABSENT]


def test_a_query_with_an_instruction_has_the_key_of_a_passage_of_its_text(tokenizer):
    pairs = [PairExample("what purrs", ("a cat",), ("what purrs",), instruction="Find the animal"), PAIRS[0]]
    batch = PairCollator(tokenizer)(pairs)
    assert batch.query_key_B.tolist() == [batch.passage_key_BP[0, 1]] * 2


def test_what_is_cut_off_makes_no_negative(tokenizer):
    pairs = [PairExample("what purrs", (LONG + "eats",), (LONG + "runs", "a dog")), PairExample("q", ("p",), (LONG,))]
    batch = PairCollator(tokenizer)(pairs)
    keys = (batch.passage_mask_BP, batch.positive_mask_BP, batch.query_key_B, batch.passage_key_BP)
    assert candidates(*keys).negative_BC[0].tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("negatives, width", [(None, 4), (0, 1), (1, 2), (3, 4), (7, 8)])
def test_the_number_of_negatives_sets_the_width(tokenizer, negatives, width):
    batch = PairCollator(tokenizer, negatives)(PAIRS)
    assert batch.passage_mask_BP.shape == (3, width)
    assert len(batch.passage) == 3 * width
    given = [min(len(p.negatives), width - 1) for p in PAIRS]
    assert (batch.passage_mask_BP.sum(1) - 1).tolist() == given


def test_a_given_number_of_negatives_gives_every_rank_the_same_width(tokenizer):
    collator = PairCollator(tokenizer, 2, generation=True)
    shapes = {collator(part).passage_mask_BP.shape[1] for part in (PAIRS[:1], PAIRS[1:2], [])}
    assert shapes == {3}
    empty = collator([])
    assert len(empty) == len(empty.query) == len(empty.passage) == len(empty.generation) == 0


def test_a_batchs_rows_are_what_each_row_alone_gives(tokenizer):
    collator = PairCollator(tokenizer, 3, generation=True)
    whole = collator(PAIRS)
    for b, pair in enumerate(PAIRS):
        alone, row = collator([pair]), whole.rows([b])
        for name in ("query", "passage", "generation"):
            assert texts_of(getattr(alone, name)) == texts_of(getattr(row, name))
            assert getattr(alone, name).skip_N.tolist() == getattr(row, name).skip_N.tolist()
        assert torch.equal(alone.passage_key_BP, row.passage_key_BP)
    assert whole.tokens_B().tolist() == [int(collator([pair]).tokens_B()[0]) for pair in PAIRS]


def test_sampled_passages_depend_on_seed_epoch_and_row_alone(tokenizer):
    rows = [PairExample(f"q{i}", ("p",), tuple(f"n{i}{j}" for j in range(20)), row_id=f"a:{i}") for i in range(8)]
    collator = PairCollator(tokenizer, 4, choice="sampled", seed=3)

    def drawn(epoch, order, seed_collator=collator):
        seed_collator.set_epoch(epoch)
        keys = seed_collator([rows[i] for i in order]).passage_key_BP[:, 1:]
        return {i: keys[at].tolist() for at, i in enumerate(order)}

    first = drawn(0, range(8))
    assert drawn(0, [5, 2, 7]) == {i: first[i] for i in (5, 2, 7)}
    assert drawn(1, range(8)) != first
    assert drawn(0, range(8), PairCollator(tokenizer, 4, choice="sampled", seed=4)) != first
    assert drawn(0, range(8), pickle.loads(pickle.dumps(collator))) == first
    seen = {key for epoch in range(40) for key in drawn(epoch, [0])[0]}
    assert len(seen) == 20
    assert all(len(set(keys)) == 4 for keys in first.values())


def test_rows_draw_independently(tokenizer):
    rows = [PairExample("q", ("p",), tuple(f"n{j}" for j in range(20)), row_id=f"a:{i}") for i in range(8)]
    drawn = PairCollator(tokenizer, 4, choice="sampled")(rows).passage_key_BP
    assert len({tuple(row) for row in drawn.tolist()}) == 8


def test_the_first_passages_are_taken_unless_sampled(tokenizer):
    collator = PairCollator(tokenizer, 1)
    first = collator(PAIRS).passage_key_BP
    collator.set_epoch(5)
    assert torch.equal(collator(PAIRS).passage_key_BP, first)


def test_impossible_numbers_are_refused(tokenizer):
    with pytest.raises(ValueError, match="negatives_per_query: -1 is negative"):
        PairCollator(tokenizer, -1)
    with pytest.raises(ValueError, match="positives_per_query: 0 is less than 1"):
        PairCollator(tokenizer, positives_per_query=0)
