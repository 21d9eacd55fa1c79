"""Texts with the same context have it computed once under causal attention, and nothing changes by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.parity.float64 import in_float64
from tests.tiny import tiny_ullme
from tests.unit.test_packing import gradients, model_of
from ullme.models.attention import AttentionSwitch, attention_switch, text_decoder
from ullme.models.packed_row import PackedRow
from ullme.models.text_groups import ROWS, Segment
from ullme.types import Texts


def contexts(lengths=(5, ROWS + 3), tails=((4, 1, ROWS + 5), (6,), (2, 7))) -> Texts:
    """Texts of three queries: the first with three passages, one alone, one whose context is empty."""
    g = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(3, 380, (n,), generator=g).tolist()  # noqa: E731
    ids, skip = [], []
    for context, passages in zip((*map(draw, lengths), []), tails, strict=True):
        ids += [context + draw(n) for n in passages]
        skip += [len(context)] * len(passages)
    order = [5, 0, 3, 1, 4, 2]  # texts of one query need not stand together
    return Texts.from_lists([ids[i] for i in order], [skip[i] for i in order])


def test_a_shared_context_stands_once_and_every_token_is_found_again():
    texts = contexts()
    row = PackedRow.sharing(texts)
    assert len(row.ids_X) == len(texts.ids_X) - 2 * 5
    assert torch.equal(row.ids_X[row.source_X], texts.ids_X)
    assert torch.equal(row.place_X[row.source_X], texts.place_X)
    assert sum(row.lengths) == len(row.ids_X) and len(row.lengths) == len(row.prefixes)


def test_texts_that_share_nothing_stand_as_they_are():
    texts = Texts.from_lists([[3, 4], [5, 6]], skip=[1, 1])
    row = PackedRow.sharing(texts)
    assert row.prefixes is None and row.source_X is None and torch.equal(row.ids_X, texts.ids_X)


def test_places_of_a_text_are_found_in_its_prefix_and_in_its_own_tokens():
    segment = Segment(start=20, length=4, prefix=10, before=3)
    assert segment.keys_M.tolist() == [10, 11, 12, 20, 21, 22, 23]


@pytest.mark.parametrize("window", [None, 3, ROWS + 1])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_states_and_gradients_are_those_of_padded_texts(kind, window):
    if window is not None and kind != "mistral":
        pytest.skip("this architecture has no window")
    model = in_float64(
        model_of(kind, max_position_embeddings=3 * ROWS, **({"sliding_window": window} if window else {}))
    )
    switch = attention_switch(model)
    assert switch.packs
    texts = contexts()
    found, right = (s.states(model, texts, "causal") for s in (switch, replace(switch, packs=False)))
    assert (found - right).norm() <= 1e-9 * right.norm()
    gradient, right_gradient = gradients(found, model), gradients(right, model)
    assert all((gradient[n] - g).norm() <= 1e-8 * g.norm() + 1e-14 for n, g in right_gradient.items())


def test_the_model_sees_fewer_tokens_only_under_causal_attention():
    model, texts, seen = model_of("llama", max_position_embeddings=3 * ROWS), contexts(), []
    handle = (
        text_decoder(model)
        .get_input_embeddings()
        .register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    )
    switch = AttentionSwitch("argument", packs=True)
    for attention in ("causal", "bidirectional"):
        switch.states(model, texts, attention)
    handle.remove()
    assert seen == [len(texts.ids_X) - 10, len(texts.ids_X)]


def test_attention_dropout_falls_on_prefix_and_own_tokens():
    model = model_of("llama", max_position_embeddings=3 * ROWS, attention_dropout=0.5).train()
    switch, texts, drawn = AttentionSwitch("argument", packs=True), contexts(), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(switch.states(model, texts, "causal"))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    model.eval()
    plain = switch.states(model, texts, "causal")
    assert (plain - replace(switch, packs=False).states(model, texts, "causal")).norm() <= 1e-9 * plain.norm()


def test_recomputed_layers_share_in_backward_too():
    model, texts = model_of("llama", max_position_embeddings=3 * ROWS).train(), contexts()
    switch = AttentionSwitch("argument", packs=True)
    plain = gradients(switch.states(model, texts, "causal"), model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients(switch.states(model, texts, "causal"), model)
    assert all(torch.equal(again[name], value) for name, value in plain.items())


def test_likelihoods_of_a_querys_passages_share_the_query(tiny_models):
    packed, padded = (tiny_ullme(tiny_models, packing=packing).double() for packing in (True, False))
    texts = packed.text_tokenizer.generation(["first"] * 3 + ["second query"] * 2, ["a", "b c", "d", "e f g", "h"])
    seen = []
    handle = (
        text_decoder(packed.causal_lm)
        .get_input_embeddings()
        .register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    )
    with torch.no_grad():
        found, right = (model.score_texts(texts)[0] for model in (packed, padded))
    handle.remove()
    assert torch.allclose(found, right, rtol=1e-6)
    skip = texts.skip_N.tolist()
    assert seen == [len(texts.ids_X) - 2 * skip[0] - skip[3]]
