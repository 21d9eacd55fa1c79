"""Attention of texts end to end, each within itself, by matrix products alone: the CPU's way.

Texts are computed group by group, long ones a block of queries at a time (``ullme.models.text_groups``, whose shapes
are used here). Forward keeps no attention weights, backward computes them again. Products are in bfloat16 where they
are given in it and the machine has it, as in Transformers' eager attention; else in float32 at least. With its backward
it takes a fraction of the time of scaled_dot_product_attention on a CPU (benchmarks/LOG.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ullme.models.reach import Reach
from ullme.models.text_groups import Block, Layout, TextGroups


def attend_each_text(
    query_HXC: Tensor,
    key_KXC: Tensor,
    value_KXC: Tensor,
    groups: TextGroups,
    scale: float,
    reach: Reach,
    softcap: float | None = None,
) -> Tensor:
    """What each token sees of its own text's values, (X, H, C of values).

    Args:
        query_HXC: queries of the texts end to end.
        key_KXC: keys; each serves H / K query heads.
        value_KXC: values.
        groups: the texts.
        scale: factor of the products.
        reach: how far a token sees.
        softcap: bound of the scaled products, by tanh.
    """
    return _EachText.apply(query_HXC, key_KXC, value_KXC, groups, scale, reach, softcap)


class _EachText(torch.autograd.Function):
    """One block of queries after the other; query heads that share a key head are rows of one product."""

    @staticmethod
    def forward(
        ctx: Any,
        query_HXC: Tensor,
        key_KXC: Tensor,
        value_KXC: Tensor,
        groups: TextGroups,
        scale: float,
        reach: Reach,
        softcap: float | None,
    ) -> Tensor:
        ctx.save_for_backward(query_HXC, key_KXC, value_KXC)
        ctx.groups, ctx.scale, ctx.reach, ctx.softcap = groups, scale, reach, softcap
        layout, blocks = _cut(groups, reach, query_HXC, key_KXC)
        query_QC = _laid_out(query_HXC, layout.query_Q)
        key_SC, value_SC = (_laid_out(x, layout.key_S) for x in (key_KXC, value_KXC))
        output_QC = value_SC.new_empty(len(query_QC), value_SC.shape[-1])
        for block in blocks:
            weight_BRM, _ = _weight(block, layout, query_QC, key_SC, scale, softcap)
            torch.bmm(weight_BRM, _keys(value_SC, block, layout), out=_rows(output_QC, block, layout))
        return _by_token(output_QC, layout.row_XH, len(query_HXC)).to(query_HXC.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_XHC: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad_XHC.device.type, enabled=False):  # backward may be called inside it
            return (*_gradients(ctx, grad_XHC), None, None, None, None)


def _gradients(ctx: Any, grad_XHC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; the weights are computed again."""
    query_HXC, key_KXC, value_KXC = ctx.saved_tensors
    layout, blocks = _cut(ctx.groups, ctx.reach, query_HXC, key_KXC)
    query_QC, grad_QC = (_laid_out(x, layout.query_Q) for x in (query_HXC, grad_XHC.transpose(0, 1)))
    if layout.padding_Q is not None:
        grad_QC.masked_fill_(layout.padding_Q, 0)
    key_SC, value_SC = (_laid_out(x, layout.key_S) for x in (key_KXC, value_KXC))
    d_query_QC, d_key_SC, d_value_SC = torch.empty_like(query_QC), torch.zeros_like(key_SC), torch.zeros_like(value_SC)
    for block in blocks:
        query_BRC, grad_BRC = (_rows(x, block, layout) for x in (query_QC, grad_QC))
        key_BMC, value_BMC = (_keys(x, block, layout) for x in (key_SC, value_SC))
        weight_BRM, product_BRM = _weight(block, layout, query_QC, key_SC, ctx.scale, ctx.softcap)
        _keys(d_value_SC, block, layout).baddbmm_(weight_BRM.mT, grad_BRC)
        d_weight_BRM = torch.bmm(grad_BRC, value_BMC.mT)
        d_product_BRM = torch._softmax_backward_data(d_weight_BRM, weight_BRM, -1, weight_BRM.dtype)
        if ctx.softcap is not None:
            d_product_BRM = d_product_BRM * (1 - (product_BRM / ctx.softcap).square())
        _rows(d_query_QC, block, layout).baddbmm_(d_product_BRM, key_BMC, beta=0, alpha=ctx.scale)
        _keys(d_key_SC, block, layout).baddbmm_(d_product_BRM.mT, query_BRC, alpha=ctx.scale)
    d_query_XHC = _by_token(d_query_QC, layout.row_XH, layout.heads[0])
    d_keys = (_with_prefixes(x, layout) for x in (d_key_SC, d_value_SC))
    d_query_HXC, d_key_KXC, d_value_KXC = (x.transpose(0, 1).to(query_HXC.dtype) for x in (d_query_XHC, *d_keys))
    return d_query_HXC, d_key_KXC, d_value_KXC


