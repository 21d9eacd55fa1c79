"""Likelihoods under the reference model, found again by the tokens of their texts, and the folder that keeps them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ullme.data.rows import shortened
from ullme.files import written
from ullme.types import Batch, Texts

FORMAT = 1
MANIFEST_FILE = "manifest.json"
_SHOWN_ROWS = 5


@dataclass(frozen=True)
class ReferenceTable:
    """Log-likelihoods of texts under the reference model; ``compute_reference`` makes one.

    Attributes:
        key_N: the texts' keys (:func:`token_keys`), int64, in ascending order.
        logp_N: the log-likelihood of what is not context in each, as ``ULLME.score_texts`` gives it.
        origin: where the table is kept, for messages.
    """

    key_N: np.ndarray
    logp_N: Tensor
    origin: str

    @classmethod
    def joined(cls, parts: Sequence[tuple[np.ndarray, Tensor]], origin: str) -> ReferenceTable:
        """One table of several lists of keys and likelihoods; a text that comes twice is kept once."""
        key_N, first_N = np.unique(np.concatenate([keys for keys, _ in parts]), return_index=True)
        return cls(key_N, torch.cat([logp for _, logp in parts])[torch.from_numpy(first_N)], origin)

    def __len__(self) -> int:
        return len(self.key_N)

    def logp(self, texts: Texts) -> Tensor:
        """The likelihoods (N,) of generation texts; 0 for an absent one, NaN for one that is not in the table."""
        wanted_N = token_keys(texts)
        at_N = np.searchsorted(self.key_N, wanted_N).clip(max=len(self) - 1)
        known_N = torch.from_numpy(self.key_N[at_N] == wanted_N)
        logp_N = torch.where(known_N, self.logp_N[torch.from_numpy(at_N)], torch.nan)
        return logp_N.masked_fill(texts.lengths_N.cpu() == 0, 0.0)

    def filled(self, batch: Batch) -> Batch:
        """The batch with ``ref_logp_BP``.

        Raises:
            ValueError: texts of the batch are not in the table; the message names their rows.
        """
        assert batch.generation is not None, "likelihoods are looked up by generation texts"
        ref_logp_BP = self.logp(batch.generation).view(batch.passage_mask_BP.shape)
        missing_B = ref_logp_BP.isnan().any(1).tolist()
        rows = [row for row, missing in zip(batch.row_ids, missing_B, strict=True) if missing]
        if rows:
            more = f" and {len(rows) - _SHOWN_ROWS} more" if len(rows) > _SHOWN_ROWS else ""
            raise ValueError(
                f"reference: rows {', '.join(rows[:_SHOWN_ROWS])}{more} have texts that {self.origin!r} does not know; "
                "call compute_reference with all pairs, the tokenizer and the settings of this run"
            )
        return replace(batch, ref_logp_BP=ref_logp_BP.to(batch.passage_mask_BP.device))


def token_keys(texts: Texts) -> np.ndarray:
    """A number (N,), int64, for each text that those of equal tokens and equal context share, on every machine.

    64 bits of BLAKE2: among ten million texts, two that differ share one with a probability below 1e-5.
    """
    ids_X = texts.ids_X.cpu().numpy().astype("<i8")
    lengths, skip = texts.lengths_N.tolist(), texts.skip_N.tolist()
    ends = np.cumsum([0, *lengths])
    digests = [
        hashlib.blake2b(ids_X[start : start + n].tobytes() + s.to_bytes(8, "little"), digest_size=8).digest()
        for start, n, s in zip(ends, lengths, skip, strict=False)
    ]
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)


@dataclass(frozen=True)
class ReferenceFolder:
    """A table on disk: ``manifest.json``, and shards of equally many texts that appear whole or not at all.

    Attributes:
        path: the folder.
        fingerprint: what decides the likelihoods, part by part.
        texts: how many are scored.
        shard_texts: how many of them stand in a shard.
    """

    path: Path
    fingerprint: Mapping[str, str]
    texts: int
    shard_texts: int

    @classmethod
    def opened(cls, path: Path, fingerprint: Mapping[str, str], texts: int, shard_texts: int) -> ReferenceFolder:
        """The folder as it is kept, if it is there, else as it is to be; nothing is written.

        Raises:
            ValueError: the folder holds something else, is damaged, or was computed for other parts.
        """
        if path.is_file():
            raise ValueError(f"reference {str(path)!r}: is a file; name a folder")
        if not path.exists() or not any(path.iterdir()):
            return cls(path, fingerprint, texts, shard_texts)
        kept = _read_manifest(path)
        _require_same(path, kept["fingerprint"], fingerprint)
        if kept["texts"] != texts:
            raise ValueError(
                f"reference: {str(path / MANIFEST_FILE)!r} is damaged ({kept['texts']} texts, but its data has "
                f"{texts}); delete the folder to compute it again"
            )
        return cls(path, fingerprint, texts, kept["shard_texts"])

    @property
    def shards(self) -> list[range]:
        """The texts of each shard."""
        starts = range(0, self.texts, self.shard_texts)
        return [range(start, min(start + self.shard_texts, self.texts)) for start in starts]

    def create(self) -> None:
        """Make the folder and its manifest, where they are not yet."""
        self.path.mkdir(parents=True, exist_ok=True)
        place = self.path / MANIFEST_FILE
        if not place.exists():
            content = {
                "format": FORMAT,
                "fingerprint": dict(self.fingerprint),
                "texts": self.texts,
                "shard_texts": self.shard_texts,
            }
            written(place, json.dumps(content, indent=2) + "\n")

    def has(self, shard: int) -> bool:
        """Whether this shard is there."""
        return self._shard(shard).is_file()

    def write(self, shard: int, key_N: np.ndarray, logp_N: Tensor) -> None:
        """Put a shard into its place."""
        tensors = {"key": torch.from_numpy(key_N), "logp": logp_N.cpu().contiguous()}
        place = self._shard(shard)
        unfinished = place.with_name(f".unfinished-{place.name}")
        save_file(tensors, unfinished, metadata={"digest": self._digest(tensors)})
        os.replace(unfinished, place)

    def read(self, shard: int) -> tuple[np.ndarray, Tensor]:
        """The keys and likelihoods of a shard.

        Raises:
            ValueError: it is missing, damaged, or belongs to another table.
        """
        place = self._shard(shard)
        if not place.is_file():
            raise ValueError(f"reference: {str(place)!r} is missing; run again on a disk that all processes share")
        try:
            with safe_open(place, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in ("key", "logp")}
                stated = (file.metadata() or {}).get("digest")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"reference: {str(place)!r} is damaged ({error}); {_AGAIN}") from error
        if stated != self._digest(tensors) or len(tensors["key"]) != len(self.shards[shard]):
            raise ValueError(f"reference: {str(place)!r} is damaged or belongs to another folder; {_AGAIN}")
        return tensors["key"].numpy(), tensors["logp"]

    def table(self) -> ReferenceTable:
        """All of it; ValueError as for ``read``."""
        return ReferenceTable.joined([self.read(shard) for shard in range(len(self.shards))], str(self.path))

    def _shard(self, shard: int) -> Path:
        return self.path / f"{shard:05d}.safetensors"

    def _digest(self, tensors: Mapping[str, Tensor]) -> str:
        """A hash of a shard's values and of the fingerprint that it was computed under."""
        digest = hashlib.sha256(json.dumps(dict(self.fingerprint), sort_keys=True).encode())
        for name in sorted(tensors):
            digest.update(tensors[name].numpy().tobytes())
        return digest.hexdigest()


