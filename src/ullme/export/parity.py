"""The gate of every export: opened afresh, it has the same token ids, attention and embeddings as the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from ullme.export.refusals import first_line, merged_prompt, not_reproduced
from ullme.models import ULLME

#: Largest difference of an exported embedding, relative to the largest value of the original, by dtype.
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}

#: A change of a token's state is one above this share of the largest change that a change of itself makes.
_SEEN = 1e-4

#: Tokens of the longest golden text: enough to fill most models' length, and to be cut there.
_LONGEST = 600

#: Lengths differ, so that one batch is padded; each text is also embedded alone. Spaces, lines, other scripts and text
#: that looks like markup are where tokenizers differ.
GOLDEN = (
    "An exported model must embed this sentence as the original does.",
    "a short one.",
    "  two spaces before,\n\na blank line, a tab\tand  two spaces within ",
    "Größe, naïve café, 猫坐在垫子上, привет, 🙂👍🏽",
    "<|user|> [INST] <b>not</b> {{a}} template [/INST]",
    "One more sentence, considerably longer than the others: it has a subordinate clause, numbers (1, 2, 3), quotes "
    '("so"), and enough words that every shorter text in its batch has to be padded, or cut where it is too long.',
)


@dataclass(frozen=True)
class Comparison:
    """One case of the gate: what was embedded, and by how much the two differ, relative to the largest value."""

    case: str
    difference: float


def golden_texts(model: ULLME) -> list[str]:
    """The texts of the gate; the last one fills the model's length, up to 600 tokens, and is cut there."""
    words = f"{GOLDEN[-1]} " * (1 + _LONGEST // 20)
    ids = model.tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"][:_LONGEST]
    return [*GOLDEN, model.tokenizer.decode(ids, skip_special_tokens=True)]


def after_prompt(texts: list[str]) -> list[str]:
    """Those that start with a word: the line break that ends a prompt may merge with white space, but with no word."""
    return [text for text in texts if text[:1].strip()]


def require_same(model: ULLME, folder: Path, prompts: Mapping[str, str], normalize: bool) -> list[Comparison]:
    """Load the directory as a user does, and compare it with the model.

    Each golden text alone (nothing is padded), all in one padded batch, and all behind each prompt.

    Returns:
        what was compared, and by how much it differed.

    Raises:
        ValueError: token ids, attention or embeddings differ, or sentence-transformers cannot run the model.
    """
    texts = golden_texts(model)
    exported = _opened(model, folder)
    _require_same_ids(model, exported, texts, "", "")
    for name, prompt in prompts.items():
        _require_same_ids(model, exported, after_prompt(texts), prompt, name)
    _require_attention(model, exported)

    def theirs(some: list[str], prompt: str) -> np.ndarray:
        return exported.encode(some, prompt=prompt or None, show_progress_bar=False)

    return compared(model, theirs, prompts, normalize, not_reproduced)


def compared(
    model: ULLME,
    theirs: Callable[[list[str], str], np.ndarray],
    prompts: Mapping[str, str],
    normalize: bool,
    complaint: Callable[[ULLME, str], ValueError],
    tolerance: float | None = None,
) -> list[Comparison]:
    """Compare embeddings of golden texts, alone, padded and behind each prompt; ``complaint`` says what differs."""
    texts = golden_texts(model)
    cases: list[tuple[str, str, list[list[str]]]] = [
        ("each text alone", "", [[text] for text in texts]),
        ("all texts in one padded batch", "", [texts]),
        *((f"prompt {name!r}", prompt, [after_prompt(texts)]) for name, prompt in prompts.items() if prompt),
    ]
    found = []
    for case, prompt, batches in cases:
        embedded = [text for batch in batches for text in batch]
        ours = model.encode(embedded, prompt=prompt, normalize_embeddings=normalize)
        other = np.concatenate([np.asarray(theirs(batch, prompt), dtype=np.float32) for batch in batches])
        difference = largest_difference(ours, other)
        if not difference <= (TOLERANCES[model.dtype] if tolerance is None else tolerance):
            raise complaint(model, f"{case} differs by {difference:.1e}")
        found.append(Comparison(case, difference))
    return found


def largest_difference(ours: Any, theirs: np.ndarray) -> float:
    """The largest difference of two arrays, relative to the largest value of the first."""
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def _opened(model: ULLME, folder: Path) -> SentenceTransformer:
    try:
        exported = SentenceTransformer(str(folder), device=str(model.device), local_files_only=True)
        exported.encode([GOLDEN[0]], show_progress_bar=False)
    except Exception as error:
        # Whatever a model class raises that sentence-transformers calls otherwise than we do.
        raise not_reproduced(model, first_line(error)) from error
    return exported


def _require_same_ids(model: ULLME, exported: SentenceTransformer, texts: list[str], prompt: str, name: str) -> None:
    """Pass if every text has the same token ids, and the same of them are left out of the pool."""
    ours = model.text_tokenizer.texts(texts, prompt)
    features = exported.preprocess(texts, prompt=prompt or None)
    left_out = int(features.get("prompt_length") or 0)
    ids = [list(map(int, i[m.bool()])) for i, m in zip(features["input_ids"], features["attention_mask"], strict=True)]
    own_ids = [own.tolist() for own in ours.ids_X.split(ours.lengths_N.tolist())]
    for text, own, other, skip in zip(texts, own_ids, ids, ours.skip_N.tolist(), strict=True):
        if own != other:
            raise not_reproduced(model, f"{text[:40]!r} has the token ids {other[:8]}... there, and {own[:8]}... here")
        if prompt and skip != left_out and model.pooling != "lasttoken":  # which is the text's own in any case
            raise merged_prompt(prompt, name)


@torch.no_grad()
def _require_attention(model: ULLME, exported: SentenceTransformer) -> None:
    """Pass if a token sees the next one exactly where the model's does, without padding and with it."""
    ids_1T = model.tokenizer(GOLDEN[0], return_tensors="pt")["input_ids"][:, :12].to(model.device)
    changed_1T = ids_1T.clone()
    changed_1T[:, -1] = ids_1T[0, ids_1T[0] != ids_1T[0, -1]][0]
    for padding, where in ((0, "without padding"), (3, "with padding")):
        before_TD, after_TD = (_states(exported, ids, padding) for ids in (ids_1T, changed_1T))
        change_T = (before_TD - after_TD).abs().amax(-1)[: ids_1T.shape[1]]
        sees = bool(change_T[-2] > _SEEN * change_T[-1])
        if sees != (model.attention == "bidirectional"):
            raise not_reproduced(model, f"a token {'sees' if sees else 'does not see'} the next one there, {where}")


def _states(exported: SentenceTransformer, ids_1T: torch.Tensor, padding: int) -> torch.Tensor:
    """Token states (T, D) in float32, with padding on the right."""
    mask_1T = torch.nn.functional.pad(torch.ones_like(ids_1T), (0, padding))
    module: Any = exported[0]
    features = {"input_ids": torch.nn.functional.pad(ids_1T, (0, padding)), "attention_mask": mask_1T}
    return module(features)["token_embeddings"][0].float()
