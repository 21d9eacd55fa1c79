"""Tensors on disk: read whole or not at all, compared by name and shape, and told apart by their values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

#: How many tensors of a model, and values of each, its signature holds.
SIGNATURE_TENSORS, SIGNATURE_VALUES = 24, 16

#: Rounding a float32 weight to bfloat16 moves it by at most 2^-9 of itself; another model moves most of them further.
SIGNATURE_RTOL, SIGNATURE_OUTLIERS = 2**-8, 0.05


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; ValueError if it is missing or damaged."""
    if not path.is_file():
        raise ValueError(f"{str(path)!r} does not exist; the folder is incomplete, use another checkpoint")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r} is truncated or damaged ({error}); use another checkpoint") from error


def require_same_tensors(origin: str, saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Pass if both hold the same names and shapes; else ValueError naming the first tensor that differs."""
    missing, extra = sorted(expected.keys() - saved.keys()), sorted(saved.keys() - expected.keys())
    if missing:
        raise ValueError(
            f"{origin}: {len(missing)} tensors are missing, first {missing[0]!r}; use a complete checkpoint"
        )
    if extra:
        raise ValueError(
            f"{origin}: {len(extra)} tensors do not belong to this model, first {extra[0]!r}; load it on its own base"
        )
    for name, tensor in expected.items():
        if saved[name].shape != tensor.shape:
            raise ValueError(
                f"{origin}: tensor {name!r} has shape {tuple(saved[name].shape)}, this model needs "
                f"{tuple(tensor.shape)}; load it on its own base"
            )


def signature(model: nn.Module) -> dict[str, list[float]]:
    """A few values of a few tensors: enough to tell this base from another, in any floating dtype.

    Adapter weights and quantised weights are left out.
    """
    named = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters()
        if "lora_" not in name and parameter.is_floating_point() and parameter.numel() >= SIGNATURE_VALUES
    }
    names = sorted(named)
    chosen = names[:: max(1, len(names) // SIGNATURE_TENSORS)]
    return {name: _sample(named[name]) for name in chosen}


def same_signature(a: Mapping[str, list[float]], b: Mapping[str, list[float]], merged: int = 0) -> bool:
    """Whether two signatures come from the same weights, up to rounding to a narrower dtype.

    Each of so many ``merged`` adapters was added to rounded weights, and the sum rounded again.
    """
    if a.keys() != b.keys():
        return False
    left = torch.tensor([a[k] for k in sorted(a)], dtype=torch.float64)
    right = torch.tensor([b[k] for k in sorted(a)], dtype=torch.float64)
    outliers = ~torch.isclose(left, right, rtol=(1 + 2 * merged) * SIGNATURE_RTOL, atol=1e-7)
    return outliers.double().mean().item() <= SIGNATURE_OUTLIERS


def weights_digest(model: nn.Module) -> str:
    """A hash of every parameter and buffer: equal for equal weights, on any device."""
    return tensors_digest(model.state_dict())


def tensors_digest(named: Mapping[str, Any]) -> str:
    """A hash of the tensors among these values and of their names, whatever their order.

    Of all bytes in their order: ``torch.hash_tensor`` combines elements by XOR, so that it takes a constant tensor for
    any other constant one, and a permuted tensor for the original.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(named.items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sample(tensor: Tensor) -> list[float]:
    flat = tensor.detach().reshape(-1)
    # In whole numbers: float32, as ``linspace`` computes, rounds an index beyond 2^24 past the end.
    at = torch.arange(SIGNATURE_VALUES, device=flat.device) * (flat.shape[0] - 1) // (SIGNATURE_VALUES - 1)
    return flat[at].double().tolist()
