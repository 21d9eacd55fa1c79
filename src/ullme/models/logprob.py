"""Token log-likelihoods from hidden states: only scored tokens meet the vocabulary, a block of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ullme.types import Texts

#: Memory of one block of logits in float32 (float64 for a float64 model), by device type; while one is computed, two
#: to three times as much is in use. On a CPU glibc maps anything above 32 MiB anew each time, which costs more than it
#: saves. A GPU's matrix units want more rows; its figure has not been measured. Another device takes the CPU's.
BLOCK_BYTES: Mapping[str, int] = {"cpu": 2**25, "cuda": 2**28}

#: Memory of the rows of a block that are in float32 at a time, by device type: on a CPU they stay in its caches.
TILE_BYTES: Mapping[str, int] = {"cpu": 2**21}


class Head(Protocol):
    """From hidden states to logits; ``ullme.models.specs.LogitsHead`` is one."""

    @property
    def vocabulary(self) -> int:
        """How many logits there are."""

    @property
    def trainable(self) -> bool:
        """Whether any of its weights needs a gradient."""

    @property
    def plain(self) -> nn.Linear | None:
        """The linear layer that it is, where it is nothing else and its weight is whole on this device."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Hidden states (X, D) to logits (X, V)."""


def sequence_logp(
    hidden_XD: Tensor, texts: Texts, scored_X: Tensor, head: Head, block_bytes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of log pi(w_i | w_<i) over the scored tokens of each text, (N,), and how many there are, (N,).

    The hidden state before a token predicts it; a first token is predicted by nothing and is never scored. What is
    computed grows with the scored tokens, what is kept for backward with scored tokens x hidden width.

    Args:
        hidden_XD: last hidden states of the texts end to end.
        texts: what their tokens are, or for hidden tokens were.
        scored_X: True on the tokens whose likelihood counts.
        head: hidden states (X, D) to logits (X, V).
        block_bytes: memory of one block of logits; None is ``BLOCK_BYTES`` of the device.
    """
    scored_X = scored_X & (texts.place_X > 0)
    at = scored_X.nonzero().squeeze(1)
    logp_X = token_logp(hidden_XD.index_select(0, at - 1), texts.ids_X[at], head, block_bytes)
    logp_N = torch.zeros(len(texts), dtype=logp_X.dtype, device=logp_X.device)
    tokens_N = torch.zeros_like(texts.lengths_N)
    return logp_N.index_add(0, texts.text_X[at], logp_X), tokens_N.index_add(0, texts.text_X, scored_X.long())


def token_logp(hidden_XD: Tensor, target_X: Tensor, head: Head, block_bytes: int | None = None) -> Tensor:
    """Log-likelihood of each target token given the hidden state before it, (X,), float32 at least.

    A frozen head (LoRA) meets every token twice, both in the forward pass: a token's likelihood reaches no hidden state
    but the one that predicts it, so its gradient (X, D) can be kept and backward only scales it. A head that trains
    needs the loss's gradient for its own, so each block's logits are computed again in backward: by a library's kernel
    (``KERNELS``) where one fits, else by checkpointing. There are no second derivatives but by checkpointing.
    """
    if block_bytes is None:
        block_bytes = BLOCK_BYTES.get(hidden_XD.device.type, BLOCK_BYTES["cpu"])
    rows = max(1, block_bytes // (_logits_dtype(hidden_XD).itemsize * head.vocabulary))
    if not torch.is_grad_enabled() or not (hidden_XD.requires_grad or head.trainable):
        return torch.cat([_block_logp(h, t, head) for h, t in _blocks(hidden_XD, target_X, rows)])
    if not head.trainable:
        return _FrozenHeadLogp.apply(hidden_XD, target_X, head, rows)
    plain = head.plain
    if plain is not None and _kernel_fits(hidden_XD, plain):
        return KERNELS[hidden_XD.device.type](hidden_XD, target_X, plain, rows)
    blocks = _blocks(hidden_XD, target_X, rows)
    return torch.cat([checkpoint(_block_logp, h, t, head, use_reentrant=False) for h, t in blocks])


Kernel = Callable[[Tensor, Tensor, nn.Linear, int], Tensor]


def _linear_cross_entropy(hidden_XD: Tensor, target_X: Tensor, linear: nn.Linear, rows: int) -> Tensor:
    """Torch's own, from 2.13 on."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
    return -torch.nn.functional.linear_cross_entropy(
        hidden_XD, linear.weight, target_X, linear_bias=linear.bias, reduction="none", options=options
    )


#: The kernel for a plain head that trains in float32 or float64, by device type. On a CPU torch's takes 0.7 of the time
#: of checkpointed blocks (benchmarks/LOG.md); on CUDA it has not been measured. It is not used for a frozen head, which
#: it would make meet every token a third time, nor in 16 bits, where it rounds each likelihood to 16 bits.
KERNELS: Mapping[str, Kernel] = {"cpu": _linear_cross_entropy, "cuda": _linear_cross_entropy}


def _kernel_fits(hidden_XD: Tensor, plain: nn.Linear) -> bool:
    device = hidden_XD.device.type
    full_precision = hidden_XD.dtype == plain.weight.dtype == _logits_dtype(hidden_XD)
    available = device in KERNELS and hasattr(torch.nn.functional, "linear_cross_entropy")
    return available and full_precision and not torch.is_autocast_enabled(device)


class _FrozenHeadLogp(torch.autograd.Function):
    """Forward computes each token's likelihood and its gradient, (X, D); backward multiplies."""

    @staticmethod
    def forward(ctx: Any, hidden_XD: Tensor, target_X: Tensor, head: Head, rows: int) -> Tensor:
        logp_X = torch.empty(hidden_XD.shape[0], dtype=_logits_dtype(hidden_XD), device=hidden_XD.device)
        gradient_XD = torch.empty_like(hidden_XD)
        blocks = zip(*(x.split(rows) for x in (hidden_XD, target_X, logp_X, gradient_XD)), strict=True)
        for hidden, target, logp, gradient in blocks:
            _logp_and_gradient(hidden, target, head, logp, gradient)
        ctx.save_for_backward(gradient_XD)
        return logp_X

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_X: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_XD,) = ctx.saved_tensors
        return (gradient_XD * grad_X[:, None]).to(gradient_XD.dtype), None, None, None


