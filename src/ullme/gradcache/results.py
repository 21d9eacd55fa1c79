"""What a step measured, and whether all that it computed is a finite number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ullme.gradcache.chunks import Chunk, exists
from ullme.types import ObjectiveInputs


@dataclass(frozen=True)
class StepResult:
    """What a step measured: global means (scalars, unweighted but for ``total``) and this rank's losses per query.

    ``finite`` tells whether the total, and all from which every rank's losses were computed, is neither NaN nor
    infinite: a loss that looks away from such a number, as one without negatives does, has a NaN for its gradient.
    ``finite_B`` tells the same of this rank's queries. ``inputs`` is what evaluation computed of them.
    """

    total: Tensor
    losses: dict[str, Tensor]
    loss_B: dict[str, Tensor]
    finite: Tensor
    finite_B: Tensor
    chunks: int
    inputs: ObjectiveInputs | None = None

    def rows_not_finite(self, row_ids: Sequence[str]) -> list[str]:
        """The ids of this rank's queries that made the loss NaN or infinite.

        One broken embedding breaks every coupled loss of the batch, so rows whose own numbers are broken are named
        alone.
        """
        bad_B = ~self.finite_B
        if self.finite_B.all():
            bad_B = ~torch.stack([torch.isfinite(loss_B) for loss_B in self.loss_B.values()]).all(0)
        return [row_id for row_id, bad in zip(row_ids, bad_B.tolist(), strict=True) if bad]


def finite_rows(inputs: ObjectiveInputs, chunk: Chunk) -> Tensor:
    """Whether all that was computed of each query of a chunk is finite; none of an idle one."""
    finite_B = torch.ones_like(exists(chunk.batch))
    for value in computed(inputs).values():
        if value.is_floating_point():
            finite_B &= torch.isfinite(value.detach()).flatten(1).all(1) if value.dim() > 1 else torch.isfinite(value)
    return (finite_B | ~exists(chunk.batch))[: 0 if chunk.idle else None]


def computed(inputs: ObjectiveInputs) -> dict[str, Tensor]:
    """What inputs hold of each query, beyond what every batch states."""
    optional = [f.name for f in fields(inputs) if f.default is None and f.name != "totals_S"]
    values = {name: getattr(inputs, name) for name in optional}
    return {name: value for name, value in values.items() if value is not None}
