"""Objectives against closed forms written out by hand in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ullme.objectives import (
    DPO,
    KL,
    OBJECTIVES,
    PRESETS,
    SFT,
    Contrastive,
    named,
    needs_of,
    objectives_from,
)
from ullme.types import ObjectiveInputs

B, P, D = 4, 4, 6


def inputs(
    seed: int = 0, dtype: torch.dtype = torch.float64, positives: int = 1, ragged: bool = True
) -> ObjectiveInputs:
    """Random inputs; with ``ragged`` the third query has no negatives and the second lacks its last."""
    g = torch.Generator().manual_seed(seed)
    mask_BP = torch.ones(B, P, dtype=torch.bool)
    if ragged:
        mask_BP[1, -1] = False
        mask_BP[2, positives:] = False
    positive_BP = torch.zeros(B, P, dtype=torch.bool)
    positive_BP[:, :positives] = True
    tokens_BP = torch.randint(1, 9, (B, P), generator=g) * mask_BP
    absent = ~mask_BP
    return ObjectiveInputs(
        passage_mask_BP=mask_BP,
        positive_mask_BP=positive_BP,
        query_key_B=torch.arange(B) + 100,
        passage_key_BP=torch.arange(B * P).view(B, P),
        row_ids=tuple(f"row:{b}" for b in range(B)),
        query_BD=torch.randn(B, D, generator=g, dtype=dtype),
        passage_BPD=torch.randn(B, P, D, generator=g, dtype=dtype).masked_fill(absent[..., None], 0),
        logp_BP=(-4 * torch.rand(B, P, generator=g, dtype=dtype)).masked_fill(absent, 0),
        ref_logp_BP=(-4 * torch.rand(B, P, generator=g, dtype=dtype)).masked_fill(absent, 0),
        tokens_BP=tokens_BP,
    )


def changed(found: ObjectiveInputs, **values) -> ObjectiveInputs:
    return ObjectiveInputs(**{**found.__dict__, **values})


def cosine(x: ObjectiveInputs) -> np.ndarray:
    """Cosine of every query with every passage of every query, [b, c, p]."""
    q, p = x.query_BD.numpy(), x.passage_BPD.numpy()
    norm = np.maximum(np.linalg.norm(p, axis=-1), 1e-12)
    return np.einsum("bd,cpd->bcp", q, p) / np.linalg.norm(q, axis=-1)[:, None, None] / norm[None]


def close(found: torch.Tensor, right: list[float]) -> bool:
    return np.allclose(found.detach().numpy(), np.array(right), rtol=1e-12, atol=1e-14)


# ---- contrastive ----


def test_info_nce_is_the_log_softmax_of_the_positive_among_all_passages_of_the_batch():
    x, t = inputs(), 0.07
    s, mask = cosine(x) / t, x.passage_mask_BP.numpy()
    right = [math.log(np.exp(s[b][mask]).sum()) - s[b, b, 0] for b in range(B)]
    assert close(Contrastive(temperature=t)(x), right)


def test_without_in_batch_negatives_only_the_own_passages_count():
    x, t = inputs(), 0.05
    s, mask = cosine(x) / t, x.passage_mask_BP.numpy()
    right = [math.log(np.exp(s[b, b][mask[b]]).sum()) - s[b, b, 0] for b in range(B)]
    found = Contrastive(in_batch_negatives=False)(x)
    assert close(found, right)
    assert found[2] == 0  # no negatives


def test_without_hard_negatives_only_the_positives_of_the_batch_count():
    x, t = inputs(), 0.05
    s = cosine(x) / t
    right = [math.log(np.exp(s[b, :, 0]).sum()) - s[b, b, 0] for b in range(B)]
    assert close(Contrastive(hard_negatives=False)(x), right)


def test_nt_xent_sets_each_positive_against_the_negatives_and_supcon_all_in_one_softmax():
    x, t = inputs(positives=2, ragged=False), 0.1
    s = np.exp(cosine(x) / t)
    negative = [s[b].sum() - s[b, b, 0] - s[b, b, 1] for b in range(B)]
    nt_xent = [np.mean([math.log((s[b, b, i] + negative[b]) / s[b, b, i]) for i in (0, 1)]) for b in range(B)]
    supcon = [np.mean([math.log(s[b].sum() / s[b, b, i]) for i in (0, 1)]) for b in range(B)]
    assert close(Contrastive(loss="NTXentLoss", temperature=t)(x), nt_xent)
    assert close(Contrastive(loss="SupConLoss", temperature=t)(x), supcon)


def test_the_losses_agree_where_every_query_has_one_positive():
    x = inputs()
    assert torch.allclose(Contrastive(loss="InfoNCE")(x), Contrastive(loss="SupConLoss")(x), rtol=1e-12)
    assert Contrastive(loss="InfoNCE") == Contrastive(loss="NTXentLoss")


def test_symmetric_averages_with_each_positive_against_the_queries():
    x, t = inputs(), 0.05
    s, mask = cosine(x) / t, x.passage_mask_BP.numpy()
    forward = [math.log(np.exp(s[b][mask]).sum()) - s[b, b, 0] for b in range(B)]
    backward = [math.log(np.exp(s[:, b, 0]).sum()) - s[b, b, 0] for b in range(B)]
    assert close(Contrastive(symmetric=True)(x), [(f + g) / 2 for f, g in zip(forward, backward, strict=True)])


@pytest.mark.parametrize(("margin", "margin_type"), [(0.1, "absolute"), (-0.2, "absolute"), (0.3, "relative")])
def test_in_batch_passages_above_the_margin_are_no_negatives_and_own_ones_stay(margin, margin_type):
    x, t = inputs(seed=3), 0.05
    c, mask = cosine(x), x.passage_mask_BP.numpy()
    right, left_out = [], 0
    for b in range(B):
        limit = c[b, b, 0] + (margin if margin_type == "absolute" else margin * abs(c[b, b, 0]))
        kept = mask & (c[b] <= limit)
        kept[b] = mask[b]
        left_out += (mask & ~kept).sum()
        right.append(math.log(np.exp(c[b][kept] / t).sum()) - c[b, b, 0] / t)
    assert left_out
    assert close(Contrastive(false_negative_margin=margin, margin_type=margin_type)(x), right)


def test_the_margin_holds_for_both_directions():
    x, t, margin = inputs(seed=3), 0.05, -0.1
    c = cosine(x)
    backward = []
    for b in range(B):
        kept = [q for q in range(B) if q == b or c[q, b, 0] <= c[b, b, 0] + margin]
        backward.append(math.log(np.exp(c[kept, b, 0] / t).sum()) - c[b, b, 0] / t)
    one_way = Contrastive(false_negative_margin=margin)(x).numpy()
    both = Contrastive(false_negative_margin=margin, symmetric=True)(x)
    assert close(both, list((one_way + np.array(backward)) / 2))


def test_a_duplicate_of_a_positive_is_no_negative():
    """Query 0's positive also stands as query 1's hard negative, as query 3's positive and as its own negative."""
    x, t = inputs(ragged=False), 0.05
    key = x.passage_key_BP.clone()
    key[1, 2] = key[3, 0] = key[0, 3] = key[0, 0]
    found = Contrastive(symmetric=True)(changed(x, passage_key_BP=key))
    c = cosine(x) / t
    kept = np.ones((B, P), dtype=bool)
    kept[1, 2] = kept[3, 0] = kept[0, 3] = False
    forward = math.log(np.exp(c[0][kept]).sum()) - c[0, 0, 0]
    queries = [0, 1, 2]  # query 3 has the same positive
    backward = math.log(np.exp(c[queries, 0, 0]).sum()) - c[0, 0, 0]
    assert float(found[0]) == pytest.approx((forward + backward) / 2, rel=1e-12)


