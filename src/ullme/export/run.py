"""One export, from a model to a directory that appears whole and proven, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ullme.export.card import write_card
from ullme.export.directory import write_directory
from ullme.export.gguf import write_gguf
from ullme.export.onnx import write_onnx
from ullme.export.options import ExportOptions, ExportReport
from ullme.export.parity import Comparison, require_same
from ullme.export.refusals import require_exportable
from ullme.export.serving import serving_notes
from ullme.files import aside
from ullme.models import ULLME

#: Writes a file of another format into the directory and compares it with the model; returns what was found.
Writer = Callable[[ULLME, Path, Mapping[str, str], ExportOptions], tuple[list[Comparison], list[str]]]

_WRITERS: Mapping[str, Writer] = {"onnx": write_onnx, "gguf": write_gguf}


def export_model(model: ULLME, path: str | Path, options: ExportOptions | None = None) -> ExportReport:
    """Write a directory that ``SentenceTransformer(path)`` loads and that embeds as ``model.encode`` does.

    The model is not changed. The directory is opened afresh and compared with the model on golden texts (token ids,
    attention, embeddings alone, padded and behind each prompt), and appears only if all agree.

    Args:
        model: the embedder.
        path: a folder that does not exist, or is empty.
        options: how.

    Raises:
        ValueError: sentence-transformers cannot reproduce this model (the message says why), or the path is taken.
    """
    path, options = Path(path), options or ExportOptions()
    require_exportable(model, path, options.keep_adapter)
    prompts = dict(model.prompts if options.prompts is None else options.prompts)
    with aside(path) as unfinished:
        report = _write(model, unfinished, prompts, options)
        unfinished.chmod(0o755)
        unfinished.replace(path)
    return ExportReport(path, report.compared, report.notes, report.remarks)


def export_sentence_transformers(model: ULLME, path: str | Path, **options: Any) -> Path:
    """As :func:`export_model`, with the fields of :class:`ExportOptions` as keywords; returns the directory."""
    return export_model(model, path, ExportOptions(**options)).path


def _write(model: ULLME, folder: Path, prompts: Mapping[str, str], options: ExportOptions) -> ExportReport:
    write_directory(model, folder, prompts, normalize=options.normalize, keep_adapter=options.keep_adapter)
    compared = require_same(model, folder, prompts, options.normalize) if options.verify else []
    remarks: list[str] = [] if options.verify else ["anything, as asked for"]
    for name in dict.fromkeys(name for name in options.formats if name in _WRITERS):
        more, said = _WRITERS[name](model, folder, prompts, options)
        compared, remarks = [*compared, *more], [*remarks, *said]
    notes = serving_notes(folder)
    write_card(model, folder, prompts, ExportReport(folder, compared, notes, remarks), options)
    return ExportReport(folder, compared, notes, remarks)