_AGAIN = "delete this file, and it is computed again"


def _read_manifest(folder: Path) -> dict[str, Any]:
    place = folder / MANIFEST_FILE
    if not place.is_file():
        raise ValueError(f"reference {str(folder)!r}: is not empty and holds no {MANIFEST_FILE}; name another folder")
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        sound = content["format"] == FORMAT and isinstance(content["fingerprint"], dict)
        sound = sound and range(content["texts"]) and range(content["shard_texts"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"reference: {str(place)!r} is damaged or no manifest ({error}); delete the folder to compute it again"
        ) from error
    if not sound:
        raise ValueError(
            f"reference: {str(place)!r} is not of format {FORMAT}; update ullme, or delete the folder to compute it "
            "again"
        )
    return content


#: What to do, besides computing again, where a part differs; a part without a row is to be set back.
_CURES = {"weights": "take the model it was computed with, untrained", "data": "give the pairs it was computed for"}


def _require_same(folder: Path, kept: Mapping[str, Any], now: Mapping[str, str]) -> None:
    for part in [*now, *(name for name in kept if name not in now)]:
        before, wanted = kept.get(part), now.get(part)
        if before != wanted:
            cure = _CURES.get(part.split(" ")[0], f"set {part} back")
            raise ValueError(
                f"reference {str(folder)!r}: was computed with {part} {_short(before)}, and this run has "
                f"{_short(wanted)}; {cure}, or delete the folder to compute it again"
            )


def _short(value: Any) -> str:
    """A part of a fingerprint as a message shows it: of a digest the start."""
    if value is None:
        return "none"
    is_digest = isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2 and value.isalnum()
    return value[:12] if is_digest else shortened(value)