def _logp_and_gradient(hidden_XD: Tensor, target_X: Tensor, head: Head, logp_X: Tensor, gradient_XD: Tensor) -> None:
    """Write a block's likelihoods and the gradient of each with respect to its hidden state into the last two."""
    with torch.enable_grad():
        leaf_XD = hidden_XD.detach().requires_grad_()
        logits_XV = head(leaf_XD)
    slope_XV = torch.empty_like(logits_XV)  # d log p(w) / d logits = [w] - p
    for logits, target, logp, slope in _tiles(logits_XV.detach(), target_X, logp_X, slope_XV):
        work_XV = _log_softmax(logits)
        logp.copy_(work_XV.gather(1, target[:, None])[:, 0])
        work_XV.exp_().neg_()
        work_XV[torch.arange(len(target), device=target.device), target] += 1
        slope.copy_(work_XV)
    gradient_XD.copy_(torch.autograd.grad(logits_XV, leaf_XD, slope_XV)[0])


def _block_logp(hidden_XD: Tensor, target_X: Tensor, head: Head) -> Tensor:
    """A block's likelihoods, (X,)."""
    logits_XV = head(hidden_XD)
    if torch.is_grad_enabled():
        return _logp(logits_XV, target_X)
    return torch.cat([_logp(logits, target) for logits, target in _tiles(logits_XV, target_X)])


def _logp(logits_XV: Tensor, target_X: Tensor) -> Tensor:
    return _log_softmax(logits_XV).gather(1, target_X[:, None]).squeeze(1)


def _log_softmax(logits_XV: Tensor) -> Tensor:
    return torch.log_softmax(logits_XV, dim=-1, dtype=_logits_dtype(logits_XV))


def _tiles(logits_XV: Tensor, *others_X: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of logits, and of what belongs to them, that are widened at a time."""
    row_bytes = _logits_dtype(logits_XV).itemsize * logits_XV.shape[-1]
    rows = max(1, TILE_BYTES.get(logits_XV.device.type, BLOCK_BYTES["cuda"]) // row_bytes)
    return zip(*(x.split(rows) for x in (logits_XV, *others_X)), strict=True)


def _logits_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _blocks(hidden_XD: Tensor, target_X: Tensor, rows: int) -> zip[tuple[Tensor, Tensor]]:
    return zip(hidden_XD.split(rows), target_X.split(rows), strict=True)
