"""Pooling: from the hidden states of a text's tokens to its embedding."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ullme.extension import imported, imported_class, imported_function, is_import_path, require_arguments
from ullme.types import Texts

#: From hidden states (X, D) of texts end to end to embeddings (N, D).
Pooler = Callable[[Tensor, Texts], Tensor]

_ARGUMENTS = ("hidden_NTD", "mask_NT", "pooled_NT")


def mean(hidden_XD: Tensor, texts: Texts) -> Tensor:
    """The mean of the pooled tokens, (N, D)."""
    return _weighted(hidden_XD, texts, texts.scored_X)


def weightedmean(hidden_XD: Tensor, texts: Texts) -> Tensor:
    """The mean of the pooled tokens, each weighted by its place in the text, from 1 (SGPT, Muennighoff 2022, eq. 2)."""
    return _weighted(hidden_XD, texts, (texts.place_X + 1) * texts.scored_X)


def cls(hidden_XD: Tensor, texts: Texts) -> Tensor:
    """The first pooled token, (N, D)."""
    return hidden_XD[texts.lengths_N.cumsum(0) - texts.lengths_N + texts.skip_N]


def lasttoken(hidden_XD: Tensor, texts: Texts) -> Tensor:
    """The last pooled token, (N, D)."""
    return hidden_XD[texts.lengths_N.cumsum(0) - 1]


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

    def forward(self, hidden_XD: Tensor, texts: Texts) -> Tensor:
        """The mean over pooled tokens of what they became, (N, D)."""
        hidden_1XD, latents_1LD = hidden_XD[None].to(self.latents_LD.dtype), self.latents_LD[None]
        hidden_1XD = hidden_1XD + self.attention(hidden_1XD, latents_1LD, latents_1LD, need_weights=False)[0]
        return mean((hidden_1XD + self.network(hidden_1XD))[0], texts)


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

    def forward(self, hidden_XD: Tensor, texts: Texts) -> Tensor:
        """Embeddings (N, D) from hidden states (X, D).

        Args:
            hidden_XD: last hidden states of the backbone, of the texts end to end.
            texts: where each text begins and ends, and what of it is context; each has at least one token that is not.

        Raises:
            ValueError: a pooling from outside gives something else than (N, D).
        """
        with torch.autocast(hidden_XD.device.type, enabled=False):
            if hidden_XD.dtype in (torch.bfloat16, torch.float16):
                hidden_XD = hidden_XD.float()
            if self.latent is not None:
                return self.latent(hidden_XD, texts)
            outside = self.outside if self.outside is not None else self._function
            if outside is None:
                return POOLERS[self.name](hidden_XD, texts)
            return self._padded(outside, hidden_XD, texts)

    def _padded(self, pool: Callable[..., Tensor], hidden_XD: Tensor, texts: Texts) -> Tensor:
        """What a pooling from outside makes of the texts padded."""
        _, mask_NT = texts.pad(0)
        hidden_NTD = hidden_XD.new_zeros(*mask_NT.shape, hidden_XD.shape[-1])
        hidden_NTD = hidden_NTD.masked_scatter(mask_NT.bool()[..., None], hidden_XD)
        rep_ND = pool(hidden_NTD, mask_NT, texts.scored_NT(mask_NT))
        if rep_ND.shape != hidden_NTD[:, 0].shape:
            raise ValueError(
                f"pooling: {self.name!r} gives {tuple(rep_ND.shape)} for hidden states {tuple(hidden_NTD.shape)}; "
                f"return {tuple(hidden_NTD[:, 0].shape)}, one embedding per text"
            )
        return rep_ND


def outside_pooler(path: str) -> Callable[..., Tensor] | type[nn.Module]:
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


def _weighted(hidden_XD: Tensor, texts: Texts, weight_X: Tensor) -> Tensor:
    weight_X, text_X = weight_X.to(hidden_XD.dtype), texts.text_X
    total_N = hidden_XD.new_zeros(len(texts)).index_add(0, text_X, weight_X)
    sum_ND = hidden_XD.new_zeros(len(texts), hidden_XD.shape[-1])
    return sum_ND.index_add(0, text_X, hidden_XD * (weight_X / total_N[text_X])[:, None])