def test_a_passage_that_is_the_query_is_no_negative_of_it():
    """Query 0's text also stands as query 1's hard negative, as query 3's positive and as its own hard negative."""
    x, t = inputs(ragged=False), 0.05
    key = x.passage_key_BP.clone()
    key[1, 2] = key[3, 0] = key[0, 3] = x.query_key_B[0]
    found = Contrastive(symmetric=True)(changed(x, passage_key_BP=key))
    c = cosine(x) / t
    kept = np.ones((B, P), dtype=bool)
    kept[1, 2] = kept[3, 0] = kept[0, 3] = False
    forward = math.log(np.exp(c[0][kept]).sum()) - c[0, 0, 0]
    backward = math.log(np.exp(c[:, 0, 0]).sum()) - c[0, 0, 0]
    assert float(found[0]) == pytest.approx((forward + backward) / 2, rel=1e-12)
    kept[3, 0] = True  # its positive; the two others are that text again
    forward = math.log(np.exp(c[3][kept]).sum()) - c[3, 3, 0]
    backward = math.log(np.exp(c[1:, 3, 0]).sum()) - c[3, 3, 0]  # query 0 is query 3's positive
    assert float(found[3]) == pytest.approx((forward + backward) / 2, rel=1e-12)


def test_a_text_that_is_its_own_positive_counts_among_the_negatives_of_other_queries():
    x = inputs(ragged=False)
    key = x.passage_key_BP.clone()
    key[:, 0] = x.query_key_B
    found = Contrastive(symmetric=True)(changed(x, passage_key_BP=key))
    assert torch.allclose(found, Contrastive(symmetric=True)(x), rtol=1e-12)


