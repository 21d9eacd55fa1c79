"""Which texts of a row attend side by side: short ones of like lengths in one product, padded to the longest of them.

Shapes, beside the legend of ``ullme.types``: ``H`` query heads, ``K`` key heads, ``G`` query heads per key head, ``C``
width of a head; of a group, ``N`` texts, ``R`` own tokens and ``M`` keys of the longest. What is laid out group after
group is flat: ``Q`` queries of all heads, (K, N, R, G) of each group, and ``S`` keys, (K, N, M) of each group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from ullme.models.packed_row import Prefix
from ullme.models.reach import Reach

#: Queries of a block of a longer text: its weights stay in a core's cache.
ROWS = 256

#: A text with more keys than these is computed alone.
SHORT = 128

#: Most products of queries and keys, per head, of a group.
CELLS = 2**17

#: Products of padding per product that is needed, of each text, and how many are free: one more call costs more.
WASTE, FREE = 0.4, 256


@dataclass(frozen=True)
class Segment:
    """Tokens next to each other that see themselves, after a prefix that stands elsewhere.

    Attributes:
        start: where its own tokens stand.
        length: how many they are.
        prefix: where the prefix stands.
        before: tokens of the prefix; the first own token is at this place of its text.
    """

    start: int
    length: int
    prefix: int = 0
    before: int = 0

    @property
    def end(self) -> int:
        """Tokens of the text, prefix and own."""
        return self.before + self.length

    @property
    def keys_M(self) -> np.ndarray:
        """Where the tokens of the text stand."""
        own = np.arange(self.start, self.start + self.length)
        return np.concatenate([np.arange(self.prefix, self.prefix + self.before), own])


@dataclass(frozen=True)
class Group:
    """Segments that are computed side by side."""

    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        """Own tokens of the one that has most."""
        return max(segment.length for segment in self.segments)

    @property
    def keys(self) -> int:
        """Tokens of the longest text."""
        return max(segment.end for segment in self.segments)

    def with_one_more(self, segment: Segment) -> Group | None:
        """The group with this segment too; None where padding or size says no."""
        group = Group((*self.segments, segment))
        cells, needed = group.rows * group.keys, segment.length * segment.end
        small = self.keys <= SHORT and cells * len(group.segments) <= CELLS
        return group if small and cells - needed <= max(FREE, WASTE * needed) else None

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Where own tokens (N, R) and keys (N, M) stand; -1 where there is none."""
        rows_NR, keys_NM = (np.full((len(self.segments), n), -1) for n in (self.rows, self.keys))
        for i, segment in enumerate(self.segments):
            rows_NR[i, : segment.length] = np.arange(segment.start, segment.start + segment.length)
            keys_NM[i, : segment.end] = segment.keys_M
        return rows_NR, keys_NM

    def hidden(self, reach: Reach) -> np.ndarray | None:
        """True where a text's own token does not see a key, (N, R, M); None where all see all."""
        before_N, length_N, end_N = (
            np.array([getattr(s, name) for s in self.segments])[:, None] for name in ("before", "length", "end")
        )
        place_NR = before_N + np.minimum(np.arange(self.rows), length_N - 1)  # padding sees what the last token sees
        key_M = np.arange(self.keys)
        hidden_NRM = reach.hidden(key_M - place_NR[..., None]) | (key_M >= end_N)[:, None]
        return hidden_NRM if hidden_NRM.any() else None


@dataclass(frozen=True)
class Block:
    """Some queries of a group's texts and the keys that they see, among what is laid out.

    Attributes:
        group_Q: the group's queries.
        group_S: the group's keys.
        texts: texts of the group.
        rows: which of each text's queries, (R, G) flat; a slice.
        keys: which of each text's keys; a slice.
        hidden: True where a query does not see a key, (N, rows, keys), or (rows, keys) of a text alone; or None.
    """

    group_Q: slice
    group_S: slice
    texts: int
    rows: slice
    keys: slice
    hidden: Tensor | None

    @property
    def cells(self) -> int:
        """Products per key head."""
        return self.texts * (self.rows.stop - self.rows.start) * (self.keys.stop - self.keys.start)


@dataclass(frozen=True)
class Layout:
    """Where the queries and keys of all groups stand for a number of heads.

    Attributes:
        heads: H and K.
        query_Q: for every query laid out, its place in (X, H) flat; padding repeats a token's.
        key_S: for every key laid out, its place in (X, K) flat; padding repeats a token's.
        row_XH: for every token and head, the place of its query in what is laid out; flat.
        row_XK: for every token and key head, the place of its own key; flat.
        padding_Q: where queries are padding, (Q, 1); None where none is.
        shared: what is laid out of prefixes: where in ``S``, and in (X, K) flat; None where there is no prefix.
    """

    heads: tuple[int, int]
    query_Q: Tensor
    key_S: Tensor
    row_XH: Tensor
    row_XK: Tensor
    padding_Q: Tensor | None
    shared: tuple[Tensor, Tensor] | None


