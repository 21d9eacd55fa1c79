"""What a score belongs to: a name, a revision that hashes the model, and the arguments of the experiment."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from sentence_transformers import SentenceTransformer
from torch import nn

from ullme.models import ULLME
from ullme.models.loading import tokenizer_rules
from ullme.models.tensors import weights_digest


def model_meta(model: Any, experiment: Mapping[str, Any]) -> ModelMeta | None:
    """The mteb metadata of a model, under which its results are kept; None if two versions of it cannot be told apart.

    The revision hashes everything that decides an embedding, so that a second checkpoint of the same name never reads
    the first one's scores.
    """
    revision = fingerprint(model)
    if revision is None:
        return None
    settings = readable_settings(model)
    return ModelMeta.create_empty(
        overrides(model_name(model), revision, {**settings, **experiment}, max_tokens=settings.get("max_length"))
    )


def overrides(name: str, revision: str, experiment: Mapping[str, Any], **known: Any) -> dict[str, Any]:
    """The fields of a ModelMeta that we know."""
    return {
        "name": name,
        "revision": revision[:16],
        "experiment_kwargs": dict(experiment),
        "framework": ["PyTorch"],
        "similarity_fn_name": ScoringFunction.COSINE,
        **{key: value for key, value in known.items() if value is not None},
    }


def model_name(model: Any) -> str:
    """``organization/name`` of a model, as mteb asks for it: the hub name, or ``local/`` and the folder's name."""
    if isinstance(model, ULLME):
        base, adapter = model.settings.model_name_or_path, model.settings.lora_name
    else:
        card = getattr(model, "model_card_data", None)
        base, adapter = getattr(card, "base_model", None) or getattr(model, "name", None) or type(model).__name__, None
    base = str(base)
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    name = base if on_hub else f"local/{Path(base).name}"
    return re.sub(r"[^\w./-]", "-", f"{name}-{Path(adapter).name}" if adapter else name)


def readable_settings(model: Any) -> dict[str, Any]:
    """What of a model's settings a reader of the results wants to see; the revision hashes all of them."""
    if isinstance(model, ULLME):
        s = model.settings
        shown = {"attention": s.attention, "pooling": s.pooling, "dtype": s.dtype, "max_length": s.max_length}
        return shown | {flag: True for flag in ("append_eos", "echo", "chat_template") if getattr(s, flag)}
    if isinstance(model, SentenceTransformer):
        return {"dtype": str(model.dtype).removeprefix("torch."), "max_length": model.max_seq_length}
    return {}


def fingerprint(model: Any) -> str | None:
    """A hash of all that decides an embedding; None if it cannot be known."""
    own = getattr(model, "fingerprint", None)
    if callable(own):
        return str(own())
    if isinstance(model, SentenceTransformer):
        return _sentence_transformer(model)
    return weights_digest(model) if isinstance(model, nn.Module) else None


def _sentence_transformer(model: SentenceTransformer) -> str:
    """Weights, modules with their configuration, tokenizer, prompts, truncation."""
    modules = []
    for name, module in model.named_children():
        describe = getattr(module, "get_config_dict", None)
        backbone: Any = getattr(getattr(module, "model", None), "config", None)
        config = [describe() if callable(describe) else None, _without_origin(backbone)]
        modules.append([name, type(module).__name__, config])
    content = {
        "modules": modules,
        "tokenizer": tokenizer_rules(model.tokenizer),
        "prompts": [model.prompts, model.default_prompt_name],
        "lengths": [model.max_seq_length, model.truncate_dim],
        "similarity": str(model.similarity_fn_name),
        "dtype": str(model.dtype),
        "weights": weights_digest(model),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _without_origin(config: Any) -> Any:
    """The values of a backbone's config, but for where it was loaded from and by which version."""
    if config is None:
        return None
    return {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