def test_the_positive_of_an_equal_query_is_no_negative_but_its_hard_negatives_are():
    x, t = inputs(ragged=False), 0.05
    found = Contrastive()(changed(x, query_key_B=torch.tensor([100, 100, 102, 103])))
    c = cosine(x) / t
    kept = np.ones((B, P), dtype=bool)
    kept[1, 0] = False
    assert float(found[0]) == pytest.approx(math.log(np.exp(c[0][kept]).sum()) - c[0, 0, 0], rel=1e-12)


def test_matryoshka_is_the_weighted_mean_over_leading_dimensions():
    x = inputs()
    cut = [changed(x, query_BD=x.query_BD[:, :d], passage_BPD=x.passage_BPD[..., :d]) for d in (2, 4, 6)]
    losses = [Contrastive()(part) for part in cut]
    found = Contrastive(matryoshka_dims=(2, 4, 6), matryoshka_weights=(1, 2, 5))(x)
    assert torch.allclose(found, (losses[0] + 2 * losses[1] + 5 * losses[2]) / 8, rtol=1e-12)
    assert torch.allclose(Contrastive(matryoshka_dims=(2, 4, 6))(x), sum(losses) / 3, rtol=1e-12)
    with pytest.raises(ValueError, match="matryoshka_dims: 9 exceeds the embedding's 6 dimensions"):
        Contrastive(matryoshka_dims=(9,))(x)


def test_a_padding_row_is_neither_query_nor_passage():
    x = inputs()
    g = torch.Generator().manual_seed(5)
    grown = ObjectiveInputs(
        passage_mask_BP=torch.cat([x.passage_mask_BP, torch.zeros(1, P, dtype=torch.bool)]),
        positive_mask_BP=torch.cat([x.positive_mask_BP, torch.zeros(1, P, dtype=torch.bool)]),
        query_key_B=torch.cat([x.query_key_B, torch.tensor([1])]),
        passage_key_BP=torch.cat([x.passage_key_BP, torch.full((1, P), -1)]),
        row_ids=(*x.row_ids, ""),
        query_BD=torch.cat([x.query_BD, torch.randn(1, D, generator=g, dtype=torch.float64)]),
        passage_BPD=torch.cat([x.passage_BPD, torch.zeros(1, P, D, dtype=torch.float64)]),
    )
    found = Contrastive(symmetric=True)(grown)
    assert torch.allclose(found[:B], Contrastive(symmetric=True)(x), rtol=1e-12) and found[B] == 0


# ---- likelihoods ----


