"""Pooling: from the hidden states of a text's tokens to its embedding."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ullme.extension import imported, imported_class, imported_function, is_import_path, require_arguments

Pooler = Callable[[Tensor, Tensor, Tensor], Tensor]
_ARGUMENTS = ("hidden_NTD", "mask_NT", "pooled_NT")


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
    """The pooling of a model, by name; in float32 at least, whatever the backbone's dtype or autocast.

    Args:
        name: a name of ``POOLERS``, ``latent``, or the import path of a function with their arguments, or of a module
            whose forward has them and that is constructed with the width.
        width: the width D of a hidden state.

    Raises:
        ValueError: an import path leads to something else.
    """

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name = name
        self.latent = LatentAttention(width) if name == "latent" else None
        outside = outside_pooler(name) if is_import_path(name) else None
        self.outside = outside(width) if isinstance(outside, type) else None
        self._function = None if isinstance(outside, type) else outside

    @property
    def has_weights(self) -> bool:
        """Whether a checkpoint must hold something of this pooling."""
        return bool(self.state_dict())

    def forward(self, hidden_NTD: Tensor, mask_NT: Tensor, pooled_NT: Tensor) -> Tensor:
        """Embeddings (N, D) from hidden states (N, T, D).

        Args:
            hidden_NTD: last hidden states of the backbone.
            mask_NT: 1 on real tokens, 0 on padding of either side.
            pooled_NT: True on the tokens that count, a subset of the mask with at least one token per text.

        Raises:
            ValueError: a pooling from outside gives something else than (N, D).
        """
        with torch.autocast(hidden_NTD.device.type, enabled=False):
            if hidden_NTD.dtype in (torch.bfloat16, torch.float16):
                hidden_NTD = hidden_NTD.float()
            learned = self.latent if self.latent is not None else self.outside
            pool = learned if learned is not None else self._function or POOLERS[self.name]
            rep_ND = pool(hidden_NTD, mask_NT, pooled_NT)
        if rep_ND.shape != hidden_NTD[:, 0].shape:
            raise ValueError(
                f"pooling: {self.name!r} gives {tuple(rep_ND.shape)} for hidden states {tuple(hidden_NTD.shape)}; "
                f"return {tuple(hidden_NTD[:, 0].shape)}, one embedding per text"
            )
        return rep_ND


def outside_pooler(path: str) -> Pooler | type[nn.Module]:
    """The function, or class of module, that pools and stands at this import path.

    Raises:
        ValueError: there is nothing, or something else.
    """
    if not inspect.isclass(imported(path, "pooling")):
        return imported_function(path, "pooling", _ARGUMENTS)
    module = imported_class(path, "pooling", nn.Module)
    require_arguments(module, f"pooling: {path!r}", ("width",))
    require_arguments(module.forward, f"pooling: forward of {path!r}", ("self", *_ARGUMENTS))
    return module


def _weighted(hidden_NTD: Tensor, weight_NT: Tensor) -> Tensor:
    weight_NT = weight_NT / weight_NT.sum(1, keepdim=True)
    return torch.einsum("ntd,nt->nd", hidden_NTD, weight_NT)


def _token(hidden_NTD: Tensor, place_N: Tensor) -> Tensor:
    return hidden_NTD[torch.arange(hidden_NTD.shape[0], device=hidden_NTD.device), place_N]
