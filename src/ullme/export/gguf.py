"""A GGUF file by llama.cpp's own converter, its attention and pooling read back, compared where llama.cpp runs.

The converter is no package: llama.cpp's ``convert_hf_to_gguf.py``, from its repository or from the source archive of
llama-cpp-python. Since it heeds ``is_causal`` and modules.json, what it has to write is in the directory already.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ullme.export.options import ExportOptions
from ullme.export.parity import TOLERANCES, Comparison, compared
from ullme.models import ULLME

CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")

#: llama.cpp's numbers of our poolings.
POOLING_TYPES = {"mean": 1, "cls": 2, "lasttoken": 3}

#: Largest difference in float32, relative to the largest value: other kernels, and half-precision keys in some of them.
TOLERANCE = 2e-3


def write_gguf(
    model: ULLME, folder: Path, prompts: Mapping[str, str], options: ExportOptions
) -> tuple[list[Comparison], list[str]]:
    """Write ``model-f32.gguf`` into an exported directory, read its keys back, and compare it where llama.cpp is there.

    Raises:
        ValueError: no converter, one that cannot say what this model is, or llama.cpp gives other embeddings.
    """
    if model.pooling not in POOLING_TYPES:
        raise ValueError(f"format: GGUF has no pooling {model.pooling!r}; it has {', '.join(POOLING_TYPES)}")
    place = folder / "model-f32.gguf"
    _convert(_converter(options.gguf_converter), folder, place)
    _require_keys(place, model)
    remarks = ["GGUF: prompts were not compared, their tokens are pooled there"] if any(prompts.values()) else []
    if not options.verify:
        return [], remarks
    if importlib.util.find_spec("llama_cpp") is None:
        return [], [*remarks, "GGUF: keys were read back, embeddings not compared: llama-cpp-python is not installed"]
    found = compared(model, _runner(place, model), {}, True, _differs, max(TOLERANCE, TOLERANCES[model.dtype]))
    return [Comparison(f"llama.cpp, {c.case}", c.difference) for c in found], remarks


def _converter(given: Path | None) -> list[str]:
    found = given or next(filter(None, map(shutil.which, CONVERTERS)), None)
    if found is None or not Path(found).is_file():
        place = "none is on the PATH" if found is None else f"{str(found)!r} does not exist"
        raise ValueError(
            f"format: 'gguf' needs llama.cpp's converter, and {place}; give the convert_hf_to_gguf.py of a llama.cpp "
            "repository with --gguf-converter"
        )
    return [sys.executable, str(found)] if str(found).endswith(".py") else [str(found)]


def _convert(command: list[str], folder: Path, place: Path) -> None:
    run = subprocess.run(
        [*command, str(folder), "--outfile", str(place), "--outtype", "f32"],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode or not place.is_file():
        lines = [line for line in run.stderr.splitlines() if line.strip()] or ["no reason"]
        raise ValueError(
            f"format: llama.cpp's converter cannot convert this model ({lines[-1][:200]}); export without gguf"
        )


def _require_keys(place: Path, model: ULLME) -> None:
    """Pass if the file says of attention and pooling what the model does: an older converter leaves both out."""
    from gguf import GGUFReader

    reader = GGUFReader(place)

    def value(key: str) -> Any:
        field = reader.get_field(key)
        return None if field is None else field.contents()

    architecture = value("general.architecture")
    causal, pooling = value(f"{architecture}.attention.causal"), value(f"{architecture}.pooling_type")
    bidirectional = model.attention == "bidirectional"
    by_kind = architecture == "gemma-embedding"  # bidirectional without the key
    if (causal is False or by_kind) != bidirectional or pooling != POOLING_TYPES[model.pooling]:
        raise ValueError(
            f"format: the converter wrote {architecture}.attention.causal = {causal} and {architecture}.pooling_type = "
            f"{pooling}, which llama.cpp would serve as another model; use a newer llama.cpp"
        )


def _runner(place: Path, model: ULLME) -> Any:
    from llama_cpp import Llama

    size = model.max_length + 8
    llama = Llama(str(place), embedding=True, n_ctx=size, n_batch=size, n_ubatch=size, verbose=False)

    def embed(texts: list[str], prompt: str) -> np.ndarray:
        ids = [own.tolist() for own in _ids(model, texts)]
        for text, own in zip(texts, ids, strict=True):
            other = llama.tokenize(text.encode(), add_bos=True, special=True)[: model.max_length]
            if other != own:
                raise _differs(model, f"{text[:40]!r} has the token ids {other[:8]}... there, and {own[:8]}... here")
        return np.array(llama.embed(texts, normalize=True), dtype=np.float32)

    return embed


def _ids(model: ULLME, texts: list[str]) -> Any:
    tokenized = model.text_tokenizer.texts(texts)
    return tokenized.ids_X.split(tokenized.lengths_N.tolist())


def _differs(model: ULLME, reason: str) -> ValueError:
    return ValueError(
        f"format: llama.cpp does not reproduce {model.config.model_type!r}: {reason}; export without gguf"
    )
