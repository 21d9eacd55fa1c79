"""Hidden tokens: which, behind what, and by whose chance."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.tiny import SENTENCES, tiny_tokenizer
from ullme.data import PairCollator, PairDataset, TokenMasking, train_loader
from ullme.prompts import TextTokenizer
from ullme.types import IGNORED, MaskedTexts, PairExample, Texts

SPECIAL = frozenset({0, 1, 2})
ROWS = [PairExample(text, (text,), row_id=f"a:{i}") for i, text in enumerate(SENTENCES)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def masking(tokenizer):
    return TokenMasking.for_tokenizer(tokenizer)


def long_texts(count: int = 40, length: int = 500) -> Texts:
    g = torch.Generator().manual_seed(0)
    return Texts.from_lists([torch.randint(3, 384, (length,), generator=g).tolist() for _ in range(count)])


def parts(masked: MaskedTexts) -> list[tuple[list[int], list[int]]]:
    lengths = masked.texts.lengths_N.tolist()
    pairs = zip(masked.texts.ids_X.split(lengths), masked.target_X.split(lengths), strict=True)
    return [(ids.tolist(), target.tolist()) for ids, target in pairs]


@pytest.mark.parametrize("replacement", ["all", "bert"])
def test_targets_are_the_hidden_tokens_and_nothing_else_changes(masking, replacement):
    texts = long_texts()
    masked = replace(masking, replacement=replacement).hide(texts, range(40))
    hidden_X = masked.target_X != IGNORED
    assert torch.equal(masked.target_X[hidden_X], texts.ids_X[hidden_X])
    assert torch.equal(masked.texts.ids_X[~hidden_X], texts.ids_X[~hidden_X])
    assert torch.equal(masked.texts.lengths_N, texts.lengths_N) and torch.equal(masked.texts.skip_N, texts.skip_N)
    assert torch.equal(texts.ids_X, long_texts().ids_X)


@pytest.mark.parametrize("probability", [0.2, 0.5, 0.8, 1.0])
def test_tokens_are_hidden_with_the_probability(masking, probability):
    texts = long_texts()
    hidden_X = replace(masking, probability=probability).hide(texts, range(40)).target_X != IGNORED
    share = float(hidden_X.sum()) / (len(hidden_X) - len(texts))  # the first token of each has none before it
    assert share == pytest.approx(probability, abs=4 * (probability * (1 - probability) / len(hidden_X)) ** 0.5)


def test_special_tokens_the_first_one_and_context_stay_visible(masking):
    texts = Texts.from_lists([[1, 5, 6, 2, 7, 0], [5, 6, 7, 8, 9, 10], [5, 6], [], [1, 2], [5]], [0, 3, 0, 0, 0, 0])
    for seed in range(20):
        masked = replace(masking, probability=0.9).hide(texts, [seed] * 6)
        hidden = [{i for i, target in enumerate(targets) if target != IGNORED} for _, targets in parts(masked)]
        assert hidden[0] <= {1, 2, 4} and hidden[1] <= {3, 4, 5} and hidden[2] == {1}
        assert hidden[3] == hidden[4] == hidden[5] == set()


def test_a_text_with_an_ordinary_token_hides_at_least_one(masking):
    never = replace(masking, probability=1e-9)
    found = [parts(never.hide(Texts.from_lists([[1, 5, 6, 7, 2]]), [seed]))[0][1] for seed in range(30)]
    assert all(sum(target != IGNORED for target in targets) == 1 for targets in found)
    assert {targets.index(max(targets)) for targets in found} == {1, 2, 3}


def test_all_puts_the_mask_token_over_every_hidden_token(masking):
    masked = replace(masking, replacement="all").hide(long_texts(), range(40))
    assert (masked.texts.ids_X[masked.target_X != IGNORED] == masking.token_id).all()


def test_bert_masks_eighty_percent_swaps_ten_and_leaves_ten(masking):
    masked = replace(masking, probability=1.0).hide(long_texts(), range(40))
    hidden_X = masked.target_X != IGNORED
    shown_X, target_X = masked.texts.ids_X[hidden_X], masked.target_X[hidden_X]
    other_X = target_X != masking.token_id
    shares = [(shown_X == masking.token_id), (shown_X == target_X)]
    assert [float((s & other_X).sum() / other_X.sum()) for s in shares] == pytest.approx([0.8, 0.1], abs=0.01)


def test_a_swapped_token_is_any_ordinary_one():
    masking = TokenMasking(1.0, token_id=4, replacement="bert", vocabulary=9, special_ids=frozenset({0, 3, 4, 8, 70}))
    shown = masking.hide(Texts.from_lists([[1] * 3000]), [5]).texts.ids_X
    counts = torch.bincount(shown, minlength=9)
    assert [i for i, n in enumerate(counts.tolist()) if n] == [1, 2, 4, 5, 6, 7]
    swapped = counts[[2, 5, 6, 7]]
    assert swapped.min() > 0.6 * swapped.max()


def test_what_is_hidden_depends_on_the_text_and_its_seed_alone(masking):
    texts = long_texts(6, 60)
    whole = parts(masking.hide(texts, range(6)))
    assert parts(masking.hide(texts.rows([4, 1]), [4, 1])) == [whole[4], whole[1]]
    assert parts(masking.hide(texts, range(1, 7))) != whole
    assert len(masking.hide(texts.rows([]), [])) == 0


def test_a_batch_hides_tokens_of_each_rows_first_positive(tokenizer, masking):
    text_tokenizer = TextTokenizer(tokenizer)
    rows = [*ROWS[:2], PairExample("a query", ("the cat sat", "the mat"), ("a window",), "find it", row_id="a:9")]
    assert PairCollator(text_tokenizer)(rows).masked is None
    masked = PairCollator(text_tokenizer, masking=masking)(rows).masked
    told_X = torch.where(masked.target_X == IGNORED, masked.texts.ids_X, masked.target_X)
    wanted = text_tokenizer.texts([SENTENCES[0], SENTENCES[1], "the cat sat"])
    assert torch.equal(told_X, wanted.ids_X) and torch.equal(masked.texts.lengths_N, wanted.lengths_N)
    assert all(any(target != IGNORED for target in targets) for _, targets in parts(masked))
    assert len(PairCollator(text_tokenizer, masking=masking)([]).masked) == 0


def test_a_rows_hidden_tokens_depend_on_seed_epoch_and_row_alone(tokenizer, masking):
    def hidden(order, epoch=0, seed=3, row_ids=None):
        collator = PairCollator(TextTokenizer(tokenizer), masking=masking, seed=seed)
        collator.set_epoch(epoch)
        rows = [replace(ROWS[i], row_id=f"b:{i}") if row_ids else ROWS[i] for i in order]
        return dict(zip(order, parts(pickle.loads(pickle.dumps(collator))(rows).masked), strict=True))

    first = hidden(range(6))
    assert hidden([4, 2]) == {i: first[i] for i in (4, 2)}
    for other in (hidden(range(6), epoch=1), hidden(range(6), seed=4), hidden(range(6), row_ids="others")):
        assert all(other[i] != first[i] for i in range(6))


def test_ranks_hide_what_one_process_hides(tokenizer, masking):
    dataset = PairDataset.from_examples(ROWS)

    def hidden(rank, world_size):
        collator = PairCollator(TextTokenizer(tokenizer), masking=masking)
        loader = train_loader(dataset, collator, 4, rank=rank, world_size=world_size)
        return {i: part for b in loader for i, part in zip(b.row_ids, parts(b.masked), strict=True)}

    assert hidden(0, 2) | hidden(1, 2) == hidden(0, 1)


def test_the_mask_token_is_the_one_asked_for(tokenizer):
    assert TokenMasking.for_tokenizer(tokenizer).token_id == tokenizer.convert_tokens_to_ids("_")
    space = tokenizer(" ", add_special_tokens=False)["input_ids"]
    assert [TokenMasking.for_tokenizer(tokenizer, mask_token=" ").token_id] == space
    own = tiny_tokenizer()
    own.add_special_tokens({"mask_token": "<mask>"})
    found = TokenMasking.for_tokenizer(own, mask_token=None)
    assert (found.token_id, found.vocabulary, found.special_ids) == (384, 385, SPECIAL | {384})
    assert TokenMasking.for_tokenizer(own).token_id == tokenizer.convert_tokens_to_ids("_")


def test_tokens_added_as_special_are_never_hidden():
    own = tiny_tokenizer()
    own.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    own.add_tokens(["ordinary"])
    assert TokenMasking.for_tokenizer(own).special_ids == SPECIAL | {384}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"mask_token": "two words"}, r"mask_token: 'two words' is \d+ tokens; give a text that is one token"),
        ({"mask_token": ""}, "mask_token: '' is 0 tokens; give a text that is one token"),
        ({"mask_token": None}, "mask_token: None, and this tokenizer has none of its own; give one, say '_'"),
        ({"probability": 0.0}, "mask_probability: 0.0 is no share of tokens; give one above 0, at most 1"),
        ({"probability": 1.5}, "mask_probability: 1.5 is no share"),
        ({"replacement": "some"}, "replacement: 'some' is unknown; choose from all, bert"),
    ],
)
def test_impossible_masking_is_refused(tokenizer, options, said):
    with pytest.raises(ValueError, match=said) as error:
        TokenMasking.for_tokenizer(tokenizer, **options)
    assert "\n" not in str(error.value)


def test_a_token_outside_the_vocabulary_is_no_mask():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "cat": 1, "_": 2}, unk_token="<unk>"))
    own = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert TokenMasking.for_tokenizer(own).token_id == 2
    with pytest.raises(ValueError, match="mask_token: 'dog' is not in the vocabulary; give a text that is one token"):
        TokenMasking.for_tokenizer(own, mask_token="dog")


def test_echo_and_masking_exclude_each_other(tokenizer, masking):
    with pytest.raises(ValueError, match="echo: True repeats every text.*set echo to false"):
        PairCollator(TextTokenizer(tokenizer, echo=True), masking=masking)
