"""A model of three tables that meets every need of every objective, for tests of the step and of the objectives."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ullme.types import IGNORED, Batch, ObjectiveInputs, Texts


class Bag(nn.Module):
    """Embeds a text as the mean of its token vectors, scores it by the sum of its token values; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vectors = nn.Embedding(384, 8, dtype=torch.float64)
        self.values = nn.Embedding(384, 1, dtype=torch.float64)
        # a little better than the model on most texts, so that KTO's divergence is not cut off at zero
        self.register_buffer("reference", self.values.weight.detach() * (1.0 + 0.2 * torch.rand(384, 1).double()))
        self.calls: list[tuple[int, bool]] = []

    def forward(self, batch: Batch) -> ObjectiveInputs:
        self.calls.append((len(batch), torch.is_grad_enabled()))
        shape_BP = batch.passage_mask_BP.shape
        found = {
            "query_BD": self.embed(batch.query),
            "passage_BPD": self.embed(batch.passage).unflatten(0, shape_BP),
            **self.likelihoods(batch.generation, shape_BP),
        }
        if batch.mismatched is not None:
            width = len(batch.mismatched) // len(batch)
            found |= self.likelihoods(batch.mismatched, (len(batch), width), "mismatched_")
        if batch.masked is not None:
            hidden = [target_T[target_T != IGNORED] for target_T in self.targets(batch)]
            found["masked_logp_B"] = self.summed(self.values.weight, hidden)
            found["masked_tokens_B"] = torch.tensor([len(target) for target in hidden])
        return ObjectiveInputs.of(batch, **found)

    def likelihoods(self, texts: Texts, shape_BP: tuple[int, ...], prefix: str = "") -> dict[str, Tensor]:
        parts = [ids[skip:] for ids, skip in zip(self.split(texts), texts.skip_N.tolist(), strict=True)]
        found = {
            "logp_BP": self.summed(self.values.weight, parts),
            "ref_logp_BP": self.summed(self.reference, parts),
            "tokens_BP": texts.lengths_N - texts.skip_N,
        }
        return {prefix + name: value_N.unflatten(0, shape_BP) for name, value_N in found.items()}

    def summed(self, values: Tensor, parts: list[Tensor]) -> Tensor:
        return torch.stack([-values[ids].abs().sum() for ids in parts])

    def targets(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch.masked.target_X.split(batch.masked.texts.lengths_N.tolist())

    def split(self, texts: Texts) -> tuple[Tensor, ...]:
        return texts.ids_X.split(texts.lengths_N.tolist())

    def embed(self, texts: Texts) -> Tensor:
        return torch.stack([self.vectors(ids).sum(0) / max(len(ids), 1) for ids in self.split(texts)])
