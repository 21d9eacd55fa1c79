"""GradCacheTrainer: the paper's keywords (Listing 2), translated for EmbeddingTrainer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from transformers.trainer_utils import TrainOutput

from ullme.models import ULLME
from ullme.objectives import DPO, KL, SFT, Contrastive, Objective
from ullme.objectives.contrastive import LOSS_ALIASES
from ullme.trainer.arguments import training_arguments
from ullme.trainer.embedding import CHUNK_TOKENS, EmbeddingTrainer
from ullme.types import Batch

#: The paper's names of generation losses; its public code calls DPO "sigmoid".
GENERATION_LOSSES: dict[str, type[Objective]] = {"sft": SFT, "dpo": DPO, "sigmoid": DPO}
CONTRASTIVE_LOSSES = ("NTXentLoss", "SupConLoss", *LOSS_ALIASES)


class GradCacheTrainer:
    """Trains a model by the paper's recipes: contrastive, a generation loss, and their KL (GRL, section 3).

    Args:
        con_loss_type: ``NTXentLoss`` (also ``InfoNCE``), ``SupConLoss``, or None.
        gen_loss_type: ``dpo``, ``sft``, or None.
        use_kl_loss: align the query's passages' scores in the two spaces.
        con_loss_weight: lambda of the contrastive loss.
        gen_loss_weight: lambda of the generation loss.
        kl_loss_weight: lambda of the KL loss.
        temperature: of the contrastive loss.
        beta: of DPO.
        contrastive: further options of :class:`ullme.objectives.Contrastive`.
        chunk_tokens: tokens of one forward pass; the gradient does not depend on it.
        num_epochs: calls of ``fit_epoch`` that the learning-rate schedule spans; None keeps the rate constant (after
            any warm-up), since the number of calls is then unknown.
        output_dir: where logs and checkpoints go.
        **arguments: any of ``transformers.TrainingArguments``; nothing is saved unless ``save_strategy`` says so.

    Raises:
        ValueError: a name is unknown; the message offers the nearest right one.
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
        beta: float = 0.1,
        contrastive: dict[str, Any] | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
        num_epochs: int | None = None,
        output_dir: str = "ullme_output",
        **arguments: Any,
    ) -> None:
        terms: list[Objective] = []
        if con_loss_type is not None:
            _require("con_loss_type", con_loss_type, CONTRASTIVE_LOSSES)
            options = {"loss": con_loss_type, "temperature": temperature, **(contrastive or {})}
            terms.append(Contrastive(weight=con_loss_weight, **options))
        if gen_loss_type is not None:
            kind = GENERATION_LOSSES[_require("gen_loss_type", gen_loss_type, GENERATION_LOSSES)]
            options = {"beta": beta} if "beta" in kind.model_fields else {}
            terms.append(kind(weight=gen_loss_weight, **options))
        if use_kl_loss:
            terms.append(KL(weight=kl_loss_weight))
        if not terms:
            raise ValueError("con_loss_type: None leaves nothing to train; give it, gen_loss_type or use_kl_loss")
        self.objectives = tuple(terms)
        self.chunk_tokens, self.num_epochs = chunk_tokens, num_epochs
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
            self.trainer = EmbeddingTrainer(model, self.objectives, self.args, chunk_tokens=self.chunk_tokens)
        if self.trainer.model is not model:
            raise ValueError("model: is another than in the first call; make a new GradCacheTrainer for it")
        output = self.trainer.fit_epoch(train_loader, planned_epochs=self.num_epochs or 1)
        self._epochs += 1
        return output


def _require(field: str, name: str, known: Iterable[str]) -> str:
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name.lower(), known, n=1) or difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{field}: {name!r} is not available; {hint}choose from {', '.join(known)}")
