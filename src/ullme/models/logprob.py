"""Token log-likelihoods from hidden states, block by block, without logits for a whole batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]

#: Positions that meet the vocabulary together; 512 rows of 50k float32 logits are 100 MB.
BLOCK_ROWS = 512


def sequence_logp(hidden_NTD: Tensor, ids_NT: Tensor, scored_NT: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Sum of log pi(w_i | w_<i) over the scored tokens of each sequence, (N,), and how many there are, (N,).

    The hidden state before a token predicts it; only scored positions meet the vocabulary, ``BLOCK_ROWS`` at a time,
    and their logits are computed again in backward instead of being kept. A first token is predicted by nothing and
    is never scored.

    Args:
        hidden_NTD: last hidden states under causal attention.
        ids_NT: token ids.
        scored_NT: True on the tokens whose likelihood counts.
        head: hidden states (X, D) to logits (X, V).
    """
    scored_NT = scored_NT[:, 1:].bool()
    hidden_XD = hidden_NTD[:, :-1][scored_NT]
    target_X = ids_NT[:, 1:][scored_NT]
    blocks = zip(hidden_XD.split(BLOCK_ROWS), target_X.split(BLOCK_ROWS), strict=True)
    logp_X = [checkpoint(_block_logp, h, t, head, use_reentrant=False) for h, t in blocks]
    logp_NT = torch.zeros(scored_NT.shape, dtype=logp_X[0].dtype, device=hidden_NTD.device)
    logp_NT = logp_NT.masked_scatter(scored_NT, torch.cat(logp_X))
    return logp_NT.sum(1), scored_NT.sum(1)


def _block_logp(hidden_XD: Tensor, target_X: Tensor, head: Head) -> Tensor:
    logits_XV = head(hidden_XD)
    if logits_XV.dtype in (torch.bfloat16, torch.float16):
        logits_XV = logits_XV.float()
    return torch.log_softmax(logits_XV, dim=-1).gather(1, target_X[:, None]).squeeze(1)
