"""Token budgets: which texts share a forward pass."""

from __future__ import annotations

from collections.abc import Sequence


def length_sorted_batches(
    lengths: Sequence[int], max_tokens: int, max_rows: int | None = None, max_padding: int | None = None
) -> list[list[int]]:
    """Positions of texts grouped so that padding is small and no batch exceeds the budget, longest texts first.

    A batch of n texts costs n times its longest text, in tokens; a text longer than ``max_tokens`` gets a batch of its
    own. ``max_padding`` bounds the tokens among these that are padding: where batches are small or lengths unequal,
    more batches may cost less. Longest first, so that a run that will not fit in memory fails at its start.
    """
    batches: list[list[int]] = []
    padding = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches:
            last = batches[-1]
            longest, rows = lengths[last[0]], len(last) + 1
            padding += longest - lengths[i]
            fits = rows * longest <= max_tokens and (max_rows is None or rows <= max_rows)
            if fits and (max_padding is None or padding <= max_padding):
                last.append(i)
                continue
        batches.append([i])
        padding = 0
    return batches


def consecutive_chunks(costs: Sequence[int], max_cost: int) -> list[list[int]]:
    """Positions in their order, cut where the sum of costs would exceed ``max_cost``; a costlier one stands alone."""
    chunks: list[list[int]] = []
    total = 0
    for i, cost in enumerate(costs):
        if not chunks or total + cost > max_cost:
            chunks.append([])
            total = 0
        chunks[-1].append(i)
        total += cost
    return chunks
