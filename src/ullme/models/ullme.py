"""ULLME: a causal LM that embeds under one attention and generates under the other (paper, section 3 and Listing 1)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from ullme.models import encoding, io
from ullme.models.attention import attention_switch
from ullme.models.checkpoint import require_adapters_base
from ullme.models.choosing import refuse_by_kind
from ullme.models.inputs import objective_inputs
from ullme.models.loading import load_causal_lm, load_config, load_tokenizer, resolve
from ullme.models.logprob import sequence_logp
from ullme.models.lora import add_adapter
from ullme.models.merging import merge_adapters
from ullme.models.pooling import Pooling
from ullme.models.settings import ModelSettings
from ullme.models.specs import LogitsHead, logits_head, require_positions
from ullme.types import IGNORED, Attention, Batch, MaskedTexts, Need, Texts


class ULLME(nn.Module):
    """A decoder-only LLM as text embedder and generator.

    ``ULLME(model_name_or_path, **settings)`` takes every field of :class:`ModelSettings` as a keyword. The model is
    probed when it is loaded: an architecture whose attention cannot be switched is refused.

    Attributes:
        settings: the arguments, as values.
        causal_lm: the Transformers model, LoRA layers inside it.
        merged: digests of the earlier stages' adapters in its weights; it is then no longer the original LLM.
        tokenizer: the Hugging Face tokenizer.
        text_tokenizer: the one way from text to token ids, used by training, encoding and evaluation.
        switch: how this architecture is told its attention.
        pooler: from hidden states to embeddings.
        embedding_dimension: width D of an embedding.

    Raises:
        ValueError: a setting is wrong, the model cannot be found or loaded, or its attention cannot be switched.
    """

    def __init__(self, model_name_or_path: str, model_backbone_type: str | None = None, **settings: Any) -> None:
        super().__init__()
        known = [f.name for f in fields(ModelSettings)]
        for name in settings:
            if name not in known:
                raise TypeError(f"ULLME has no argument {name!r}; it takes {', '.join(known)}")
        self.settings = ModelSettings(str(model_name_or_path), model_backbone_type, **settings)
        source = resolve(self.settings)
        config = load_config(self.settings, source)
        refuse_by_kind(config)  # again part of the probe, but here before gigabytes are read
        require_positions(config, self.max_length)
        self.tokenizer = load_tokenizer(self.settings, source)
        self.causal_lm: PreTrainedModel = load_causal_lm(self.settings, source, config)
        self.merged = merge_adapters(self.causal_lm, self.settings.merged_adapters)
        require_adapters_base(self.causal_lm, self.settings, self.merged)
        self.switch = attention_switch(self.causal_lm, self.settings.window, self.settings.packing)
        self.embedding_dimension = self._hidden_width()
        # A tuple keeps the same modules as ``causal_lm`` out of the module tree, so that no parameter appears twice.
        self._adapted = (add_adapter(self.causal_lm, self.settings),)
        self.pooler = Pooling(self.settings.pooling, self.embedding_dimension).to(self.device)
        if self.settings.adapter_path:
            io.continue_adapter(self, Path(self.settings.adapter_path))
        self.text_tokenizer = self.settings.text_tokenizer(self.tokenizer)
        if self.settings.gradient_checkpointing:
            self.gradient_checkpointing_enable()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        is_generate: bool = False,
        prompt_lengths: Tensor | None = None,
        *,
        batch: Batch | None = None,
        needs: Collection[Need] = frozenset({"embedding"}),
        **kwargs: Any,
    ) -> Any:
        """Embed, generate, or (with ``batch``) compute what objectives need: one forward, as wrappers of it require.

        Args:
            input_ids: token ids (N, T).
            attention_mask: 1 on real tokens, padding on either side; all ones when left out.
            is_generate: causal attention and the plain Transformers output, to which ``kwargs`` go.
            prompt_lengths: leading tokens of each text (N,) that pooling leaves out.
            batch: queries with their passages; ``needs`` says what is computed of them.
            needs: what objectives need of the batch; the reference's likelihoods come without gradient.
            **kwargs: further arguments of the Transformers model (``labels``, ``past_key_values``, ...).

        Returns:
            ``{"rep": (N, D)}``; with ``is_generate`` a Transformers causal-LM output; with ``batch`` ObjectiveInputs.

        Raises:
            ValueError: no ``input_ids``, or ``prompt_lengths`` that leave nothing of a text.
        """
        if batch is not None:
            return objective_inputs(self, batch, needs)
        if is_generate:
            return self._generator(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if input_ids is None:
            raise ValueError("input_ids: is missing; give token ids of shape (texts, tokens)")
        mask_NT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        lengths_N = mask_NT.bool().sum(1)
        skip_N = torch.zeros_like(lengths_N)
        if prompt_lengths is not None:
            skip_N = prompt_lengths.to(lengths_N)
            _require_text(skip_N, lengths_N)
        return {"rep": self.embed_texts(Texts(input_ids[mask_NT.bool()], lengths_N, skip_N))}

    def generate(self, **kwargs: Any) -> Any:
        """Transformers' ``generate``, causal, with the adapter."""
        return self._generator.generate(**kwargs)

    def embed_texts(self, texts: Texts, attention: Attention | None = None) -> Tensor:
        """Embeddings (N, D) of tokenised texts, in their order; an absent text (length 0) is the zero vector.

        ``attention`` is the model's own unless given.
        """
        rep_ND = torch.zeros(len(texts), self.embedding_dimension, device=self.device, dtype=self._embedding_dtype)
        for rows in self._forward_batches(texts):
            part = texts.rows(rows).to(self.device)
            rep = self.pooler(self.switch.states(self.causal_lm, part, attention or self.attention), part)
            rep_ND = rep_ND.index_copy(0, torch.tensor(rows, device=self.device), rep)
        return rep_ND

    def score_texts(self, texts: Texts) -> tuple[Tensor, Tensor]:
        """Log-likelihood (N,) of what is not context in each text, and its number of tokens (N,), causal attention."""
        return self._likelihoods(texts, "causal")

    def score_masked(self, masked: MaskedTexts) -> tuple[Tensor, Tensor]:
        """Log-likelihood (N,) of each text's hidden tokens, and their number (N,), under the embedding's attention.

        The state before a hidden token predicts it, as in generation (masked next-token prediction, BehnamGhader et
        al. 2024, section 2.2); a hidden first token is predicted by nothing and never counts.
        """
        return self._likelihoods(masked.texts, self.attention, masked.target_X)

    encode = encoding.encode

    def encode_query(self, sentences: str | Sequence[str], **options: Any) -> Any:
        """Embed queries: as ``encode``, with the prompt named ``query`` if there is one and none is asked for."""
        return encoding.encode(self, sentences, **encoding.with_default_prompt(self.prompts, "query", options))

    def encode_document(self, sentences: str | Sequence[str], **options: Any) -> Any:
        """Embed passages: as ``encode``, with the prompt named ``document`` if there is one and none is asked for."""
        return encoding.encode(self, sentences, **encoding.with_default_prompt(self.prompts, "document", options))

    def similarity(self, a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> Tensor:
        """Cosine similarity of every embedding of ``a`` (N, D) with every one of ``b`` (M, D), (N, M)."""
        from sentence_transformers.util import cos_sim

        return cos_sim(a, b)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model atomically: adapter (or all weights), pooling, tokenizer and ``ullme.json``."""
        io.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **overrides: Any) -> ULLME:
        """A saved model in eval mode; ``overrides`` replace settings (``dtype``, ``device_map``, a moved base, ...).

        Raises:
            ValueError: the folder is no complete checkpoint, or its base is another model.
        """
        return io.load(cls, Path(folder), overrides)

    def fingerprint(self) -> str:
        """A hash of all that decides an embedding: weights, attention, pooling, prompts, dtype, lengths, template."""
        return io.fingerprint(self)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute activations in backward, non-reentrant: a call's attention travels with it."""
        if (gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ValueError("use_reentrant: True forgets a call's attention mode; leave it out")
        self.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for backward."""
        self.causal_lm.gradient_checkpointing_disable()

    @property
    def config(self) -> Any:
        """The backbone's config."""
        return self.causal_lm.config

    @property
    def device(self) -> torch.device:
        """Where token ids must be."""
        return self.causal_lm.device

    @property
    def dtype(self) -> torch.dtype:
        """The backbone's dtype."""
        return self.causal_lm.dtype

    @property
    def peft_model(self) -> PeftModel | None:
        """The causal LM as peft sees it; None without an adapter."""
        return self._adapted[0]

    @property
    def attention(self) -> Attention:
        """Attention under which texts are embedded."""
        return cast(Attention, self.settings.attention)

    @property
    def pooling(self) -> str:
        """Name of the pooling."""
        return self.settings.pooling

    @property
    def max_length(self) -> int:
        """Tokens of one text at most."""
        return self.settings.max_length

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt strings by name."""
        return self.settings.prompts

    @property
    def _generator(self) -> Any:
        return self.causal_lm if self.peft_model is None else self.peft_model

    @property
    def _embedding_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @torch.no_grad()
    def _hidden_width(self) -> int:
        one_NT = torch.ones(1, 1, dtype=torch.long, device=self.device)
        return self.switch.hidden(self.causal_lm, one_NT, one_NT, "causal").shape[-1]

    def _head(self) -> LogitsHead:
        head = logits_head(self.causal_lm)
        if head is None or not self.switch.head_reproduced:
            raise ValueError(
                f"model type {self.config.model_type!r}: its likelihoods do not follow from its last hidden states; "
                "leave out the objectives that need likelihoods (contrastive needs none), or use another architecture"
            )
        return head

    def _forward_batches(self, texts: Texts) -> list[list[int]]:
        require_positions(self.config, int(texts.lengths_N.max()) if len(texts) else 0)
        return encoding.forward_batches(texts, device_type=self.device.type, packed=self.switch.packs)

    def _likelihoods(self, texts: Texts, attention: Attention, target_X: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-likelihoods (N,) and tokens (N,) of the targets, or where there are none, of what is not context."""
        head = self._head()
        logp_N = torch.zeros(len(texts), device=self.device, dtype=self._embedding_dtype)
        tokens_N = torch.zeros(len(texts), device=self.device, dtype=torch.long)
        targets = None if target_X is None else replace(texts, ids_X=target_X)
        for rows in self._forward_batches(texts):
            part = texts.rows(rows).to(self.device)
            hidden_XD = self.switch.states(self.causal_lm, part, attention)
            scored_X = part.scored_X
            if targets is not None:
                part = targets.rows(rows).to(self.device)
                scored_X = part.ids_X != IGNORED
            logp, tokens = sequence_logp(hidden_XD, part, scored_X, head)
            at = torch.tensor(rows, device=self.device)
            logp_N, tokens_N = logp_N.index_copy(0, at, logp), tokens_N.index_copy(0, at, tokens)
        return logp_N, tokens_N


def _require_text(skip_N: Tensor, lengths_N: Tensor) -> None:
    """Raise if pooling would leave out a whole text, or reach into another; an absent text has nothing to leave out."""
    wrong_N = (skip_N < 0) | (skip_N >= lengths_N.clamp_min(1))
    if wrong_N.any():
        row = int(wrong_N.nonzero()[0])
        raise ValueError(
            f"prompt_lengths[{row}]: {int(skip_N[row])} tokens of a text of {int(lengths_N[row])} are left out of the "
            "pool; leave one at least"
        )
