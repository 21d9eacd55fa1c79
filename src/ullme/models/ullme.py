"""ULLME: a causal LM that embeds under one attention and generates under the other (paper, section 3 and Listing 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from ullme.models import encoding, io
from ullme.models.attention import attention_switch
from ullme.models.choosing import refuse_by_kind
from ullme.models.loading import load_causal_lm, load_config, load_tokenizer, resolve
from ullme.models.logprob import Head, sequence_logp
from ullme.models.lora import add_adapter, reference_mode
from ullme.models.pooling import Pooling
from ullme.models.settings import ModelSettings
from ullme.models.specs import logits_head
from ullme.models.tensors import weights_digest
from ullme.types import Attention, Batch, ObjectiveInputs, Texts


class ULLME(nn.Module):
    """A decoder-only LLM as text embedder and generator.

    ``ULLME(model_name_or_path, **settings)`` takes every field of :class:`ModelSettings` as a keyword. The model is
    probed when it is loaded: an architecture whose attention cannot be switched is refused.

    Attributes:
        settings: the arguments, as values.
        causal_lm: the Transformers model, LoRA layers inside it.
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
        self.tokenizer = load_tokenizer(self.settings, source)
        self.causal_lm: PreTrainedModel = load_causal_lm(self.settings, source, config)
        self.switch = attention_switch(self.causal_lm, self.settings.window)
        self.embedding_dimension = self._hidden_width()
        # A tuple keeps the same modules as ``causal_lm`` out of the module tree, so that no parameter appears twice.
        self._adapted = (add_adapter(self.causal_lm, self.settings),)
        self.pooler = Pooling(self.settings.pooling, self.embedding_dimension).to(self.device)
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
        embed: bool = True,
        score: bool = False,
        reference: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Embed, generate, or (with ``batch``) compute what objectives need: one forward, as wrappers of it require.

        Args:
            input_ids: token ids (N, T).
            attention_mask: 1 on real tokens, padding on either side; all ones when left out.
            is_generate: causal attention and the plain Transformers output, to which ``kwargs`` go.
            prompt_lengths: leading tokens of each text (N,) that pooling leaves out.
            batch: queries with their passages; then the other arguments say what is computed of them.
            embed: fill ``query_BD`` and ``passage_BPD``.
            score: fill ``logp_BP`` and ``tokens_BP``.
            reference: fill ``ref_logp_BP``, without gradient.
            **kwargs: further arguments of the Transformers model (``labels``, ``past_key_values``, ...).

        Returns:
            ``{"rep": (N, D)}``; with ``is_generate`` a Transformers causal-LM output; with ``batch`` ObjectiveInputs.
        """
        if batch is not None:
            return self._objective_inputs(batch, embed=embed, score=score, reference=reference)
        if is_generate:
            return self._generator(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if input_ids is None:
            raise ValueError("input_ids: is missing; give token ids of shape (texts, tokens)")
        mask_NT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pooled_NT = mask_NT.bool()
        if prompt_lengths is not None:
            pooled_NT = pooled_NT & (mask_NT.cumsum(1) > prompt_lengths[:, None])
        return {"rep": self._embed_padded(input_ids, mask_NT, pooled_NT)}

    def generate(self, **kwargs: Any) -> Any:
        """Transformers' ``generate``, causal, with the adapter."""
        return self._generator.generate(**kwargs)

    def embed_texts(self, texts: Texts, attention: Attention | None = None) -> Tensor:
        """Embeddings (N, D) of tokenised texts, in their order; an absent text (length 0) is the zero vector.

        ``attention`` is the model's own unless given.
        """
        rep_ND = torch.zeros(len(texts), self.embedding_dimension, device=self.device, dtype=self._embedding_dtype)
        for rows in encoding.forward_batches(texts):
            part = texts.rows(rows).to(self.device)
            ids_NT, mask_NT = part.pad(self.tokenizer.pad_token_id)
            rep = self._embed_padded(ids_NT, mask_NT, part.scored_NT(mask_NT), attention)
            rep_ND = rep_ND.index_copy(0, torch.tensor(rows, device=self.device), rep)
        return rep_ND

    def score_texts(self, texts: Texts) -> tuple[Tensor, Tensor]:
        """Log-likelihood (N,) of what is not context in each text, and its number of tokens (N,), causal attention."""
        head = self._head()
        logp_N = torch.zeros(len(texts), device=self.device, dtype=self._embedding_dtype)
        tokens_N = torch.zeros(len(texts), device=self.device, dtype=torch.long)
        for rows in encoding.forward_batches(texts):
            part = texts.rows(rows).to(self.device)
            ids_NT, mask_NT = part.pad(self.tokenizer.pad_token_id)
            hidden_NTD = self.switch.hidden(self.causal_lm, ids_NT, mask_NT, "causal")
            logp, tokens = sequence_logp(hidden_NTD, ids_NT, part.scored_NT(mask_NT), head)
            at = torch.tensor(rows, device=self.device)
            logp_N, tokens_N = logp_N.index_copy(0, at, logp), tokens_N.index_copy(0, at, tokens)
        return logp_N, tokens_N

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
        """A saved model; ``overrides`` replace saved settings (``dtype``, ``device_map``, a moved base, ...).

        Raises:
            ValueError: the folder is no complete checkpoint, or its base is another model.
        """
        return io.load(cls, Path(folder), overrides)

    def fingerprint(self) -> str:
        """A hash of all that decides an embedding: weights, attention, pooling, prompts, dtype, lengths, template."""
        return io.fingerprint(self.settings, weights_digest(self))

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

    def _head(self) -> Head:
        head = logits_head(self.causal_lm)
        if head is None or not self.switch.head_reproduced:
            raise ValueError(
                f"model type {self.config.model_type!r}: its likelihoods do not follow from its last hidden states; "
                "leave out the generation objectives (sft, dpo, kl), or use another architecture"
            )
        return head

    def _embed_padded(
        self, ids_NT: Tensor, mask_NT: Tensor, pooled_NT: Tensor, attention: Attention | None = None
    ) -> Tensor:
        hidden_NTD = self.switch.hidden(self.causal_lm, ids_NT, mask_NT, attention or self.attention)
        return self.pooler(hidden_NTD, mask_NT, pooled_NT)

    def _objective_inputs(self, batch: Batch, embed: bool, score: bool, reference: bool) -> ObjectiveInputs:
        """What objectives need of a chunk: embeddings first, so that a replay draws the same dropout."""
        shape_BP = batch.passage_mask_BP.shape
        filled: dict[str, Tensor | None] = {}
        if embed:
            filled["query_BD"] = self.embed_texts(batch.query)
            filled["passage_BPD"] = self.embed_texts(batch.passage).unflatten(0, shape_BP)
        if (score or reference) and batch.generation is None:
            raise ValueError("batch.generation: is None but likelihoods are needed; use PairCollator(generation=True)")
        if score and batch.generation is not None:
            logp_N, tokens_N = self.score_texts(batch.generation)
            filled |= {"logp_BP": logp_N.unflatten(0, shape_BP), "tokens_BP": tokens_N.unflatten(0, shape_BP)}
        if reference and batch.generation is not None:
            filled["ref_logp_BP"] = self._reference_logp(batch.generation).unflatten(0, shape_BP)
        return ObjectiveInputs.of(batch, **filled)

    @torch.no_grad()
    def _reference_logp(self, texts: Texts) -> Tensor:
        if self.peft_model is None:
            raise ValueError(
                "reference: this model has no adapter, so switching it off cannot give the original LLM; set lora_name"
            )
        with reference_mode(self, self.peft_model):
            return self.score_texts(texts)[0]