def test_sft_is_the_mean_negative_log_likelihood_of_the_positives_tokens():
    x = inputs(positives=2, ragged=False)
    per_token = x.logp_BP.numpy() / x.tokens_BP.numpy()
    assert close(SFT()(x), [-(per_token[b, 0] + per_token[b, 1]) / 2 for b in range(B)])


@pytest.mark.parametrize("positives", [1, 2])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_averages_over_every_pair_of_positive_and_negative(positives, beta):
    x = inputs(positives=positives)
    ratio, mask = (x.logp_BP - x.ref_logp_BP).numpy(), x.passage_mask_BP.numpy()
    right = []
    for b in range(B):
        pairs = [(i, j) for i in range(positives) for j in range(positives, P) if mask[b, j]]
        values = [math.log1p(math.exp(-beta * (ratio[b, i] - ratio[b, j]))) for i, j in pairs]
        right.append(float(np.mean(values)) if values else 0.0)
    assert right[2] == 0.0
    assert close(DPO(beta=beta)(x), right)


@pytest.mark.parametrize("direction", ["rt||gen", "gen||rt"])
def test_kl_compares_the_two_softmaxes_over_the_querys_own_passages(direction):
    x, t_rt, t_gen = inputs(), 0.2, 1.5
    s, gen, mask = cosine(x), (x.logp_BP / x.tokens_BP.clamp(min=1)).numpy(), x.passage_mask_BP.numpy()
    right = []
    for b in range(B):
        rt_p = np.exp(s[b, b][mask[b]] / t_rt)
        gen_p = np.exp(gen[b][mask[b]] / t_gen)
        rt_p, gen_p = rt_p / rt_p.sum(), gen_p / gen_p.sum()
        p, q = (rt_p, gen_p) if direction == "rt||gen" else (gen_p, rt_p)
        right.append(float((p * np.log(p / q)).sum()))
    assert right[2] == 0.0
    assert close(KL(direction=direction, temperature_rt=t_rt, temperature_gen=t_gen)(x), right)


def test_the_papers_kl_takes_p_rt_first_without_temperatures():
    assert KL() == KL(direction="rt||gen", temperature_rt=1.0, temperature_gen=1.0, stop_gradient="none")


@pytest.mark.parametrize(("side", "rt_learns", "gen_learns"), [("none", 1, 1), ("rt", 0, 1), ("gen", 1, 0)])
def test_stop_gradient_takes_one_side_as_given(side, rt_learns, gen_learns):
    x = inputs()
    leaves = x.query_BD.clone().requires_grad_(), x.logp_BP.clone().requires_grad_()
    loss = KL(stop_gradient=side)(changed(x, query_BD=leaves[0], logp_BP=leaves[1])).sum()
    rt, gen = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert (rt is not None and bool(rt.abs().sum() > 0)) == bool(rt_learns)
    assert (gen is not None and bool(gen.abs().sum() > 0)) == bool(gen_learns)


def test_kl_is_zero_without_negatives_even_with_two_positives():
    x = inputs(positives=2)
    assert KL()(x)[2] == 0


# ---- every objective ----

ALL = [Contrastive(symmetric=True), Contrastive(loss="SupConLoss"), SFT(), DPO(), KL()]


@pytest.mark.parametrize("objective", ALL, ids=lambda o: f"{o.type}-{getattr(o, 'loss', '')}")
def test_permuting_rows_or_negatives_permutes_the_losses_and_nothing_else(objective):
    x = inputs(positives=1)
    loss = objective(x)
    rows, columns = [2, 0, 3, 1], [0, 3, 1, 2]
    swapped = {}
    for name, value in x.__dict__.items():
        if isinstance(value, torch.Tensor):
            value = value[rows]
            swapped[name] = value[:, columns] if value.dim() > 1 and name != "query_BD" else value
    assert torch.allclose(objective(changed(x, **swapped)), loss[rows], rtol=1e-12)


