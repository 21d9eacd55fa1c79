"""Attention of texts end to end, each within itself, by matrix products alone: the CPU's way.

Texts are computed one after the other, a block of queries at a time. Forward keeps no attention weights, backward
computes them again. With its backward it takes a third to a half of the time of scaled_dot_product_attention on a CPU
(benchmarks/LOG.md), and like it has products and softmax in float32 at least.

Shapes, beside the legend of ``ullme.types``: ``H`` query heads, ``K`` key heads, ``G`` query heads per key head, ``R``
queries and ``M`` keys of a block, ``C`` width of a head, of queries and keys; values may have another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ullme.types import Attention

#: Queries of a block: enough for the matrix units, few enough that a block's weights stay in a core's cache.
ROWS = 128


@dataclass(frozen=True)
class Reach:
    """How many keys before and after its own place a token sees; None is no limit."""

    before: int | None
    after: int | None

    @classmethod
    def of(cls, attention: Attention, window: int | None) -> Reach:
        """As Transformers counts a window: with the token itself under causal attention, to both sides without it."""
        if attention == "causal":
            return cls(None if window is None else window - 1, 0)
        return cls(window, window)

    def keys(self, rows: range, length: int) -> range:
        """The keys that some of these tokens see in a text of this length."""
        low = 0 if self.before is None else max(0, rows.start - self.before)
        high = length if self.after is None else min(length, rows.stop + self.after)
        return range(low, high)

    def hidden_RM(self, rows: range, keys: range, device: torch.device) -> Tensor | None:  # noqa: N802 - a shape
        """True where a token does not see a key; None where each sees all of them."""
        past = self.before is not None and keys.start < rows.stop - 1 - self.before
        future = self.after is not None and keys.stop - 1 > rows.start + self.after
        if not past and not future:
            return None
        offset_RM = torch.arange(keys.start, keys.stop, device=device) - torch.arange(
            rows.start, rows.stop, device=device
        ).unsqueeze(1)
        hidden_RM = torch.zeros_like(offset_RM, dtype=torch.bool)
        if self.before is not None:
            hidden_RM |= offset_RM < -self.before
        if self.after is not None:
            hidden_RM |= offset_RM > self.after
        return hidden_RM


class EachText(torch.autograd.Function):
    """One text after the other, a block of queries at a time: (H, X, C) to (X, H, C)."""

    @staticmethod
    def forward(
        ctx: Any,
        query_HXC: Tensor,
        key_KXC: Tensor,
        value_KXC: Tensor,
        lengths: list[int],
        scale: float,
        reach: Reach,
        softcap: float | None,
    ) -> Tensor:
        ctx.save_for_backward(query_HXC, key_KXC, value_KXC)
        ctx.lengths, ctx.block = lengths, partial(_Block, scale=scale, reach=reach, softcap=softcap)
        output_XHC = value_KXC.new_empty(query_HXC.shape[1], query_HXC.shape[0], value_KXC.shape[-1])
        for query, key, value, output in zip(
            *_texts(lengths, query_HXC, key_KXC, value_KXC), output_XHC.split(lengths), strict=True
        ):
            for rows in _blocks(query.shape[1]):
                block = ctx.block(query, key, rows)
                found_KRC = torch.bmm(block.weight_KRM().to(value.dtype), value[:, block.keys.start : block.keys.stop])
                output[rows.start : rows.stop].copy_(block.heads(found_KRC).transpose(0, 1))
        return output_XHC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XHC: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        grads = tuple(torch.empty_like(x) for x in inputs)
        for query, key, value, grad, d_query, d_key, d_value in zip(
            *_texts(ctx.lengths, *inputs, grad_XHC.transpose(0, 1), *grads), strict=True
        ):
            blocks = [ctx.block(query, key, rows) for rows in _blocks(query.shape[1])]
            sums = [torch.zeros_like(x, dtype=_at_least_float32(x)) for x in (key, value)] if len(blocks) > 1 else None
            for block in blocks:
                found = block.backward(value, grad)
                d_query[:, block.rows.start : block.rows.stop] = found[0]
                for total, part in zip(sums or (d_key, d_value), found[1:], strict=True):
                    _put(total[:, block.keys.start : block.keys.stop], part, added=sums is not None)
            if sums is not None:
                d_key.copy_(sums[0])
                d_value.copy_(sums[1])
        return (*grads, None, None, None, None)


@dataclass(frozen=True)
class _Block:
    """Some queries of a text against the keys that they see; ``query`` is (H, T, C), ``key`` is (K, T, C)."""

    query: Tensor
    key: Tensor
    rows: range
    scale: float
    reach: Reach
    softcap: float | None

    @property
    def keys(self) -> range:
        """The keys that some of the queries see."""
        return self.reach.keys(self.rows, self.key.shape[1])

    @property
    def seen_KMC(self) -> Tensor:  # noqa: N802 - the suffix is the shape
        """These keys."""
        return self.key[:, self.keys.start : self.keys.stop]

    def grouped(self, x_HTC: Tensor) -> Tensor:
        """This block's rows of all query heads, those of one key head below each other, (K, G * R, C)."""
        rows_HRC = x_HTC[:, self.rows.start : self.rows.stop]
        return rows_HRC.reshape(self.key.shape[0], -1, x_HTC.shape[-1])

    def heads(self, x_KRC: Tensor) -> Tensor:
        """The opposite of ``grouped``: (H, R, C)."""
        return x_KRC.reshape(self.query.shape[0], len(self.rows), -1)

    def product_KRM(self) -> Tensor:  # noqa: N802 - the suffix is the shape
        """Scaled products, soft-capped where the model does so; float32 at least, like the softmax that they enter."""
        query_KRC, key_KMC = (x.to(_at_least_float32(x)) for x in (self.grouped(self.query), self.seen_KMC))
        product_KRM = _scaled_bmm(query_KRC, key_KMC.mT, self.scale)
        return product_KRM if self.softcap is None else torch.tanh(product_KRM / self.softcap) * self.softcap

    def weight_KRM(self, product_KRM: Tensor | None = None) -> Tensor:  # noqa: N802 - the suffix is the shape
        """Attention weights."""
        product_KRM = self.product_KRM() if product_KRM is None else product_KRM
        hidden_RM = self.reach.hidden_RM(self.rows, self.keys, self.key.device)
        if hidden_RM is not None:
            by_head = product_KRM.view(self.query.shape[0], *hidden_RM.shape)
            fill = torch.Tensor.masked_fill_ if self.softcap is None else torch.Tensor.masked_fill  # backward reads it
            product_KRM = fill(by_head, hidden_RM, float("-inf")).view(product_KRM.shape)
        return torch.softmax(product_KRM, dim=-1)

    def backward(self, value: Tensor, grad_HTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the block's queries (H, R, C), and of the keys and values that they see, (K, M, C)."""
        product_KRM = self.product_KRM()
        weight_KRM = self.weight_KRM(product_KRM)
        grad_KRC = self.grouped(grad_HTC)
        d_value_KMC = torch.bmm(weight_KRM.to(value.dtype).mT, grad_KRC)
        d_weight_KRM = torch.bmm(grad_KRC, value[:, self.keys.start : self.keys.stop].mT)
        d_product_KRM = torch._softmax_backward_data(
            d_weight_KRM.to(weight_KRM.dtype), weight_KRM, -1, weight_KRM.dtype
        )
        if self.softcap is not None:
            d_product_KRM = d_product_KRM * (1 - (product_KRM / self.softcap).square())
        d_product_KRM = d_product_KRM.to(value.dtype)
        d_query_KRC = _scaled_bmm(d_product_KRM, self.seen_KMC, self.scale)
        return (
            self.heads(d_query_KRC),
            _scaled_bmm(d_product_KRM.mT, self.grouped(self.query), self.scale),
            d_value_KMC,
        )


def _texts(lengths: list[int], *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Tensors (heads, X, C) cut into their texts."""
    return [x.split(lengths, dim=1) for x in tensors]


def _blocks(length: int) -> list[range]:
    return [range(start, min(start + ROWS, length)) for start in range(0, length, ROWS)]


def _scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    unused = a.new_empty(1, 1, 1).expand(a.shape[0], a.shape[1], b.shape[2])  # beta 0: neither read nor copied
    return torch.baddbmm(unused, a, b, beta=0, alpha=scale)


def _put(total: Tensor, part: Tensor, added: bool) -> None:
    if added:
        total.add_(part)
    else:
        total.copy_(part)


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
