"""From text to token ids."""

import pytest
from transformers import AddedToken

from tests.tiny import tiny_tokenizer
from ullme.prompts import TextTokenizer
from ullme.templates import ECHO_TEMPLATE, instruction_prompt, require_template

CHAT = "{% for m in messages %}<user>{{ m['content'] }}<end>{% endfor %}"


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


@pytest.mark.parametrize("append_eos", [False, True])
def test_prompt_that_leaves_nothing_of_the_text_is_refused_and_one_token_is_enough(tokenizer, append_eos):
    prompt = "a very long prompt indeed:"
    needed = len(tokenizer(prompt)["input_ids"]) + append_eos
    wrong = rf"prompt: 'a very long.*takes {needed} tokens.*max_length is {needed},.*'mat'.*shorten.*above {needed}$"
    for max_length in range(2, needed):
        with pytest.raises(ValueError, match="nothing of the text 'mat' is read"):
            TextTokenizer(tokenizer, max_length, append_eos).texts(["mat"], prompt)
    with pytest.raises(ValueError, match=wrong):
        TextTokenizer(tokenizer, needed, append_eos).texts(["mat"], prompt)
    one, other = TextTokenizer(tokenizer, needed + 1, append_eos).texts(["mat", "cat"], prompt).skip_N.tolist()
    assert one == other == needed - append_eos


def test_text_without_tokens_may_follow_any_prompt(tokenizer):
    prompt = "a very long prompt indeed:"
    for max_length in range(2, 20):
        texts = TextTokenizer(tokenizer, max_length).texts([""], prompt)
        assert texts.skip_N[0] == texts.lengths_N[0] - 1


def test_one_prompt_of_many_that_is_too_long_is_the_one_named(tokenizer):
    prompts = ["short: ", "the one that is too long by far, since it has very many words: "]
    with pytest.raises(ValueError, match=r"prompt: 'the one that.*text 'dogs'"):
        TextTokenizer(tokenizer, max_length=12).texts(["The cat", "dogs"], prompts)


def test_chat_template_that_leaves_nothing_of_the_text_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "You are a most helpful assistant. " + CHAT
    assert TextTokenizer(tokenizer, 64, chat_template=True).texts(["The cat"]).skip_N.tolist() == [0]
    with pytest.raises(ValueError, match=r"prompt: '' takes .* max_length is 8, .*'The cat'"):
        TextTokenizer(tokenizer, 8, chat_template=True).texts(["The cat"])


@pytest.mark.parametrize("options", [{}, {"append_eos": True}, {"echo": True}])
def test_text_is_cut_at_its_end_whatever_the_tokenizers_own_side(options):
    prompt, text = "Find: ", " ".join(f"w{i}" for i in range(80))
    right, left = tiny_tokenizer(), tiny_tokenizer()
    left.truncation_side = "left"
    kept, found = (TextTokenizer(t, 48, **options).texts([text], prompt) for t in (right, left))
    assert found.ids_X.tolist() == kept.ids_X.tolist()
    assert found.skip_N.tolist() == kept.skip_N.tolist() != [0]
    assert decode(left, found, 0).startswith("Find: ")
    assert left.truncation_side == "left", "the caller's tokenizer stays as it is"


def test_text_without_tokens_is_a_lone_eos(tokenizer):
    assert TextTokenizer(tokenizer).texts([""]).ids_X.tolist() == [tokenizer.eos_token_id]


def test_no_text_gives_no_rows(tokenizer):
    assert len(TextTokenizer(tokenizer).texts([])) == 0
    assert len(TextTokenizer(tokenizer).generation([], [])) == 0


def test_echo_pools_the_second_reading(tokenizer):
    texts = TextTokenizer(tokenizer, echo=True).texts(["The cat sat"])
    assert decode(tokenizer, texts, 0).count("The cat sat") == 2
    assert decode(tokenizer, texts, 0, skip=True).strip() == "The cat sat"


def numbered_words(count):
    return " ".join(f"w{i}" for i in range(count))


@pytest.mark.parametrize("append_eos", [False, True])
def test_echo_pools_the_beginning_of_a_text_of_any_length(tokenizer, append_eos):
    texts = [numbered_words(count) for count in range(1, 120)]
    read = TextTokenizer(tokenizer, 64, append_eos, echo=True).texts(texts, "Find: ")
    assert read.lengths_N.max() <= 64
    for i, text in enumerate(texts):
        end = tokenizer.eos_token * append_eos
        pooled = decode(tokenizer, read, i, skip=True).removesuffix(end).removeprefix(" ")
        assert pooled.strip() and text.startswith(pooled)
        assert decode(tokenizer, read, i) == "Find: " + ECHO_TEMPLATE.format(text=pooled) + pooled + end
        assert pooled == text or read.lengths_N[i] >= 64 - 3, "a word more would not fit twice"


