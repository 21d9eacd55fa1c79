"""What an encoding job is: its source, its options, and what decides every byte of its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ullme.data.wording import hint
from ullme.encode.precision import CALIBRATED, PRECISIONS
from ullme.encode.source import TextSource
from ullme.encode.survey import Survey

#: Of the layout below; a folder of another one is refused.
FORMAT = 1
STORAGES = ("npy", "parquet")


@dataclass(frozen=True)
class EncodeOptions:
    """What is stored of each text.

    Attributes:
        prompt: text before every text, left out of the pool; None takes the model's prompt named ``document`` (or
            ``query``, for the queries of a BEIR folder) where it has one.
        normalize: scale every embedding to length 1, after truncation.
        truncate_dim: keep the first dimensions only (Matryoshka embeddings, Kusupati et al. 2022).
        precision: one of ``PRECISIONS``; int8 and uint8 are calibrated on texts of the source.
        calibration_rows: how many texts.
        storage: ``npy`` (memory-mapped arrays, ids and texts in Parquet beside them) or ``parquet`` (all in one file).
        shard_rows: rows of a shard, at most; what a killed run computes again, and what memory grows with.
        keep_text: store the texts beside the ids, so that a search can show them.
    """

    prompt: str | None = None
    normalize: bool = False
    truncate_dim: int | None = None
    precision: str = "float32"
    calibration_rows: int = 1000
    storage: str = "npy"
    shard_rows: int = 16_384
    keep_text: bool = True

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the field and the cure."""
        for name, value, choices in (("precision", self.precision, PRECISIONS), ("storage", self.storage, STORAGES)):
            if value not in choices:
                raise ValueError(
                    f"{name}: {value!r} is unknown; choose from {', '.join(choices)}{hint(value, choices)}"
                )
        for name, least in (
            ("truncate_dim", 1),
            ("shard_rows", 1),
            ("calibration_rows", 2 if self.precision in CALIBRATED else 0),
        ):
            given = getattr(self, name)
            if given is not None and given < least:
                raise ValueError(f"{name}: {given} is too small; give a whole number from {least}")

    @property
    def sample_rows(self) -> int:
        """Texts to calibrate on: none where nothing is calibrated."""
        return self.calibration_rows if self.precision in CALIBRATED else 0

    def for_source(self, found: Survey) -> EncodeOptions:
        """The options with as many calibration rows as there are.

        Raises:
            ValueError: too few rows to calibrate on.
        """
        if not self.sample_rows:
            return replace(self, calibration_rows=0)  # decides nothing, so it may not tell two jobs apart
        if found.rows < 2:
            raise ValueError(
                f"precision: {self.precision!r} needs at least 2 texts to take its ranges from, the source has "
                f"{found.rows}; give more, or use float16"
            )
        return replace(self, calibration_rows=min(self.calibration_rows, found.rows))


@dataclass(frozen=True)
class Job:
    """One corpus to encode, complete: plain values, so that it goes to other processes and into a file.

    Attributes:
        output: the folder.
        source: where the texts are.
        options: what is stored of each, the prompt resolved.
        rows: of the whole source.
        shard_digests: of each shard's rows, so that a source that changes meanwhile is noticed.
        model: ``name``, ``fingerprint`` and stated ``settings``.
        dimension: of an embedding, after truncation.
        source_digest: of all rows.
        version: of ullme, as the job began.
    """

    output: Path
    source: TextSource
    options: EncodeOptions
    rows: int
    shard_digests: tuple[str, ...]
    model: dict[str, Any]
    dimension: int
    source_digest: str
    version: str

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self.shard_digests)

    def rows_of(self, shard: int) -> int:
        """Rows of one shard; only the last may have fewer than the others."""
        return min(self.options.shard_rows, self.rows - shard * self.options.shard_rows)

    def identity(self) -> dict[str, Any]:
        """What decides the output. A folder of another identity is not continued."""
        return {
            "model fingerprint": self.model["fingerprint"],
            **early_identity(self.options, self.source_digest, self.rows),
            "prompt": self.options.prompt,
            "dimension": self.dimension,
        }

    def to_dict(self) -> dict[str, Any]:
        """The job as JSON values, without its folder."""
        content = asdict(self)
        del content["output"]
        content["source"]["path"] = str(self.source.path)
        return {"format": FORMAT, **content}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], output: Path) -> Job:
        """The job that ``to_dict`` described."""
        rest = {k: v for k, v in content.items() if k not in ("format", "source", "options", "shard_digests")}
        source = TextSource(**{**content["source"], "path": Path(content["source"]["path"])})
        return cls(
            output, source, EncodeOptions(**content["options"]), shard_digests=(*content["shard_digests"],), **rest
        )


def early_identity(options: EncodeOptions, source_digest: str, rows: int) -> dict[str, Any]:
    """The part of a job's identity that is known before the model is loaded."""
    known = asdict(options)
    del known["prompt"]  # may be the model's
    return {"source digest": source_digest, "source rows": rows, **known}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The keys of ``now`` under which two identities differ, with both values."""
    return ((key, before.get(key), value) for key, value in now.items() if before.get(key) != value)
