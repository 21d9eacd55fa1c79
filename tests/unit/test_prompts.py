"""From text to token ids."""

import pytest
from transformers import AddedToken

from tests.tiny import tiny_tokenizer
from ullme.prompts import TextTokenizer, instruction_prompt


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def decode(tokenizer, texts, i, skip=False):
    ids = texts.rows([i]).ids_X.tolist()
    return tokenizer.decode(ids[texts.skip_N[i] :] if skip else ids)


def test_text_is_tokenised_as_the_tokenizer_alone_would(tokenizer):
    texts = TextTokenizer(tokenizer).texts(["The cat sat.", "a query"])
    assert texts.rows([0]).ids_X.tolist() == tokenizer("The cat sat.")["input_ids"]
    assert texts.skip_N.tolist() == [0, 0]


def test_prompt_is_context_and_the_text_is_what_remains(tokenizer):
    prompt = instruction_prompt("Find the passage")
    texts = TextTokenizer(tokenizer).texts(["The cat", "dogs"], prompt)
    assert decode(tokenizer, texts, 0) == "Instruct: Find the passage\nQuery: The cat"
    assert decode(tokenizer, texts, 0, skip=True).strip() == "The cat"
    assert decode(tokenizer, texts, 1, skip=True).strip() == "dogs"


def test_a_token_merged_across_the_end_of_the_prompt_belongs_to_the_text(tokenizer):
    merged = TextTokenizer(tokenizer).texts(["sage"], prompt="The pas")
    assert tokenizer("The passage")["input_ids"] == merged.ids_X.tolist()
    kept = decode(tokenizer, merged, 0, skip=True)
    assert kept.endswith("sage")


def test_each_text_may_have_its_own_prompt(tokenizer):
    texts = TextTokenizer(tokenizer).texts(["one", "two"], ["", "query: "])
    assert texts.skip_N[0] == 0
    assert texts.skip_N[1] > 0


def test_one_prompt_too_few_is_refused(tokenizer):
    with pytest.raises(ValueError, match="1 prompts for 2 texts"):
        TextTokenizer(tokenizer).texts(["one", "two"], ["query: "])


def test_max_length_counts_every_token_of_a_text(tokenizer):
    long = "word " * 100
    for append_eos in (False, True):
        texts = TextTokenizer(tokenizer, max_length=16, append_eos=append_eos).texts([long, "short"])
        assert texts.lengths_N.max() == 16
        assert (texts.rows([0]).ids_X[-1] == tokenizer.eos_token_id) == append_eos


def test_something_is_left_to_pool_when_the_prompt_fills_the_length(tokenizer):
    texts = TextTokenizer(tokenizer, max_length=4).texts(["text"], prompt="a very long prompt indeed: ")
    assert texts.skip_N[0] < texts.lengths_N[0]


def test_text_without_tokens_is_a_lone_eos(tokenizer):
    assert TextTokenizer(tokenizer).texts([""]).ids_X.tolist() == [tokenizer.eos_token_id]


def test_no_text_gives_no_rows(tokenizer):
    assert len(TextTokenizer(tokenizer).texts([])) == 0
    assert len(TextTokenizer(tokenizer).generation([], [])) == 0


def test_echo_pools_the_second_reading(tokenizer):
    texts = TextTokenizer(tokenizer, echo=True).texts(["The cat sat"])
    assert decode(tokenizer, texts, 0).count("The cat sat") == 2
    assert decode(tokenizer, texts, 0, skip=True).strip() == "The cat sat"


def test_generation_scores_exactly_the_passage_and_its_end(tokenizer):
    texts = TextTokenizer(tokenizer).generation(["what sat", "q"], ["The cat", "A mat on the window"])
    eos = tokenizer.eos_token
    assert decode(tokenizer, texts, 0, skip=True) == "The cat" + eos
    assert decode(tokenizer, texts, 1, skip=True) == "A mat on the window" + eos
    assert decode(tokenizer, texts, 0) == "Query: what sat\nPassage:\nThe cat" + eos


def test_generation_cuts_query_and_passage_apart(tokenizer):
    texts = TextTokenizer(tokenizer, max_length=8).generation(["word " * 50], ["mat " * 50])
    assert texts.skip_N.tolist() == [8]
    assert texts.lengths_N.tolist() == [16]
    assert texts.ids_X[-1] == tokenizer.eos_token_id


def test_chat_template_is_applied_only_when_asked_for():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<user>", special=True)])
    tokenizer.chat_template = "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}"
    plain = TextTokenizer(tokenizer).texts(["The cat"])
    chat = TextTokenizer(tokenizer, chat_template=True).texts(["The cat"])
    assert tokenizer.decode(plain.ids_X) == "The cat"
    assert tokenizer.decode(chat.ids_X) == "<user>The cat"