def test_echo_cuts_at_the_end_of_a_token_and_of_a_character(tokenizer):
    read = TextTokenizer(tokenizer, 64, echo=True).texts(["猫" * 50, "🐈" * 50, "a" * 200, "\n" * 90])
    for i, piece in enumerate(["猫", "🐈", "a", "\n"]):
        assert set(decode(tokenizer, read, i, skip=True).lstrip(" ")) == {piece}


def test_echo_tells_texts_apart_by_the_last_token_that_is_read(tokenizer):
    texts = TextTokenizer(tokenizer, 64, echo=True)
    whole = texts.echoed([numbered_words(60)])[0]
    assert texts.echoed([whole]) == [whole], "what fits stays as it is"
    read = texts.texts([whole, whole[:-1] + "z"])
    assert read.rows([0]).ids_X.tolist() != read.rows([1]).ids_X.tolist()


def test_echo_that_has_no_room_for_a_token_of_the_text_is_refused(tokenizer):
    least = len(tokenizer(ECHO_TEMPLATE.format(text="a") + "a")["input_ids"])
    assert TextTokenizer(tokenizer, least, echo=True).texts(["a b c d"]).lengths_N.tolist() == [least]
    with pytest.raises(ValueError, match=rf"max_length: {least - 1} .*echo.*'a b c d' twice.*raise max_length"):
        TextTokenizer(tokenizer, least - 1, echo=True).texts(["a b c d"])
    with pytest.raises(ValueError, match=r"max_length: 24 .*shorten the prompt"):
        TextTokenizer(tokenizer, 24, echo=True).texts(["a"], "a very long prompt, which takes all of the room: ")


def test_echo_of_no_text_stays_allowed(tokenizer):
    for max_length in (4, 64):
        assert len(TextTokenizer(tokenizer, max_length, echo=True).texts(["", ""])) == 2
    assert len(TextTokenizer(tokenizer, echo=True).texts([])) == 0


def test_echo_in_a_chat_template_keeps_the_template_and_both_readings():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    text = numbered_words(100)
    read = TextTokenizer(tokenizer, 96, echo=True, chat_template=True).texts([text])
    pooled = decode(tokenizer, read, 0, skip=True).strip()
    assert pooled.endswith("<end>") and text.startswith(pooled.removesuffix("<end>"))
    assert decode(tokenizer, read, 0).count(pooled.removesuffix("<end>")) == 2


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{query}\n{passage}", r"the field \{passage\}.*write \{\{passage\}\}"),
        ("{} {query}", r"the field \{\}"),
        ("{0}{query}", r"the field \{0\}"),
        ("{query.name}", r"the field \{query.name\}"),
        ("{query!r}", r"the field \{query!r\}"),
        ("{query:>9}", r"the field \{query:>9\}"),
        ("{query", "braces"),
        ("{query} }", "braces"),
        ("{query} {", "braces"),
        ("no field", r"lacks the field \{query\}"),
        ("{{query}}", r"lacks the field \{query\}"),
    ],
)
def test_a_generation_template_that_cannot_be_filled_is_refused(tokenizer, template, told):
    for check in (require_template, lambda t: TextTokenizer(tokenizer, generation_template=t)):
        with pytest.raises(ValueError, match=f"^generation_template: .*{told}") as refused:
            check(template)
        assert repr(template) in str(refused.value)


@pytest.mark.parametrize(
    "template", ["{query}", "{{query}} {query} {{query}}:", '{{"q": "{query}"}}\n', "{query}{query}"]
)
def test_literal_braces_of_a_generation_template_stand_as_one(tokenizer, template):
    require_template(template)
    tokenizer_of = TextTokenizer(tokenizer, generation_template=template)
    texts = tokenizer_of.generation(["cat {x}"], ["mat"])
    assert decode(tokenizer, texts, 0) == template.format(query="cat {x}") + "mat" + tokenizer.eos_token
    cut = TextTokenizer(tokenizer, 24, generation_template=template).generation(["word " * 50], ["mat"])
    after = template.replace("{{", "<").replace("}}", ">").rpartition("{query}")[2].replace("<", "{").replace(">", "}")
    assert tokenizer.decode(cut.ids_X[: cut.skip_N[0]]).endswith(after)


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
