"""The mathematics of the objectives: functions of tensors alone.

Names follow the shape legend of :mod:`ullme.types`; besides, ``C`` counts the B*P candidate passages of a batch in the
order of ``passage_BPD.flatten(0, 1)``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def mean_where(value: Tensor, mask: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Mean of the entries where ``mask`` holds; 0 where it holds nowhere."""
    count = mask.sum(dim).clamp(min=1)
    return torch.where(mask, value, 0.0).sum(dim) / count


def log_softmax_where(logit: Tensor, mask: Tensor) -> Tensor:
    """Log-softmax over the last dimension among the entries where ``mask`` holds; 0 elsewhere, never NaN."""
    least = torch.finfo(logit.dtype).min
    return torch.log_softmax(logit.masked_fill(~mask, least), dim=-1).masked_fill(~mask, 0.0)


class Candidates(NamedTuple):
    """Which of the C passages of a batch are what to each query; all (B, C), bool."""

    own_BC: Tensor
    negative_BC: Tensor
    equal_BC: Tensor  # the candidate's text is one of the query's positives, or the query itself


def candidates(
    passage_mask_BP: Tensor,
    positive_mask_BP: Tensor,
    query_key_B: Tensor,
    passage_key_BP: Tensor,
    in_batch_negatives: bool = True,
    hard_negatives: bool = True,
    in_batch_B: Tensor | None = None,
) -> Candidates:
    """The candidates of each query; its own text, and a positive of it (or of an equal query), is no negative of it.

    Args:
        passage_mask_BP: passages that exist.
        positive_mask_BP: positives among them.
        query_key_B: equal for equal queries, and equal to the key of a passage of the same text.
        passage_key_BP: equal for equal passages.
        in_batch_negatives: count other queries' passages as negatives.
        hard_negatives: count hard negatives (the query's own and, in the batch, the others').
        in_batch_B: queries that take and give in-batch negatives; None: all do.
    """
    queries, passages = passage_mask_BP.shape
    positive_BP = positive_mask_BP & passage_mask_BP
    key_C, exists_C, positive_C = passage_key_BP.flatten(), passage_mask_BP.flatten(), positive_BP.flatten()
    own_BC = torch.eye(queries, dtype=torch.bool, device=key_C.device).repeat_interleave(passages, dim=1)
    equal_BC = exists_C & (key_C == query_key_B[:, None])
    for p in range(passages):
        equal_BC |= positive_BP[:, p, None] & exists_C & (key_C == passage_key_BP[:, p, None])
    same_query_BC = (query_key_B[:, None] == query_key_B).repeat_interleave(passages, dim=1)
    negative_BC = exists_C & ~equal_BC & ~(same_query_BC & positive_C)
    if not in_batch_negatives:
        negative_BC = negative_BC & own_BC
    elif in_batch_B is not None:
        both_BB = in_batch_B[:, None] & in_batch_B
        negative_BC = negative_BC & (own_BC | both_BB.repeat_interleave(passages, dim=1))
    if not hard_negatives:
        negative_BC = negative_BC & positive_C
    return Candidates(own_BC, negative_BC, equal_BC)


def own_values(value_BC: Tensor, passages: int) -> Tensor:
    """Each query's value at its own passages, (B, P)."""
    queries = value_BC.shape[0]
    return value_BC.view(queries, queries, passages).diagonal(dim1=0, dim2=1).T


def margin_threshold(positive_score: Tensor, margin: float, relative: bool) -> Tensor:
    """The score above which a passage counts as an unlabelled positive: s + margin, or s + margin * abs(s)."""
    return positive_score + (margin * positive_score.abs() if relative else margin)