def _cut(groups: TextGroups, reach: Reach, query_HXC: Tensor, key_KXC: Tensor) -> tuple[Layout, list[Block]]:
    heads, device = (len(query_HXC), len(key_KXC)), query_HXC.device
    return groups.layout(heads, device), groups.blocks(heads, reach, device)


def _laid_out(x_HXC: Tensor, place_Q: Tensor) -> Tensor:
    """What stands at these places of (X, H) flat, (Q, C), in the dtype of the products."""
    wide = x_HXC.to(_product_dtype(x_HXC))
    return wide.transpose(0, 1).reshape(-1, x_HXC.shape[-1]).index_select(0, place_Q)


def _by_token(x_QC: Tensor, row_XH: Tensor, heads: int) -> Tensor:
    """(X, H, C) of what is laid out."""
    return x_QC.index_select(0, row_XH).unflatten(0, (-1, heads))


def _with_prefixes(d_SC: Tensor, layout: Layout) -> Tensor:
    """Gradient (X, K, C) of keys or values: a token's own, and what comes from texts that it is a prefix of."""
    own_XKC = _by_token(d_SC, layout.row_XK, layout.heads[1])
    if layout.shared is None:
        return own_XKC
    laid_S, source_S = layout.shared
    total_XKC = own_XKC.to(torch.promote_types(d_SC.dtype, torch.float32))
    total_XKC.flatten(0, 1).index_add_(0, source_S, d_SC.index_select(0, laid_S).to(total_XKC.dtype))
    return total_XKC


def _rows(x_QC: Tensor, block: Block, layout: Layout) -> Tensor:
    """A block's queries of what is laid out, (K * N, rows, C); a view."""
    return x_QC[block.group_Q].unflatten(0, (layout.heads[1] * block.texts, -1))[:, block.rows]


def _keys(x_SC: Tensor, block: Block, layout: Layout) -> Tensor:
    """A block's keys of what is laid out, (K * N, keys, C); a view."""
    return x_SC[block.group_S].unflatten(0, (layout.heads[1] * block.texts, -1))[:, block.keys]


def _weight(
    block: Block, layout: Layout, query_QC: Tensor, key_SC: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Attention weights (K * N, rows, keys) of a block, and the products that they come from."""
    product_BRM = _scaled_bmm(_rows(query_QC, block, layout), _keys(key_SC, block, layout).mT, scale)
    if softcap is not None:
        product_BRM = torch.tanh(product_BRM / softcap) * softcap
    if block.hidden is None:
        return torch.softmax(product_BRM, dim=-1), product_BRM
    seen_BRM = product_BRM if softcap is None else product_BRM.clone()  # a cap's backward reads them
    seen_BRM.unflatten(0, (layout.heads[1], block.texts)).masked_fill_(block.hidden, float("-inf"))
    return torch.softmax(seen_BRM, dim=-1), product_BRM


def _scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    unused = a.new_empty(1, 1, 1).expand(a.shape[0], a.shape[1], b.shape[2])  # beta 0: neither read nor copied
    return torch.baddbmm(unused, a, b, beta=0, alpha=scale)


def _product_dtype(x: Tensor) -> torch.dtype:
    if x.dtype == torch.bfloat16 and (x.is_cuda or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return x.dtype
    return torch.promote_types(x.dtype, torch.float32)
