"""Token budgets: which texts share a forward pass."""

from __future__ import annotations

from collections.abc import Sequence


def length_sorted_batches(lengths: Sequence[int], max_tokens: int, max_rows: int | None = None) -> list[list[int]]:
    """Positions of texts grouped so that padding is small and no batch exceeds the budget, longest texts first.

    A batch of n texts costs n times its longest text, in tokens; a text longer than ``max_tokens`` gets a batch of its
    own. Longest first, so that a run that will not fit in memory fails at its start.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches:
            last = batches[-1]
            fits = (len(last) + 1) * lengths[last[0]] <= max_tokens
            if fits and (max_rows is None or len(last) < max_rows):
                last.append(i)
                continue
        batches.append([i])
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
