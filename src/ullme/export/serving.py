"""What each server needs of an exported directory, and whether it is there: the serving lint.

Everything is read from the files, so that any sentence-transformers directory can be looked at. What is said of vLLM
and text-embeddings-inference was read in their sources, not run (docs/serving.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ullme.export.directory import ADAPTER_FOLDER

ONNX_FILE = "onnx/model.onnx"

#: Classes of vLLM that read ``is_causal``; its Gemma 3 reads ``use_bidirectional_attention`` in its place.
_VLLM = ("llama", "mistral", "qwen2", "qwen3")

#: Classes of text-embeddings-inference for decoders that read ``use_bidirectional_attention``.
_TEI = ("llama", "mistral", "qwen3")

_ALL_POOLINGS = ("mean", "cls", "lasttoken")


@dataclass(frozen=True)
class ServingNote:
    """What one server makes of the directory.

    Attributes:
        server: its name.
        ready: whether all that it needs is there.
        says: how to serve it, or what is missing and what to do.
    """

    server: str
    ready: bool
    says: str


@dataclass(frozen=True)
class _Directory:
    """What the files of a directory say."""

    folder: Path
    config: Mapping[str, Any]
    pooling: str
    prompts: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> _Directory:
        def content(name: str) -> Any:
            return json.loads((folder / name).read_text())

        try:
            pooling = content("1_Pooling/config.json")
            chosen = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
            prompts = content("config_sentence_transformers.json")["prompts"]
            name = chosen[0].removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            used = tuple(key for key, value in prompts.items() if value)
            return cls(folder, content("config.json"), name, used)
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise ValueError(f"export {str(folder)!r}: is no exported directory ({error}); export again") from error

    @property
    def kind(self) -> str:
        return self.config["model_type"]

    @property
    def bidirectional(self) -> bool:
        return self.config.get("is_causal") is False

    @property
    def apart(self) -> bool:
        return (self.folder / ADAPTER_FOLDER).is_dir()

    @property
    def ggufs(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*.gguf"))


def serving_notes(folder: str | Path) -> list[ServingNote]:
    """A note per server.

    Raises:
        ValueError: the folder is no sentence-transformers directory as ullme writes it.
    """
    directory = _Directory.read(Path(folder))
    return [ServingNote(server, *_judged(directory, look)) for server, look in _SERVERS.items()]


def _judged(directory: _Directory, look: Callable[[_Directory], tuple[bool, str]]) -> tuple[bool, str]:
    if directory.apart:
        return (
            False,
            f"needs merged weights; export without keep_adapter (only sentence-transformers reads {ADAPTER_FOLDER}/)",
        )
    return look(directory)


def _keys_missing(directory: _Directory, known: bool, key: str) -> str | None:
    """What keeps a server from seeing that attention is bidirectional, or None."""
    if not directory.bidirectional or known:
        return None
    return f"its class for {directory.kind!r} is not known to read {key}: it would silently serve a causal model"


def _pooled(directory: _Directory) -> str | None:
    if directory.pooling in _ALL_POOLINGS:
        return None
    return f"it has no pooling {directory.pooling!r}; it has {', '.join(_ALL_POOLINGS)}"


def _prompt_hint(directory: _Directory) -> str:
    if not directory.prompts or directory.pooling == "lasttoken":
        return ""
    return "; it pools a prompt's tokens too, which sentence-transformers leaves out: send texts without prompts"


def _vllm(directory: _Directory) -> tuple[bool, str]:
    both_sides = directory.config.get("use_bidirectional_attention") is True
    known = directory.kind in _VLLM or (directory.kind == "gemma3_text" and both_sides)
    missing = _keys_missing(directory, known, "is_causal") or _pooled(directory)
    if missing:
        return False, f"{missing}; serve it with sentence-transformers, or as GGUF or ONNX"
    key, window = "is_causal", ""
    if directory.kind == "gemma3_text":
        key, window = "use_bidirectional_attention", "; its windows reach one token less to each side"
    where = f"attention from config.json: {key}, " if directory.bidirectional else ""
    said = f"vllm serve DIR --runner pooling; {where}pooling from modules.json{_prompt_hint(directory)}"
    return True, said + (window if directory.bidirectional else "")


def _tei(directory: _Directory) -> tuple[bool, str]:
    both_sides = directory.config.get("use_bidirectional_attention") is True
    missing = _pooled(directory) or _keys_missing(directory, directory.kind in _TEI and both_sides, "the key")
    if missing is None:
        where = "attention from config.json: use_bidirectional_attention, " if directory.bidirectional else ""
        return (
            True,
            f"{where}pooling from 1_Pooling (say --pooling {directory.pooling} to be sure){_prompt_hint(directory)}",
        )
    if _pooled(directory) is None and (directory.folder / ONNX_FILE).is_file():
        return True, f"on CPU, through {ONNX_FILE}, whose graph holds the attention{_prompt_hint(directory)}"
    return False, f"{missing}; add --format onnx, which its CPU backend serves"


def _llama_cpp(directory: _Directory) -> tuple[bool, str]:
    if missing := _pooled(directory):
        return False, missing
    asked = "{arch}.attention.causal = false, " if directory.bidirectional else ""
    if asked and directory.kind == "gemma3_text":
        asked = "general.architecture = gemma-embedding, "
    keys = f"the keys {asked}{{arch}}.pooling_type = {directory.pooling}"
    if not directory.ggufs:
        return False, f"needs a GGUF file with {keys}; add --format gguf"
    batch = "; give --ubatch-size of the longest text's tokens" if directory.bidirectional else ""
    return (
        True,
        f"llama-server -m {directory.ggufs[0]} --embedding; the file has {keys}{batch}{_prompt_hint(directory)}",
    )


def _onnx(directory: _Directory) -> tuple[bool, str]:
    if not (directory.folder / ONNX_FILE).is_file():
        return False, f"needs {ONNX_FILE}; add --format onnx"
    return True, "input_ids and attention_mask, padded on the right, give last_hidden_state and sentence_embedding"


_SERVERS: Mapping[str, Callable[[_Directory], tuple[bool, str]]] = {
    "vLLM": _vllm,
    "text-embeddings-inference": _tei,
    "llama.cpp": _llama_cpp,
    "ONNX Runtime": _onnx,
}
