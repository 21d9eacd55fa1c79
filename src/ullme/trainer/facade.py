"""GradCacheTrainer: the paper's keywords (Listing 2), translated for EmbeddingTrainer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from transformers.trainer_utils import TrainOutput

from ullme.extension import is_import_path
from ullme.models import ULLME
from ullme.objectives import Objective, objectives_from
from ullme.objectives.contrastive import LOSS_ALIASES
from ullme.trainer.arguments import training_arguments
from ullme.trainer.embedding import CHUNK_TOKENS, EmbeddingTrainer
from ullme.trainer.reference_table import ReferenceTable
from ullme.types import Batch

#: The names of generation losses and the objectives' own; TRL and the paper's public code call DPO "sigmoid".
GENERATION_LOSSES: dict[str, str] = {
    **{name: name for name in ("sft", "dpo", "ipo", "hinge", "kto", "cpo", "simpo", "orpo")},
    "sigmoid": "dpo",
}
CONTRASTIVE_LOSSES = ("NTXentLoss", "SupConLoss", *LOSS_ALIASES)


class GradCacheTrainer:
    """Trains a model by the paper's recipes: contrastive, a generation loss, and their KL (GRL, section 3).

    Args:
        con_loss_type: ``NTXentLoss`` (also ``InfoNCE``), ``SupConLoss``, or None.
        gen_loss_type: ``sft``, ``dpo`` (also ``sigmoid``), ``ipo``, ``hinge``, ``kto``, ``cpo``, ``simpo``, ``orpo``;
            the import path of an objective outside ullme; or None.
        use_kl_loss: align the query's passages' scores in the two spaces.
        con_loss_weight: lambda of the contrastive loss.
        gen_loss_weight: lambda of the generation loss.
        kl_loss_weight: lambda of the KL loss.
        temperature: of the contrastive loss.
        beta: of the generation loss; None takes its own default, 0.1 for DPO.
        contrastive: further options of :class:`ullme.objectives.Contrastive`.
        generation: further options of the generation loss, such as ``{"label_smoothing": 0.1}``.
        kl: further options of :class:`ullme.objectives.KL`.
        reference: likelihoods under the original LLM (``compute_reference``); None takes the model without its adapter.
        chunk_tokens: tokens of one forward pass; the gradient does not depend on it.
        num_epochs: calls of ``fit_epoch`` that the learning-rate schedule spans; None keeps the rate constant (after
            any warm-up), since the number of calls is then unknown.
        output_dir: where logs and checkpoints go.
        **arguments: of ``transformers.TrainingArguments``; nothing is saved unless ``save_strategy`` says so.

    Raises:
        ValueError: a name is unknown (the message offers the nearest right one), a value does not fit, or there are
            options of a loss that is not asked for.
    """

    def __init__(
        self,
        con_loss_type: str | None = "NTXentLoss",
        gen_loss_type: str | None = None,
        use_kl_loss: bool = False,
        *,
        con_loss_weight: float = 1.0,
        gen_loss_weight: float = 0.5,
        kl_loss_weight: float = 1.0,
        temperature: float = 0.05,
        beta: float | None = None,
        contrastive: Mapping[str, Any] | None = None,
        generation: Mapping[str, Any] | None = None,
        kl: Mapping[str, Any] | None = None,
        reference: ReferenceTable | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
        num_epochs: int | None = None,
        output_dir: str = "ullme_output",
        **arguments: Any,
    ) -> None:
        if con_loss_type is not None:
            _require("con_loss_type", con_loss_type, CONTRASTIVE_LOSSES)
        if gen_loss_type is not None and not is_import_path(gen_loss_type):
            gen_loss_type = GENERATION_LOSSES[_require("gen_loss_type", gen_loss_type, GENERATION_LOSSES)]
        own = {"loss": con_loss_type, "temperature": temperature} if con_loss_type else {}
        of_contrastive = {**own, **(contrastive or {})}
        of_generation = {**({} if beta is None else {"beta": beta}), **(generation or {})}
        self.objectives = (
            *_term("con_loss_type", "contrastive" if con_loss_type else None, con_loss_weight, of_contrastive),
            *_term("gen_loss_type", gen_loss_type, gen_loss_weight, of_generation),
            *_term("use_kl_loss", "kl" if use_kl_loss else None, kl_loss_weight, kl or {}),
        )
        if not self.objectives:
            raise ValueError("con_loss_type: None leaves nothing to train; give it, gen_loss_type or use_kl_loss")
        self.reference, self.chunk_tokens, self.num_epochs = reference, chunk_tokens, num_epochs
        schedule = "constant_with_warmup" if num_epochs is None else "linear"
        defaults = {"save_strategy": "no", "lr_scheduler_type": schedule}
        self.args = training_arguments(output_dir=output_dir, **{**defaults, **arguments})
        self.trainer: EmbeddingTrainer | None = None
        self._epochs = 0

    def fit_epoch(self, model: ULLME, train_loader: Iterable[Batch]) -> TrainOutput:
        """Train the model for one epoch over a loader of ``Batch``; later calls keep optimizer and schedule.

        Raises:
            ValueError: the batches lack what an objective needs, the model is another than before, or all the epochs
                that the schedule spans are done.
        """
        if self.num_epochs is not None and self._epochs >= self.num_epochs:
            raise ValueError(f"num_epochs: all {self.num_epochs} epochs of the schedule are done; raise num_epochs")
        if self.trainer is None:
            self.trainer = EmbeddingTrainer(
                model, self.objectives, self.args, reference=self.reference, chunk_tokens=self.chunk_tokens
            )
        if self.trainer.model is not model:
            raise ValueError("model: is another than in the first call; make a new GradCacheTrainer for it")
        output = self.trainer.fit_epoch(train_loader, planned_epochs=self.num_epochs or 1)
        self._epochs += 1
        return output


def _term(field: str, kind: str | None, weight: float, options: Mapping[str, Any]) -> tuple[Objective, ...]:
    """The objective of this kind with these options; none for None, which must not come with options."""
    if kind is not None:
        return objectives_from({"type": kind, "weight": weight, **options})
    if options:
        raise ValueError(
            f"{field}: is off, yet there are options of its loss ({', '.join(options)}); set it or drop them"
        )
    return ()


def _require(field: str, name: str, known: Iterable[str]) -> str:
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5) or difflib.get_close_matches(
        name, known, n=1
    )
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{field}: {name!r} is not available; {hint}choose from {', '.join(known)}")
