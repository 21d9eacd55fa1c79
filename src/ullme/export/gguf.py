"""A GGUF file by llama.cpp's own converter, its attention and pooling stated, compared where llama.cpp runs.

The converter is no package: llama.cpp's ``convert_hf_to_gguf.py``, from its repository or from the source archive of
llama-cpp-python.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ullme.export.options import ExportOptions
from ullme.export.parity import TOLERANCES, Comparison, golden_texts, largest_difference
from ullme.models import ULLME

GGUF_FILE = "model-f32.gguf"
CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")

#: llama.cpp's numbers of our poolings.
POOLING_TYPES = {"mean": 1, "cls": 2, "lasttoken": 3}

#: Classes that the converter knows with an LM head only; it does not miss the head.
_WITH_HEAD = {"gpt2": "GPT2LMHeadModel", "mistral": "MistralForCausalLM"}

#: Its class for Gemma 3 without the head is always bidirectional.
_CAUSAL = {"gemma3_text": "Gemma3ForCausalLM"}

#: Architectures of llama.cpp that are bidirectional without a key, with windows to both sides.
_WITHOUT_KEY = ("gemma-embedding",)

#: Largest difference in float32 between embeddings of length 1: llama.cpp's kernels round in their own way.
TOLERANCE = 2e-3


def write_gguf(
    model: ULLME, folder: Path, prompts: Mapping[str, str], options: ExportOptions
) -> tuple[list[Comparison], list[str]]:
    """Write ``model-f32.gguf`` into an exported directory, and compare it with the model where llama.cpp is there.

    Raises:
        ValueError: no converter, one that does not know this model, or llama.cpp gives other embeddings.
    """
    if model.pooling not in POOLING_TYPES:
        raise ValueError(f"format: GGUF has no pooling {model.pooling!r}; it has {', '.join(POOLING_TYPES)}")
    command = _converter(options.gguf_converter)
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=folder.parent) as staging:
        converted = Path(staging) / GGUF_FILE
        _convert(command, _staged(folder, Path(staging)), converted)
        _state_keys(converted, folder / GGUF_FILE, model)
    remarks = ["GGUF: prompts, whose tokens llama.cpp pools"] if any(prompts.values()) else []
    if not options.verify:
        return [], remarks
    if importlib.util.find_spec("llama_cpp") is None:
        return [], [*remarks, "GGUF: its embeddings, because llama-cpp-python is not installed"]
    return [_compare(model, folder / GGUF_FILE)], remarks


def _converter(given: Path | None) -> list[str]:
    found = given or next(filter(None, map(shutil.which, CONVERTERS)), None)
    if found is None or not Path(found).is_file():
        place = "none is on the PATH" if found is None else f"{str(found)!r} does not exist"
        raise ValueError(
            f"format: 'gguf' needs llama.cpp's converter, and {place}; give the convert_hf_to_gguf.py of a llama.cpp "
            "repository with --gguf-converter"
        )
    return [sys.executable, str(found)] if str(found).endswith(".py") else [str(found)]


def _staged(folder: Path, staging: Path) -> Path:
    """The directory with a config as the converter knows it."""
    source = staging / "source"
    source.mkdir()
    for path in folder.iterdir():
        (source / path.name).symlink_to(path.resolve())
    config = json.loads((folder / "config.json").read_text())
    names = _WITH_HEAD if config.get("is_causal") is False else _WITH_HEAD | _CAUSAL
    if config["model_type"] in names:
        (source / "config.json").unlink()
        known = {**config, "architectures": [names[config["model_type"]]]}
        known.setdefault("n_ctx", config.get("n_positions"))  # GPT-2's old name
        (source / "config.json").write_text(json.dumps(known))
    return source


def _convert(command: list[str], source: Path, place: Path) -> None:
    asked = [*command, str(source), "--outfile", str(place), "--outtype", "f32"]
    run = subprocess.run(asked, capture_output=True, text=True, check=False)
    if run.returncode or not place.is_file():
        raise ValueError(
            f"format: llama.cpp's converter cannot convert this model ({_last_line(run.stderr)}); export without gguf"
        )


def _state_keys(converted: Path, place: Path, model: ULLME) -> None:
    """Copy the file, with attention and pooling in its metadata: the converter leaves both out for many classes."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

    reader = GGUFReader(converted)
    field = reader.get_field("general.architecture")
    assert field is not None, "a GGUF file names its architecture"
    architecture = field.contents()
    keys = {f"{architecture}.pooling_type": MetadataDetails(GGUFValueType.UINT32, POOLING_TYPES[model.pooling])}
    if architecture in _WITHOUT_KEY:
        window = model.config.get_text_config(decoder=True).sliding_window  # reaches as far to each side; there, half
        keys[f"{architecture}.attention.sliding_window"] = MetadataDetails(GGUFValueType.UINT32, 2 * window)
    else:
        bidirectional = model.attention == "bidirectional"
        keys[f"{architecture}.attention.causal"] = MetadataDetails(GGUFValueType.BOOL, not bidirectional)
    copy_with_new_metadata(reader, GGUFWriter(place, architecture), keys, [])


def _compare(model: ULLME, place: Path) -> Comparison:
    """Compare the texts that fit, each by itself, in a process that llama.cpp may abort."""
    texts = golden_texts(model)
    command = [sys.executable, str(Path(__file__).with_name("llama_run.py")), str(place), str(model.max_length)]
    run = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=False)
    if run.returncode:
        raise _differs(model, f"it cannot run it ({_last_line(run.stderr)})")
    theirs = json.loads(run.stdout)
    fitting = [i for i, embedding in enumerate(theirs["embeddings"]) if embedding is not None]
    tokenized = model.text_tokenizer.texts(texts)
    own_ids = [own.tolist() for own in tokenized.ids_X.split(tokenized.lengths_N.tolist())]
    for i in fitting:
        if theirs["ids"][i] != own_ids[i]:
            raise _differs(
                model, f"{texts[i][:40]!r} has other token ids, {theirs['ids'][i][:8]}..., {own_ids[i][:8]}..."
            )
    ours = model.encode([texts[i] for i in fitting], normalize_embeddings=True)
    difference = largest_difference(ours, np.array([theirs["embeddings"][i] for i in fitting], dtype=np.float32))
    if not difference <= max(TOLERANCE, TOLERANCES[model.dtype]):
        raise _differs(model, f"embeddings differ by {difference:.1e}")
    return Comparison("llama.cpp, each text alone", difference)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "Error" in line or "ERROR" in line or "ASSERT" in line]
    return (lines or [line for line in text.splitlines() if line.strip()] or ["no reason"])[-1][:200]


def _differs(model: ULLME, reason: str) -> ValueError:
    kind = model.config.model_type
    return ValueError(f"format: llama.cpp does not reproduce {kind!r}: {reason}; export without gguf")
