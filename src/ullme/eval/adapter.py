"""Any embedder as an mteb encoder."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mteb.abstasks import AbsTask
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.models_protocols import CrossEncoderProtocol, EncoderProtocol, SearchProtocol
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer
from torch import Tensor

from ullme.eval.identity import model_meta
from ullme.eval.prompting import PromptPolicy, prompt_policy
from ullme.eval.tasks import parts_of
from ullme.models import ULLME
from ullme.templates import INSTRUCTION_TEMPLATE

logger = logging.getLogger(__name__)

_MTEB_PROTOCOLS = (EncoderProtocol, CrossEncoderProtocol, SearchProtocol)


class PromptedEncoder(AbsEncoder):
    """An object with ``encode(list of str)`` as mteb's encoder: the policy's prompt before every text, cosine scores.

    Texts reach the model whole, so that it cuts its own batches; a passage of a corpus is its title and text, as mteb
    joins them.
    """

    def __init__(self, model: Any, meta: ModelMeta, policy: PromptPolicy) -> None:
        self.model = model
        self.mteb_model_meta = meta
        self.policy = policy
        self._takes = _keywords(model.encode)

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embeddings (N, D), float32, of the texts of mteb's batches, in their order."""
        texts = [text for batch in inputs for text in batch["text"]]
        prompt = self.policy.prompt(task_metadata, prompt_type)
        options = {name: value for name, value in kwargs.items() if name in self._takes}
        if "prompt" in self._takes:
            options["prompt"] = prompt
        else:
            texts = [prompt + text for text in texts]
        embeddings = self.model.encode(texts, **options)
        if isinstance(embeddings, Tensor):
            embeddings = embeddings.detach().float().cpu().numpy()
        return np.asarray(embeddings, dtype=np.float32)


@dataclass(frozen=True)
class Evaluated:
    """A model ready for mteb: an encoder, and whether its results can be kept.

    Attributes:
        encoder: what mteb calls, with its metadata in ``mteb_model_meta``.
        keep: results may be kept and reused; False for a model of which two versions cannot be told apart.
    """

    encoder: Any
    keep: bool

    def require_prompts(self, tasks: Iterable[AbsTask]) -> None:
        """Pass if every task has its prompt; ValueError before anything is run if custom instructions lack one."""
        if isinstance(self.encoder, PromptedEncoder):
            for task in tasks:
                for part in parts_of(task):
                    self.encoder.policy.prompt(part.metadata, None)

    def with_experiment(self, extra: Mapping[str, Any]) -> Any:
        """The encoder with more arguments in its experiment; the model itself is shared, not copied."""
        if not extra:
            return self.encoder
        meta = self.encoder.mteb_model_meta
        arguments = {**(meta.experiment_kwargs or {}), **extra}
        encoder = copy.copy(self.encoder)
        encoder.mteb_model_meta = meta.model_copy(update={"experiment_kwargs": arguments})
        return encoder


def as_encoder(
    model: Any, prompts: str | Mapping[str, str] | None = None, template: str = INSTRUCTION_TEMPLATE
) -> Evaluated:
    """A model as mteb encoder.

    Args:
        model: a ULLME or WrappedULLME, a SentenceTransformer, an mteb model, or an object with ``encode(list of str)``.
        prompts: see :func:`ullme.eval.prompting.prompt_policy`. None is for a ULLME its own prompts if it has any, else
            mteb's instruction of each task; for a SentenceTransformer and an mteb model what mteb itself does; for any
            other object nothing.
        template: how an instruction stands before a text.

    Raises:
        ValueError: the object cannot encode, or ``prompts`` does not fit it.
    """
    if isinstance(model, _MTEB_PROTOCOLS):
        return _mteb_model(model, prompts)
    if not callable(getattr(model, "encode", None)):
        raise ValueError(
            f"model: {type(model).__name__} has no encode(list of str); give a ULLME, a SentenceTransformer, an mteb "
            "model, or the name of a model"
        )
    if isinstance(model, SentenceTransformer) and prompts is None:
        return _sentence_transformer(model)
    policy = prompt_policy(
        prompts, getattr(model, "prompts", None), "task" if isinstance(model, ULLME) else "none", template
    )
    meta = model_meta(model, {"prompts": policy.name})
    if meta is None:
        logger.warning(
            "%s has no weights or fingerprint() to tell it from another: its results are not kept", type(model).__name__
        )
        meta = ModelMeta.create_empty({"name": f"local/{type(model).__name__}", "revision": "unknown"})
        return Evaluated(PromptedEncoder(model, meta, policy), keep=False)
    return Evaluated(PromptedEncoder(model, meta, policy), keep=True)


def _sentence_transformer(model: SentenceTransformer) -> Evaluated:
    """The wrapper of mteb itself, with our revision: its own names a model but not its weights."""
    encoder = SentenceTransformerEncoderWrapper(model)
    ours = model_meta(model, {"prompts": "mteb"})
    assert ours is not None
    known = {"name": ours.name, "revision": ours.revision, "experiment_kwargs": ours.experiment_kwargs}
    encoder.mteb_model_meta = encoder.mteb_model_meta.model_copy(update=known)
    return Evaluated(encoder, keep=True)


def _mteb_model(model: Any, prompts: Any) -> Evaluated:
    if prompts is not None:
        raise ValueError(
            f"prompts: {prompts!r} cannot be given for an mteb model, which brings its own prompts; leave prompts out"
        )
    meta = model.mteb_model_meta
    named = isinstance(meta, ModelMeta) and meta.name is not None and meta.revision is not None
    return Evaluated(model, keep=named)


def _keywords(function: Any) -> set[str]:
    """Names of the keyword arguments that a function takes, of those that mteb and we pass."""
    offered = {"prompt", "batch_size", "show_progress_bar"}
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return offered
    return offered & parameters.keys()
