"""Pooling: from the hidden states of a text's tokens to its embedding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Pooler = Callable[[Tensor, Tensor, Tensor], Tensor]


def mean(hidden_NTD: Tensor, mask_NT: Tensor, pooled_NT: Tensor) -> Tensor:
    """The mean of the pooled tokens, (N, D)."""
    return _weighted(hidden_NTD, pooled_NT.to(hidden_NTD.dtype))


def weightedmean(hidden_NTD: Tensor, mask_NT: Tensor, pooled_NT: Tensor) -> Tensor:
    """The mean of the pooled tokens, each weighted by its place in the text, from 1 (SGPT, Muennighoff 2022, eq. 2)."""
    return _weighted(hidden_NTD, mask_NT.cumsum(1).to(hidden_NTD.dtype) * pooled_NT)


def cls(hidden_NTD: Tensor, mask_NT: Tensor, pooled_NT: Tensor) -> Tensor:
    """The first pooled token, (N, D)."""
    return _token(hidden_NTD, pooled_NT.int().argmax(1))


def lasttoken(hidden_NTD: Tensor, mask_NT: Tensor, pooled_NT: Tensor) -> Tensor:
    """The last pooled token, (N, D)."""
    last_N = pooled_NT.shape[1] - 1 - pooled_NT.int().flip(1).argmax(1)
    return _token(hidden_NTD, last_N)


POOLERS: dict[str, Pooler] = {"mean": mean, "weightedmean": weightedmean, "cls": cls, "lasttoken": lasttoken}


class LatentAttention(nn.Module):
    """Tokens attend to learned latents before their mean is taken (NV-Embed, Lee et al. 2024, section 3.1).

    Each hidden state queries ``num_latents`` trained vectors by multi-head attention, then passes a two-layer GELU
    network; both are residual and end in a layer that starts at zero, so an untrained pooler equals mean pooling.
    """

    def __init__(self, width: int, num_latents: int = 512, num_heads: int = 8) -> None:
        super().__init__()
        heads = max(h for h in range(1, num_heads + 1) if width % h == 0)
        self.latents_LD = nn.Parameter(torch.randn(num_latents, width) * width**-0.5)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        for last in (*self.attention.out_proj.parameters(), *self.network[-1].parameters()):
            nn.init.zeros_(last)

    def forward(self, hidden_NTD: Tensor, mask_NT: Tensor, pooled_NT: Tensor) -> Tensor:
        """The mean over pooled tokens of what they became, (N, D)."""
        hidden_NTD = hidden_NTD.to(self.latents_LD.dtype)
        latents_NLD = self.latents_LD.expand(hidden_NTD.shape[0], -1, -1)
        hidden_NTD = hidden_NTD + self.attention(hidden_NTD, latents_NLD, latents_NLD, need_weights=False)[0]
        return mean(hidden_NTD + self.network(hidden_NTD), mask_NT, pooled_NT)


class Pooling(nn.Module):
    """The pooling of a model, by name; in float32 at least, whatever the backbone's dtype or autocast."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name = name
        self.latent = LatentAttention(width) if name == "latent" else None

    def forward(self, hidden_NTD: Tensor, mask_NT: Tensor, pooled_NT: Tensor) -> Tensor:
        """Embeddings (N, D) from hidden states (N, T, D).

        Args:
            hidden_NTD: last hidden states of the backbone.
            mask_NT: 1 on real tokens, 0 on padding of either side.
            pooled_NT: True on the tokens that count, a subset of the mask with at least one token per text.
        """
        with torch.autocast(hidden_NTD.device.type, enabled=False):
            if hidden_NTD.dtype in (torch.bfloat16, torch.float16):
                hidden_NTD = hidden_NTD.float()
            pool = self.latent if self.latent is not None else POOLERS[self.name]
            return pool(hidden_NTD, mask_NT, pooled_NT)


def _weighted(hidden_NTD: Tensor, weight_NT: Tensor) -> Tensor:
    weight_NT = weight_NT / weight_NT.sum(1, keepdim=True)
    return torch.einsum("ntd,nt->nd", hidden_NTD, weight_NT)


def _token(hidden_NTD: Tensor, place_N: Tensor) -> Tensor:
    return hidden_NTD[torch.arange(hidden_NTD.shape[0], device=hidden_NTD.device), place_N]
