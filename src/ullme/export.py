"""Export to a sentence-transformers directory, proven to give the same embeddings before it is put in place."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers.processors import Sequence as ProcessorSequence
from tokenizers.processors import TemplateProcessing
from transformers import MODEL_MAPPING, PreTrainedModel

from ullme.models import ULLME
from ullme.models.attention import text_decoder

#: Largest difference of an exported embedding, relative to the largest value of the original, by dtype.
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}

#: What sentence-transformers calls our poolings (in its configuration of all versions, which servers read too).
_POOLING_KEYS = {
    "mean": "pooling_mode_mean_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "cls": "pooling_mode_cls_token",
    "lasttoken": "pooling_mode_lasttoken",
}

#: What a sentence-transformers directory cannot say: a property of the model, and the reason.
_REFUSALS: tuple[tuple[Callable[[ULLME], bool], str], ...] = (
    (lambda m: m.pooling not in _POOLING_KEYS, "pooling: {m.pooling!r} does not exist in sentence-transformers"),
    (lambda m: m.settings.echo, "echo: True, and sentence-transformers cannot read a text twice"),
    (lambda m: m.settings.chat_template, "chat_template: True, and mean pooling there cannot leave out a template"),
    (
        lambda m: m.settings.quantization is not None,
        "quantization: {m.settings.quantization!r} cannot be merged; load the model with quantization=None",
    ),
)

#: Lengths differ, so that one batch is padded; the first text alone is not.
_PROBES = (
    "An exported model must embed this sentence as the original does.",
    "a short one.",
    "One more sentence, considerably longer than the others: it has a subordinate clause, numbers (1, 2, 3), quotes "
    '("so"), and enough words that every shorter text in its batch has to be padded, or cut where it is too long.',
)


def export_sentence_transformers(
    model: ULLME,
    path: str | Path,
    *,
    prompts: Mapping[str, str] | None = None,
    normalize: bool = False,
    verify: bool = True,
) -> Path:
    """Write a directory that ``SentenceTransformer(path)`` loads and that embeds as ``model.encode`` does.

    The adapter is merged into a copy; the model is not changed. The directory is loaded and compared with the model,
    and appears only if both agree: on a text alone, on a padded batch, and with each prompt.

    Args:
        model: the embedder.
        path: a folder that does not exist, or is empty.
        prompts: prompt strings by name; None takes the model's.
        normalize: let the exported model give embeddings of length 1.
        verify: compare before the directory is put in place; costs a second copy of the model in memory.

    Raises:
        ValueError: sentence-transformers cannot reproduce this model (the message says why), or the path is taken.
    """
    path = Path(path)
    for applies, reason in _REFUSALS:
        if applies(model):
            raise ValueError(f"export: {reason.format(m=model)}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"export: {str(path)!r} exists and is not empty; give another path or remove it")
    prompts = dict(model.prompts if prompts is None else prompts)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        _write(model, unfinished, prompts, normalize)
        if verify:
            _require_same_embeddings(model, unfinished, prompts, normalize)
        unfinished.chmod(0o755)
        unfinished.replace(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return path


def _write(model: ULLME, folder: Path, prompts: Mapping[str, str], normalize: bool) -> None:
    _backbone(model).save_pretrained(folder)
    _tokenizer(model).save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if normalize else [])
    files: dict[str, Any] = {
        # The class paths that every version and server knows; version 6 forwards them to their new places.
        "modules.json": [
            {"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{name}"}
            for i, (place, name) in enumerate(modules)
        ],
        # Text only, stated: version 6 otherwise infers a chat modality from the tokenizer and applies its template.
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": "", **prompts},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": model.embedding_dimension,
            **{key: name == model.pooling for name, key in _POOLING_KEYS.items()},
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "include_prompt": False,
        },
    }
    for place, _ in modules:
        (folder / place).mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _backbone(model: ULLME) -> PreTrainedModel:
    """The text model without LM head, the adapter merged, and a config of its own that states the attention."""
    causal_lm: Any = model.causal_lm
    if model.peft_model is not None:
        causal_lm = copy.deepcopy(model.peft_model).merge_and_unload()
    source = text_decoder(causal_lm)
    if MODEL_MAPPING.get(type(source.config), None) is not type(source):
        source = causal_lm.base_model  # AutoModel loads OPT's decoder inside a model of its own
    backbone = copy.copy(source)
    backbone.config = copy.deepcopy(source.config)
    if model.attention == "bidirectional":
        backbone.config.is_causal = False
    return backbone


def _tokenizer(model: ULLME) -> Any:
    """A copy of the tokenizer that gives a text the ids that ``text_tokenizer`` gives it."""
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.model_max_length = model.max_length
    # Learned positions count padding on the left; on the right it changes nothing.
    tokenizer.padding_side = "right"
    tokenizer.chat_template = None
    if model.settings.append_eos:
        eos = tokenizer.eos_token
        if not tokenizer.is_fast or eos is None:
            raise ValueError(
                "export: append_eos: True, and this tokenizer cannot be told to; export with append_eos=False"
            )
        ending = TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)])
        backend = tokenizer.backend_tokenizer
        before = [backend.post_processor] if backend.post_processor is not None else []
        backend.post_processor = ProcessorSequence([*before, ending])
    return tokenizer


def _require_same_embeddings(model: ULLME, folder: Path, prompts: Mapping[str, str], normalize: bool) -> None:
    try:
        exported = SentenceTransformer(str(folder), device=str(model.device))
        exported.encode([_PROBES[0]], show_progress_bar=False)
    except Exception as error:
        # Whatever a model class raises that sentence-transformers calls otherwise than we do.
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason').splitlines()[0][:200]}"
        raise ValueError(f"export: {_explain(model, None)} ({reason})") from error
    cases: list[tuple[str, str | None, list[str]]] = [
        ("a text alone", None, [_PROBES[0]]),
        ("a padded batch", None, list(_PROBES)),
        *((f"prompt {name!r} ({text!r})", text, list(_PROBES)) for name, text in prompts.items() if text),
    ]
    for case, prompt, texts in cases:
        ours = model.encode(texts, prompt=prompt, normalize_embeddings=normalize)
        theirs = exported.encode(texts, prompt=prompt, show_progress_bar=False)
        difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
        if not difference <= TOLERANCES[model.dtype]:
            raise ValueError(f"export: {_explain(model, prompt)} ({case} differs by {difference:.1e})")


def _explain(model: ULLME, prompt: str | None) -> str:
    if prompt is not None:
        return (
            "sentence-transformers counts the prompt's tokens apart from the text and would leave a text's first token "
            "out of the pool where both merge; end the prompt with a line break, or export with prompts={}"
        )
    return (
        f"sentence-transformers does not reproduce this model ({model.config.model_type}, {model.attention} attention, "
        f"switched by {model.switch.mechanism}); serve it through ullme"
    )