class TextGroups:
    """The groups of a row's segments, and their layouts and blocks, each made once for all layers.

    Args:
        lengths: tokens of each segment.
        prefixes: what each segment sees before its own tokens; None where none does.
    """

    def __init__(self, lengths: Sequence[int], prefixes: Sequence[Prefix] | None = None) -> None:
        before = prefixes or [(0, 0)] * len(lengths)
        parts = zip(accumulate(lengths), lengths, before, strict=True)
        self.segments = [Segment(end - length, length, *prefix) for end, length, prefix in parts]
        self._groups = list(_grouped(self.segments))
        self._layouts: dict[tuple, Layout] = {}
        self._blocks: dict[tuple, list[Block]] = {}

    def layout(self, heads: tuple[int, int], device: torch.device) -> Layout:
        """Where queries and keys stand for this many query and key heads."""
        if (heads, device) not in self._layouts:
            self._layouts[heads, device] = _layout(self._groups, heads, device)
        return self._layouts[heads, device]

    def blocks(self, heads: tuple[int, int], reach: Reach, device: torch.device) -> list[Block]:
        """What is computed at a time."""
        if (heads, reach, device) not in self._blocks:
            self._blocks[heads, reach, device] = list(_blocks(self._groups, heads, reach, device))
        return self._blocks[heads, reach, device]


def _grouped(segments: Sequence[Segment]) -> Iterator[Group]:
    group = None
    for segment in sorted(segments, key=lambda s: (-s.end, -s.length)):
        larger = None if group is None else group.with_one_more(segment)
        if larger is None and group is not None:
            yield group
        group = larger or Group((segment,))
    if group is not None:
        yield group


def _layout(groups: Sequence[Group], heads: tuple[int, int], device: torch.device) -> Layout:
    head_KG, key_head_K = np.arange(heads[0]).reshape(heads[1], 1, 1, -1), np.arange(heads[1])[:, None, None]
    queries, keys, own = [], [], []
    for group in groups:
        rows_NR, keys_NM = group.padded()
        before_N = np.array([s.before for s in group.segments])
        queries.append(np.where(rows_NR[..., None] < 0, -1, rows_NR[..., None] * heads[0] + head_KG).ravel())
        keys.append(np.where(keys_NM < 0, -1, keys_NM * heads[1] + key_head_K).ravel())
        own_NM = np.arange(group.keys) >= before_N[:, None]
        own.append(np.broadcast_to(own_NM, (heads[1], *own_NM.shape)).ravel())
    query_Q, key_S, own_S = np.concatenate(queries), np.concatenate(keys), np.concatenate(own)
    prefix_S = np.flatnonzero((key_S >= 0) & ~own_S)

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    padding_Q = query_Q < 0
    return Layout(
        heads=heads,
        query_Q=on_device(np.maximum(query_Q, 0)),
        key_S=on_device(np.maximum(key_S, 0)),
        row_XH=on_device(_places(query_Q, query_Q >= 0)),
        row_XK=on_device(_places(key_S, (key_S >= 0) & own_S)),
        padding_Q=on_device(padding_Q[:, None]) if padding_Q.any() else None,
        shared=(on_device(prefix_S), on_device(key_S[prefix_S])) if len(prefix_S) else None,
    )


def _places(laid: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Where each source is laid out, among the places that count."""
    at = np.flatnonzero(counts)
    places = np.empty(len(at), dtype=np.int64)
    places[laid[at]] = at
    return places


def _blocks(groups: Sequence[Group], heads: tuple[int, int], reach: Reach, device: torch.device) -> Iterator[Block]:
    share, queries, keys = heads[0] // heads[1], 0, 0
    band_RM = _band(max(group.keys for group in groups), share, reach, device)
    for group in groups:
        texts = len(group.segments)
        group_Q = slice(queries, queries := queries + heads[0] * texts * group.rows)
        group_S = slice(keys, keys := keys + heads[1] * texts * group.keys)
        if texts == 1:
            for rows, seen, hidden in _of_one(group.segments[0], share, reach, band_RM):
                yield Block(group_Q, group_S, 1, rows, seen, hidden)
            continue
        hidden_NRM = group.hidden(reach)
        hidden = None if hidden_NRM is None else torch.from_numpy(hidden_NRM.repeat(share, 1)).to(device)
        yield Block(group_Q, group_S, texts, slice(0, group.rows * share), slice(0, group.keys), hidden)


def _band(longest: int, share: int, reach: Reach, device: torch.device) -> Tensor:
    """Keys from ``longest`` before the first of some queries that these do not see, (R * G, 2 * longest)."""
    offset_RM = np.arange(2 * longest) - np.arange(min(ROWS, longest))[:, None] - longest
    return torch.from_numpy(reach.hidden(offset_RM).repeat(share, 0)).to(device)


def _of_one(
    segment: Segment, share: int, reach: Reach, band_RM: Tensor
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Queries of one text, ``ROWS`` tokens at a time, the keys that they see, and which of these they do not."""
    for first in range(segment.before, segment.end, ROWS):
        tokens = range(first, min(first + ROWS, segment.end))
        keys = reach.keys(tokens, segment.end)
        left = band_RM.shape[1] // 2 + keys.start - first
        hidden = band_RM[: len(tokens) * share, left : left + len(keys)] if reach.hides(tokens, keys) else None
        rows = slice((first - segment.before) * share, (tokens.stop - segment.before) * share)
        yield rows, slice(keys.start, keys.stop), hidden
