"""The files of a sentence-transformers directory: weights, attention, tokenizer, pooling, prompts."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers.processors import Sequence as ProcessorSequence
from tokenizers.processors import TemplateProcessing
from transformers import MODEL_MAPPING, PreTrainedModel

from ullme.export.refusals import POOLING_KEYS
from ullme.models import ULLME
from ullme.models.attention import text_decoder

#: Where an adapter that is kept apart lies; sentence-transformers finds it through ``sentence_bert_config.json``.
ADAPTER_FOLDER = "adapter"


#: Architectures for which vLLM (Gemma 3) or text-embeddings-inference reads this older key beside ``is_causal: false``.
#: Gemma 3 reads from it that ``sliding_window`` is the window's whole width; Transformers writes and reads it so.
_OLDER_KEY, _OLDER_KEY_TYPES = (
    "use_bidirectional_attention",
    ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen3"),
)


def write_directory(
    model: ULLME, folder: Path, prompts: Mapping[str, str], *, normalize: bool, keep_adapter: bool
) -> None:
    """Write everything that ``SentenceTransformer(folder)`` reads.

    Args:
        model: the embedder; it is not changed.
        folder: exists and is empty.
        prompts: prompt strings by name.
        normalize: end with a module that scales embeddings to length 1.
        keep_adapter: the original weights, and the adapter beside them, in place of merged weights.
    """
    backbone = _backbone(model, merge=not keep_adapter)
    backbone.save_pretrained(folder)
    if keep_adapter:
        assert model.peft_model is not None
        _write_adapter(model.peft_model, folder / ADAPTER_FOLDER)
    _tokenizer(model).save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if normalize else [])
    files: dict[str, Any] = {
        # The class paths that every version and server knows; version 6 forwards them to their new places.
        "modules.json": [
            {"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{name}"}
            for i, (place, name) in enumerate(modules)
        ],
        "sentence_bert_config.json": _transformer_config(model, keep_adapter),
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": "", **prompts},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": model.embedding_dimension,
            **{key: name == model.pooling for name, key in POOLING_KEYS.items()},
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "include_prompt": model.pooling == "lasttoken",  # left out by count, a prompt that merges takes all of "a"
        },
    }
    for place, _ in modules:
        (folder / place).mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _transformer_config(model: ULLME, keep_adapter: bool) -> dict[str, Any]:
    config = {
        "max_seq_length": model.max_length,
        "do_lower_case": False,
        "transformer_task": "feature-extraction",
        # Text only, stated: version 6 otherwise infers a chat modality from the tokenizer and applies its template.
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
    }
    # Not in the folder itself: sentence-transformers would then read the config of the adapter's base, which is causal.
    return config | ({"model_kwargs": {"adapter_kwargs": {"subfolder": ADAPTER_FOLDER}}} if keep_adapter else {})


def _backbone(model: ULLME, merge: bool) -> PreTrainedModel:
    """The text model without LM head, the adapter merged or gone, and a config of its own that states the attention."""
    causal_lm: Any = model.causal_lm
    if model.peft_model is not None:
        own = copy.deepcopy(model.peft_model)
        causal_lm = own.merge_and_unload() if merge else own.unload()
    source = _portable_decoder(causal_lm)
    backbone = copy.copy(source)
    backbone.config = copy.deepcopy(source.config)
    if model.attention == "bidirectional":
        backbone.config.is_causal = False
        if backbone.config.model_type in _OLDER_KEY_TYPES:
            setattr(backbone.config, _OLDER_KEY, True)
    return backbone


def _portable_decoder(causal_lm: Any) -> PreTrainedModel:
    """The module under the LM head that ``AutoModel`` builds for its config."""
    source = text_decoder(causal_lm)
    if MODEL_MAPPING.get(type(source.config), None) is not type(source):
        return causal_lm.base_model  # AutoModel loads OPT's decoder inside a model of its own
    return source


def _write_adapter(peft_model: PeftModel, folder: Path) -> None:
    """The adapter with the names of its tensors as they are without the LM head around the decoder."""
    causal_lm: Any = peft_model.get_base_model()
    decoder = _portable_decoder(causal_lm)
    inside = next(name for name, module in causal_lm.named_modules() if module is decoder)
    start = "base_model.model."
    tensors = {
        start + name.removeprefix(f"{start}{inside}."): tensor.contiguous()
        for name, tensor in get_peft_model_state_dict(peft_model).items()
        if name.startswith(f"{start}{inside}.")
    }
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config: Any = copy.deepcopy(peft_model.active_peft_config)
    config.task_type, config.inference_mode = "FEATURE_EXTRACTION", True
    if not isinstance(config.target_modules, str):
        config.target_modules = {name.removeprefix(f"{inside}.") for name in config.target_modules}
    config.save_pretrained(str(folder))


def _tokenizer(model: ULLME) -> Any:
    """A copy of the tokenizer that gives a text the ids that ``text_tokenizer`` gives it."""
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.model_max_length = model.max_length
    # Learned positions count padding on the left; on the right it changes nothing.
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    tokenizer.chat_template = None
    if model.settings.append_eos and tokenizer("a")["input_ids"][-1:] != [tokenizer.eos_token_id]:
        _append_eos(tokenizer)
    return tokenizer


def _append_eos(tokenizer: Any) -> None:
    eos = tokenizer.eos_token
    if not tokenizer.is_fast or eos is None:
        raise ValueError("export: append_eos: True, and this tokenizer cannot be told to; export with append_eos=False")
    ending = TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)])
    backend = tokenizer.backend_tokenizer
    before = [backend.post_processor] if backend.post_processor is not None else []
    backend.post_processor = ProcessorSequence([*before, ending])