def query_to_passage_loss(
    score_BC: Tensor, positive_BP: Tensor, negative_BC: Tensor, temperature: float, joint_positives: bool
) -> Tensor:
    """Softmax loss of each query's positives against its negatives, (B,); 0 for a query without either.

    With one positive both forms are InfoNCE (van den Oord et al. 2018, equation 4). With several,
    ``joint_positives=False`` sets each positive against the negatives alone (NT-Xent, Chen et al. 2020), and
    ``joint_positives=True`` lets all positives share one softmax (SupCon, Khosla et al. 2020, L_out, equation 2); both
    average over the query's positives.
    """
    logit_BC = score_BC / temperature
    logit_BP = own_values(logit_BC, positive_BP.shape[1])
    rest_B = _logsumexp_where(logit_BC, negative_BC)
    if joint_positives:
        every_B = torch.logaddexp(rest_B, _logsumexp_where(logit_BP, positive_BP))
        loss_BP = every_B[:, None] - logit_BP
    else:
        loss_BP = torch.logaddexp(rest_B[:, None], logit_BP) - logit_BP
    return mean_where(loss_BP, positive_BP, dim=1)


def passage_to_query_loss(
    score_BC: Tensor, positive_BP: Tensor, negative_query_BPB: Tensor, temperature: float
) -> Tensor:
    """Softmax loss of each query among the batch's queries, seen from its positives, (B,).

    ``negative_query_BPB[b, p, c]``: query c is a negative of passage p of query b.
    """
    queries, passages = positive_BP.shape
    logit_BPB = score_BC.view(queries, queries, passages).permute(1, 2, 0) / temperature
    logit_BP = own_values(score_BC, passages) / temperature
    rest_BP = _logsumexp_where(logit_BPB, negative_query_BPB)
    return mean_where(torch.logaddexp(rest_BP, logit_BP) - logit_BP, positive_BP, dim=1)


def pairwise_margin(value_BP: Tensor) -> Tensor:
    """value[p] - value[n] of every two passages of a query, (B, P, P): first index the preferred one."""
    return value_BP[:, :, None] - value_BP[:, None, :]


def mean_over_pairs(loss_BPP: Tensor, positive_BP: Tensor, negative_BP: Tensor) -> Tensor:
    """Mean over every (positive, negative) pair of each query, (B,); 0 for a query without one."""
    return mean_where(loss_BPP, positive_BP[:, :, None] & negative_BP[:, None, :], dim=(1, 2))


def logistic_loss(logit: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(logit), elementwise; with e = ``label_smoothing`` (1 - e) of it and e of that of the wrong label."""
    logsigmoid = torch.nn.functional.logsigmoid
    if not label_smoothing:
        return -logsigmoid(logit)
    return -(1 - label_smoothing) * logsigmoid(logit) - label_smoothing * logsigmoid(-logit)


def log_odds(logp: Tensor) -> Tensor:
    """log(P / (1 - P)) from log P <= 0, elementwise, with finite values and gradients.

    P = 1, whose odds are infinite, counts as the largest number below 1 that the dtype tells from 1.
    """
    # only the value is moved: a clamped one would have no gradient, and a passage at P = 1 could never leave it
    logp = logp - (logp + torch.finfo(logp.dtype).eps).clamp(min=0).detach()
    # log(1 - P): of the two forms each keeps its digits on one side of P = 1/2
    rest = torch.where(logp < -math.log(2), torch.log1p(-logp.exp()), torch.log(-torch.expm1(logp)))
    return logp - rest


def kl_divergence(log_p_BP: Tensor, log_q_BP: Tensor, mask_BP: Tensor) -> Tensor:
    """KL(p || q) of two masked log-distributions per query, (B,)."""
    return torch.where(mask_BP, log_p_BP.exp() * (log_p_BP - log_q_BP), 0.0).sum(-1)


def _logsumexp_where(logit: Tensor, mask: Tensor) -> Tensor:
    """Log-sum-exp over the last dimension where ``mask`` holds; hugely negative, yet finite, where it holds nowhere."""
    return torch.logsumexp(logit.masked_fill(~mask, torch.finfo(logit.dtype).min), dim=-1)