@pytest.mark.parametrize("objective", ALL, ids=lambda o: f"{o.type}-{getattr(o, 'loss', '')}")
def test_gradients_are_the_derivative_and_finite_with_absent_passages(objective):
    x = inputs(positives=2)
    names = ("query_BD", "passage_BPD", "logp_BP")
    leaves = tuple(getattr(x, name).clone().requires_grad_() for name in names)
    # the score of an absent passage is not differentiable at zero, and nothing may depend on it
    leaves[1].data[~x.passage_mask_BP] = 0.5

    def total(*values):
        return objective(changed(x, **dict(zip(names, values, strict=True)))).sum()

    assert torch.autograd.gradcheck(total, leaves)
    leaves[1].data[~x.passage_mask_BP] = 0.0
    gradients = torch.autograd.grad(total(*leaves), leaves, materialize_grads=True)
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("objective", ALL, ids=lambda o: f"{o.type}-{getattr(o, 'loss', '')}")
def test_half_precision_inputs_and_autocast_leave_the_loss_in_float32(objective):
    x = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = objective(x)
    assert found.dtype == torch.float32 and torch.equal(found, objective(x))
    half = changed(x, query_BD=x.query_BD.bfloat16(), passage_BPD=x.passage_BPD.bfloat16())
    assert objective(half).dtype == torch.float32
    assert objective(inputs()).dtype == torch.float64


@pytest.mark.parametrize("objective", ALL, ids=lambda o: f"{o.type}-{getattr(o, 'loss', '')}")
def test_a_nan_in_one_query_is_not_hidden(objective):
    x = inputs()
    broken = x.logp_BP.clone(), x.query_BD.clone()
    broken[0][0, 0], broken[1][0, 0] = math.nan, math.nan
    assert torch.isnan(objective(changed(x, logp_BP=broken[0], query_BD=broken[1]))[0])


# ---- configuration ----


def test_presets_are_the_papers():
    grl, grl_sft = PRESETS["grl"], PRESETS["grl_sft"]
    assert [(o.type, o.weight) for o in grl] == [("contrastive", 1.0), ("dpo", 0.5), ("kl", 1.0)]
    assert [(o.type, o.weight) for o in grl_sft] == [("contrastive", 1.0), ("sft", 0.5), ("kl", 1.0)]
    assert grl[1].beta == 0.1 and needs_of(grl) == {"embedding", "logp", "reference"}
    assert needs_of(PRESETS["contrastive"]) == {"embedding"}


def test_objectives_come_from_names_mappings_and_lists():
    assert objectives_from("grl") == PRESETS["grl"]
    mixed = objectives_from([{"type": "contrastive", "temperature": 0.02}, DPO(), "contrastive"])
    assert mixed == (Contrastive(temperature=0.02), DPO(), Contrastive())
    assert list(named(mixed)) == ["contrastive", "dpo", "contrastive_2"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gril", "preset: 'gril' is unknown; did you mean 'grl'"),
        ({"type": "dpoo"}, "type: 'dpoo' is unknown; did you mean 'dpo'"),
        ({"type": "dpo", "betta": 1}, "key of dpo: 'betta' is unknown; did you mean 'beta'"),
        ({"type": "dpo", "beta": -1}, r"dpo.beta: .*greater than 0 \(got -1\)"),
        ({"type": "contrastive", "weight": math.nan}, "contrastive.weight"),
        ({"type": "contrastive", "loss": "Triplet"}, "contrastive.loss"),
        ({"type": "contrastive", "symmetric": True, "in_batch_negatives": False}, "set in_batch_negatives to true"),
        ({"type": "contrastive", "matryoshka_dims": [4], "matryoshka_weights": [1, 2]}, "2 weights for 1"),
        ([], "none given"),
    ],
)
def test_wrong_objectives_are_refused_in_one_line_with_the_cure(value, message):
    with pytest.raises(ValueError, match=message) as caught:
        objectives_from(value)
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_an_error_and_objectives_do_not_change():
    with pytest.raises(ValidationError):
        DPO(gamma=1)
    with pytest.raises(ValidationError):
        DPO().beta = 3
    assert all(name == kind.model_fields["type"].default for name, kind in OBJECTIVES.items())
