"""Attention of texts end to end, each within itself, by matrix products alone: the CPU's way.

Texts are computed one after the other, a block of queries at a time. Forward keeps no attention weights, backward
computes them again. All is in float32 at least. With its backward it takes a third to a half of the time of
scaled_dot_product_attention on a CPU (benchmarks/LOG.md).

Shapes, beside the legend of ``ullme.types``: ``H`` query heads, ``K`` key heads, ``G`` query heads per key head, ``R``
queries and ``M`` keys of a block, ``Y`` = X * G queries by key head, ``C`` width of a head; values may have another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ullme.models.packed_row import Prefix
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

    def hides(self, rows: range, keys: range) -> bool:
        """Whether some of these tokens does not see some of these keys."""
        past = self.before is not None and keys.start < rows.stop - 1 - self.before
        return past or (self.after is not None and keys.stop - 1 > rows.start + self.after)

    def hidden(self, offset: Tensor) -> Tensor:
        """True where a key at this offset from a token is not seen by it."""
        hidden = torch.zeros_like(offset, dtype=torch.bool)
        if self.before is not None:
            hidden |= offset < -self.before
        if self.after is not None:
            hidden |= offset > self.after
        return hidden


def attend_each_text(
    query_HXC: Tensor,
    key_KXC: Tensor,
    value_KXC: Tensor,
    lengths: list[int],
    scale: float,
    reach: Reach,
    softcap: float | None = None,
    prefixes: Sequence[Prefix] | None = None,
) -> Tensor:
    """What each token sees of its own text's values, (X, H, C of values).

    Args:
        query_HXC: queries of the texts end to end.
        key_KXC: keys; each serves H / K query heads.
        value_KXC: values.
        lengths: tokens of each text.
        scale: factor of the products.
        reach: how far a token sees.
        softcap: bound of the scaled products, by tanh.
        prefixes: the tokens that each text sees before its own; they stand elsewhere, once for all that see them.
    """
    segments = Segment.all(lengths, prefixes)
    return _EachText.apply(query_HXC, key_KXC, value_KXC, segments, scale, reach, softcap)


@dataclass(frozen=True)
class Segment:
    """Tokens next to each other that see themselves, after a prefix that stands elsewhere.

    Attributes:
        start: where its own tokens stand.
        length: how many they are.
        prefix: where the prefix stands.
        before: tokens of the prefix; the first own token is at this place of its text.
    """

    start: int
    length: int
    prefix: int = 0
    before: int = 0

    @classmethod
    def all(cls, lengths: Sequence[int], prefixes: Sequence[Prefix] | None) -> list[Segment]:
        """Segments of these lengths end to end."""
        before = prefixes or [(0, 0)] * len(lengths)
        parts = zip(accumulate(lengths), lengths, before, strict=True)
        return [cls(end - length, length, *prefix) for end, length, prefix in parts]

    @property
    def end(self) -> int:
        """Tokens of the text, prefix and own."""
        return self.before + self.length

    @property
    def own(self) -> slice:
        """Where its own tokens stand."""
        return slice(self.start, self.start + self.length)

    def slices(self, places: range) -> list[slice]:
        """Where these places of the text stand: one run of tokens, or one of the prefix and one of its own."""
        in_prefix = range(places.start, min(places.stop, self.before))
        in_own = range(max(places.start, self.before), places.stop)
        runs = [(in_prefix, self.prefix), (in_own, self.start - self.before)]
        return [slice(run.start + shift, run.stop + shift) for run, shift in runs if len(run)]


def taken(x: Tensor, places: list[slice], dim: int = 1) -> Tensor:
    """The tokens in these slices, one after the other."""
    parts = [x.narrow(dim, place.start, place.stop - place.start) for place in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class _EachText(torch.autograd.Function):
    """One text after the other, a block of queries at a time.

    Query heads that share a key head are laid out next to each other, (K, X * G, C), so that one product serves them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_HXC: Tensor,
        key_KXC: Tensor,
        value_KXC: Tensor,
        segments: list[Segment],
        scale: float,
        reach: Reach,
        softcap: float | None,
    ) -> Tensor:
        ctx.save_for_backward(query_HXC, key_KXC, value_KXC)
        ctx.blocks = partial(_blocks, segments, reach, query_HXC.shape[0] // key_KXC.shape[0])
        ctx.weight = partial(_weight, scale=scale, softcap=softcap)
        ctx.scale, ctx.softcap = scale, softcap
        query_KYC, key_KXC, value_KXC = _wide(_by_key_head(query_HXC, len(key_KXC)), key_KXC, value_KXC)
        output_KYC = value_KXC.new_empty(*query_KYC.shape[:2], value_KXC.shape[-1])
        for block in ctx.blocks(query_HXC.device):
            weight_KRM, _ = ctx.weight(query_KYC[:, block.rows], taken(key_KXC, block.keys), block.hidden_RM)
            output_KYC[:, block.rows].baddbmm_(weight_KRM, taken(value_KXC, block.keys), beta=0)
        return _by_token(output_KYC, query_HXC.shape[1]).to(query_HXC.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XHC: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad_XHC.device.type, enabled=False):  # backward may be called inside it
            return (*_gradients(ctx, grad_XHC), None, None, None, None)


def _gradients(ctx: Any, grad_XHC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; the weights are computed again."""
    query_HXC, key_KXC, value_KXC = ctx.saved_tensors
    heads, tokens, dtype = len(key_KXC), query_HXC.shape[1], query_HXC.dtype
    grouped = (_by_key_head(x_HXC, heads) for x_HXC in (query_HXC, grad_XHC.transpose(0, 1)))
    query_KYC, grad_KYC, key_KXC, value_KXC = _wide(*grouped, key_KXC, value_KXC)
    d_query_KYC, d_key_KXC, d_value_KXC = (torch.zeros_like(x) for x in (query_KYC, key_KXC, value_KXC))
    for block in ctx.blocks(query_HXC.device):
        rows, keys = block.rows, block.keys
        key_KMC, value_KMC = taken(key_KXC, keys), taken(value_KXC, keys)
        weight_KRM, product_KRM = ctx.weight(query_KYC[:, rows], key_KMC, block.hidden_RM)
        _add_product(d_value_KXC, keys, weight_KRM.mT, grad_KYC[:, rows])
        d_weight_KRM = torch.bmm(grad_KYC[:, rows], value_KMC.mT)
        d_product_KRM = torch._softmax_backward_data(d_weight_KRM, weight_KRM, -1, weight_KRM.dtype)
        if ctx.softcap is not None:
            d_product_KRM = d_product_KRM * (1 - (product_KRM / ctx.softcap).square())
        d_query_KYC[:, rows].baddbmm_(d_product_KRM, key_KMC, alpha=ctx.scale)
        _add_product(d_key_KXC, keys, d_product_KRM.mT, query_KYC[:, rows], ctx.scale)
    d_query_HXC = _by_token(d_query_KYC, tokens).transpose(0, 1)
    return d_query_HXC.to(dtype), d_key_KXC.to(dtype), d_value_KXC.to(dtype)


@dataclass(frozen=True)
class _Block:
    """Some queries of one text, and the keys that they see: places among all texts' grouped queries, and their keys."""

    rows: slice
    keys: list[slice]
    hidden_RM: Tensor | None


def _blocks(segments: list[Segment], reach: Reach, group: int, device: torch.device) -> Iterator[_Block]:
    """Every text's queries, ``ROWS`` at a time."""
    longest = max(segment.end for segment in segments)
    rows, width = min(ROWS, longest), 2 * longest
    offset_RM = torch.arange(width, device=device) - torch.arange(rows, device=device)[:, None] - longest
    hidden_RM = reach.hidden(offset_RM).repeat_interleave(group, 0)  # of keys from ``longest`` before the first query
    for segment in segments:
        for first in range(segment.before, segment.end, ROWS):
            of_text = range(first, min(first + ROWS, segment.end))
            keys = reach.keys(of_text, segment.end)
            left = longest + keys.start - first
            hides = reach.hides(of_text, keys)
            (own,) = segment.slices(of_text)
            yield _Block(
                slice(own.start * group, own.stop * group),
                segment.slices(keys),
                hidden_RM[: len(of_text) * group, left : left + len(keys)] if hides else None,
            )


def _weight(
    query_KRC: Tensor, key_KMC: Tensor, hidden_RM: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Attention weights of a block, and the products that they come from."""
    product_KRM = _scaled_bmm(query_KRC, key_KMC.mT, scale)
    if softcap is not None:
        product_KRM = torch.tanh(product_KRM / softcap) * softcap
    if hidden_RM is None:
        return torch.softmax(product_KRM, dim=-1), product_KRM
    fill = torch.Tensor.masked_fill_ if softcap is None else torch.Tensor.masked_fill  # a cap's backward reads them
    return torch.softmax(fill(product_KRM, hidden_RM, float("-inf")), dim=-1), product_KRM


def _add_product(total_KXC: Tensor, places: list[slice], a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """Add a scaled product to the tokens in these slices."""
    if len(places) == 1:
        total_KXC[:, places[0]].baddbmm_(a, b, alpha=scale)
        return
    found_KMC = _scaled_bmm(a, b, scale)
    for place, part in zip(places, found_KMC.split([p.stop - p.start for p in places], dim=1), strict=True):
        total_KXC[:, place] += part


def _by_key_head(x_HXC: Tensor, key_heads: int) -> Tensor:
    """(H, X, C) to (K, X * G, C)."""
    return x_HXC.unflatten(0, (key_heads, -1)).transpose(1, 2).flatten(1, 2)


def _by_token(x_KYC: Tensor, tokens: int) -> Tensor:
    """(K, X * G, C) to (X, H, C)."""
    return x_KYC.unflatten(1, (tokens, -1)).transpose(0, 1).flatten(1, 2)


def _scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    unused = a.new_empty(1, 1, 1).expand(a.shape[0], a.shape[1], b.shape[2])  # beta 0: neither read nor copied
    return torch.baddbmm(unused, a, b, beta=0, alpha=scale)


def _wide(*tensors: Tensor) -> list[Tensor]:
    """In float32 at least: on a CPU products of this size are faster in it than in bfloat16, conversions counted."""
    return [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]
