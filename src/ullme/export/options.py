"""How a model is exported, and what the export found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ullme.export.parity import Comparison
from ullme.export.serving import ServingNote

#: What ``--format`` takes. The sentence-transformers directory is always written; the others lie in it.
FORMATS = ("sentence-transformers", "onnx", "gguf")


@dataclass(frozen=True)
class Recipe:
    """What the model card says of a training.

    Attributes:
        data: a line per source of training pairs.
        settings: objectives and trainer, as YAML.
        scores: a markdown table of scores.
    """

    data: tuple[str, ...] = ()
    settings: str = ""
    scores: str = ""


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        prompts: prompt strings by name; None takes the model's.
        normalize: let the exported model give embeddings of length 1.
        keep_adapter: the adapter apart, in ``adapter/``, beside the original weights; else it is merged into them.
        formats: files beside the sentence-transformers ones: ``onnx``, ``gguf``.
        gguf_converter: llama.cpp's ``convert_hf_to_gguf.py``; None looks for it on the PATH.
        verify: compare before the directory is put in place; costs a second copy of the model in memory.
        recipe: what the model card says of data and training; None says that it is not known.

    Raises:
        ValueError: an unknown format, or one that cannot keep an adapter apart.
    """

    prompts: Mapping[str, str] | None = None
    normalize: bool = False
    keep_adapter: bool = False
    formats: tuple[str, ...] = ()
    gguf_converter: Path | None = None
    verify: bool = True
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        """Refuse formats that do not exist, and what excludes each other."""
        for name in self.formats:
            if name not in FORMATS:
                raise ValueError(f"format: {name!r} is unknown; choose from {', '.join(FORMATS)}")
        others = [name for name in self.formats if name != FORMATS[0]]
        if self.keep_adapter and others:
            raise ValueError(f"format: {others[0]!r} holds one set of weights; leave out keep_adapter, or the format")


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and what was proven of it.

    Attributes:
        path: the directory.
        compared: the cases of the gate, with the differences that were found; empty without ``verify``.
        notes: what each server needs of it.
        remarks: what was not compared, and why.
    """

    path: Path
    compared: list[Comparison]
    notes: list[ServingNote]
    remarks: list[str] = field(default_factory=list)
