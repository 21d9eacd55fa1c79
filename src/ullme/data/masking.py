"""Which tokens of a text are hidden, and behind what, for masked next-token prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from ullme.types import IGNORED, MaskedTexts, Texts

Replacement = Literal["all", "bert"]

#: What LLM2Vec (BehnamGhader et al. 2024) puts over a hidden token: LLMs have no mask token of their own.
MASK_TOKEN = "_"

#: Of the hidden tokens, the share behind the mask token and the share behind a random one; the rest are left visible.
_SHARES: dict[Replacement, tuple[float, float]] = {"all": (1.0, 0.0), "bert": (0.8, 0.1)}


@dataclass(frozen=True)
class TokenMasking:
    """Hides tokens of texts at random, each by itself; the hidden ones are to be predicted from the token before.

    Never hidden are special tokens, a text's leading context and its first token, before which nothing stands. At
    least one token is hidden in every text that has another. LLM2Vec's run files hide 20% as ``bert`` for Llama and
    80% as ``all`` for Mistral.

    Attributes:
        probability: of a token to be hidden.
        token_id: the mask token.
        replacement: ``all`` puts the mask token over every hidden token; ``bert`` over 80% of them, a random ordinary
            token over 10%, and leaves 10% as they are (Devlin et al. 2019, section 3.1).
        vocabulary: ids that there are, from 0.
        special_ids: ids that are never hidden nor drawn.
    """

    probability: float
    token_id: int
    replacement: Replacement
    vocabulary: int
    special_ids: frozenset[int]

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ValueError(f"mask_probability: {self.probability} is no share of tokens; give one above 0, at most 1")
        if self.replacement not in _SHARES:
            raise ValueError(f"replacement: {self.replacement!r} is unknown; choose from {', '.join(_SHARES)}")
        assert any(i not in self.special_ids for i in range(self.vocabulary)), "every token is special"

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: Any,
        probability: float = 0.2,
        mask_token: str | None = MASK_TOKEN,
        replacement: Replacement = "bert",
    ) -> TokenMasking:
        """Masking with a Hugging Face tokenizer's ids.

        ``mask_token`` is an entry of the vocabulary, or a text that is one token; None takes the tokenizer's own.

        Raises:
            ValueError: there is no such mask token, or a value is out of range.
        """
        chosen = tokenizer.mask_token if mask_token is None else mask_token
        if chosen is None:
            raise ValueError(f"mask_token: None, and this tokenizer has none of its own; give one, say {MASK_TOKEN!r}")
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        return cls(
            probability=probability,
            token_id=_single_id(tokenizer, chosen),
            replacement=replacement,
            vocabulary=len(tokenizer),
            special_ids=frozenset(tokenizer.all_special_ids) | added,
        )

    def hide(self, texts: Texts, seeds: Sequence[int]) -> MaskedTexts:
        """The texts with tokens hidden; what is hidden in a text depends on nothing but it and its seed."""
        parts = texts.ids_X.split(texts.lengths_N.tolist())
        pairs = [
            self._hidden(part.numpy(), skip, np.random.default_rng(seed))
            for part, skip, seed in zip(parts, texts.skip_N.tolist(), seeds, strict=True)
        ]
        none = np.empty(0, dtype=np.int64)
        shown_X = np.concatenate([none, *(shown_T for shown_T, _ in pairs)])
        target_X = np.concatenate([none, *(target_T for _, target_T in pairs)])
        return MaskedTexts(replace(texts, ids_X=torch.from_numpy(shown_X)), torch.from_numpy(target_X))

    def _hidden(self, ids_T: np.ndarray, skip: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One text's ids with some hidden, and the ids to be predicted; both (T,)."""
        places = np.arange(len(ids_T))
        places = places[(places >= max(skip, 1)) & ~np.isin(ids_T, list(self.special_ids))]
        chosen = places[rng.random(len(places)) < self.probability]
        if not len(chosen) and len(places):
            chosen = rng.choice(places, 1)
        masked, random = _SHARES[self.replacement]
        fate = rng.random(len(chosen))
        swapped = chosen[(masked <= fate) & (fate < masked + random)]
        shown_T, target_T = ids_T.copy(), np.full_like(ids_T, IGNORED)
        shown_T[chosen[fate < masked]] = self.token_id
        shown_T[swapped] = self._ordinary(rng, len(swapped))
        target_T[chosen] = ids_T[chosen]
        return shown_T, target_T

    def _ordinary(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Ids of random tokens, none of them special."""
        special = np.array(sorted(i for i in self.special_ids if i < self.vocabulary), dtype=np.int64)
        rank = rng.integers(self.vocabulary - len(special), size=count)
        # the ordinary token of rank r comes after every special one that has at most r ordinary ones before it
        return rank + np.searchsorted(special - np.arange(len(special)), rank, side="right")


def _single_id(tokenizer: Any, mask_token: str) -> int:
    """The id of the mask token."""
    entry = tokenizer.convert_tokens_to_ids(mask_token)
    if entry is not None and tokenizer.convert_ids_to_tokens(entry) == mask_token:
        return int(entry)
    ids = tokenizer(mask_token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        found = f"is {len(ids)} tokens" if len(ids) != 1 else "is not in the vocabulary"
        raise ValueError(f"mask_token: {mask_token!r} {found}; give a text that is one token of this tokenizer")
    return int(ids[0])
