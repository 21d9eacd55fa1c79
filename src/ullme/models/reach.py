"""How far a token sees: all of its text, what comes before it, or a window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ullme.types import Attention


@dataclass(frozen=True)
class Reach:
    """How many keys before and after its own place a token sees; None is no limit."""

    before: int | None
    after: int | None

    @classmethod
    def of(cls, attention: Attention, window: int | None) -> Reach:
        """As Transformers counts a window: with the token itself under causal attention, to both sides without it."""
        if attention == "causal":
            return cls(None if window is None else window - 1, 0)
        return cls(window, window)

    def keys(self, rows: range, length: int) -> range:
        """The keys that some of these tokens see in a text of this length."""
        low = 0 if self.before is None else max(0, rows.start - self.before)
        high = length if self.after is None else min(length, rows.stop + self.after)
        return range(low, high)

    def hides(self, rows: range, keys: range) -> bool:
        """Whether some of these tokens does not see some of these keys."""
        past = self.before is not None and keys.start < rows.stop - 1 - self.before
        return past or (self.after is not None and keys.stop - 1 > rows.start + self.after)

    def hidden(self, offset: np.ndarray) -> np.ndarray:
        """True where a key at this offset from a token is not seen by it."""
        hidden = np.zeros_like(offset, dtype=bool)
        if self.before is not None:
            hidden |= offset < -self.before
        if self.after is not None:
            hidden |= offset > self.after
        return hidden
