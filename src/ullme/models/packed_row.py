"""How texts stand in one row of tokens: end to end, what several begin with stated once where attention is causal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ullme.types import Texts

#: Where the tokens stand that a segment sees before its own, as start and length; (0, 0) for none.
Prefix = tuple[int, int]


@dataclass(frozen=True)
class PackedRow:
    """Segments of tokens end to end: texts, beginnings, and what follows them.

    Attributes:
        ids_X: token ids.
        place_X: each token's place in its text, from 0.
        lengths: tokens of each segment.
        prefixes: what each segment sees before its own tokens; None where none does.
        source_X: for every token of the texts, in their order, where it stands in the row; None where it is the order.
    """

    ids_X: Tensor
    place_X: Tensor
    lengths: tuple[int, ...]
    prefixes: tuple[Prefix, ...] | None = None
    source_X: Tensor | None = None

    @classmethod
    def of(cls, texts: Texts) -> PackedRow:
        """Every text whole."""
        return cls(texts.ids_X, texts.place_X, tuple(texts.lengths_N.tolist()))

    @classmethod
    def sharing(cls, texts: Texts) -> PackedRow:
        """Texts whose context (``skip_N``) is the same have it once; only causal attention may see them so."""
        groups = _by_context(texts)
        if all(len(group) == 1 for group in groups):
            return cls.of(texts)
        start_N = (texts.lengths_N.cumsum(0) - texts.lengths_N).tolist()
        length_N, skip_N = texts.lengths_N.tolist(), texts.skip_N.tolist()
        source = torch.empty_like(texts.ids_X)
        taken, lengths, prefixes, end = [], [], [], 0

        def put(start: int, stop: int, prefix: Prefix) -> None:
            nonlocal end
            source[start:stop] = torch.arange(end, end + stop - start)
            taken.append(torch.arange(start, stop))
            lengths.append(stop - start)
            prefixes.append(prefix)
            end += stop - start

        for first, *others in groups:
            if not others:
                put(start_N[first], start_N[first] + length_N[first], (0, 0))
                continue
            prefix = (end, skip_N[first])
            put(start_N[first], start_N[first] + skip_N[first], (0, 0))
            for i in (first, *others):
                source[start_N[i] : start_N[i] + skip_N[i]] = torch.arange(prefix[0], prefix[0] + prefix[1])
                put(start_N[i] + skip_N[i], start_N[i] + length_N[i], prefix)
        at_X = torch.cat(taken)
        return cls(texts.ids_X[at_X], texts.place_X[at_X], tuple(lengths), tuple(prefixes), source)


def _by_context(texts: Texts) -> list[list[int]]:
    """Positions of texts by context, in the order in which they first come; a text that is all context stands alone."""
    groups: dict[tuple[int, ...], list[int]] = {}
    ids = texts.ids_X.split(texts.lengths_N.tolist())
    for i, (text, skip) in enumerate(zip(ids, texts.skip_N.tolist(), strict=True)):
        shared = 0 < skip < len(text)
        groups.setdefault(tuple(text[:skip].tolist()) if shared else (-1, i), []).append(i)
    return list(groups.values())
