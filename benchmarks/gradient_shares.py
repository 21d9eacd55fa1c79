"""Which way does each term of GRL pull the adapter, and how hard beside the contrast? On batches of a run.

    python benchmarks/gradient_shares.py --run runs/reproduce/small/grl-seed1/grl [--model FOLDER] [--batches 3]

The terms are those of GRL and of its relatives at the weights of the study. KL is taken apart into what reaches the
model through the embeddings (P_gen taken as given) and through the likelihoods (P_rt taken as given), and is shown
once more with the contrast's temperature under the similarities. Of each term: the norm of its weighted gradient as a
share of the contrast's, the cosine of the two, and the cosine with the contrast's gradient on the run's held-out rows:
above zero, a step along the term lowers the contrast on rows that it has not seen. Median over the batches, least and
greatest. Batches are the run's first ones; the model is its last, ``--model``'s, or with ``--fresh`` a new adapter.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from measure import machine, spread
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ullme.apps.run_data import build_loader, evaluation_collator, load_training_pairs
from ullme.config import RunConfig, read_run_file
from ullme.data import load_pairs
from ullme.models import ULLME
from ullme.objectives import Objective, needs_of, objectives_from
from ullme.types import Batch

CONTRAST = "contrast"


@dataclass
class Pull:
    """A term's weighted gradient in each batch: norm over the contrast's, cosine with it, the same on unseen rows."""

    share: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    unseen: list[float] = field(default_factory=list)


def terms_of(config: RunConfig) -> dict[str, Objective]:
    """Each term with its weight, by what it is called here; the contrast is the run's."""
    contrast = next(objective for objective in config.objectives if objective.type == "contrastive")
    kl = {"type": "kl"}
    own = {"temperature_rt": contrast.temperature}
    return {
        CONTRAST: contrast,
        "sft": _one({"type": "sft", "weight": 0.5}),
        "dpo": _one({"type": "dpo", "weight": 0.5}),
        "kl, to embeddings": _one({**kl, "stop_gradient": "gen"}),
        "kl, to likelihoods": _one({**kl, "stop_gradient": "rt"}),
        "kl at s_rt / T, to embeddings": _one({**kl, **own, "stop_gradient": "gen"}),
        "kl at s_rt / T, to likelihoods": _one({**kl, **own, "stop_gradient": "rt"}),
    }


def _one(values: Mapping[str, object]) -> Objective:
    return objectives_from([values])[0]


def gradients(model: ULLME, batch: Batch, terms: Mapping[str, Objective], autocast: bool) -> dict[str, Tensor]:
    """The gradient of each term's weighted mean with respect to all that is trained, as one vector."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = model.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
        inputs = model(batch=batch, needs=needs_of(terms.values()))
        losses = {name: term.weight * term(inputs).mean() for name, term in terms.items()}
    found = {}
    for name, loss in losses.items():
        parts = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        found[name] = torch.cat([part.flatten() for part in parts]).double()
    return found


def unseen_gradient(model: ULLME, config: RunConfig, contrast: Objective) -> Tensor:
    """The contrast's gradient on the held-out rows."""
    rows, size = load_pairs(config.data.eval), config.trainer.per_device_eval_batch_size
    collate = evaluation_collator(config, model.text_tokenizer)
    batches = [collate(rows.__getitems__(range(i, min(i + size, len(rows))))) for i in range(0, len(rows), size)]
    found = [gradients(model, batch, {CONTRAST: contrast}, config.trainer.bf16)[CONTRAST] for batch in batches]
    return torch.stack(found).mean(0)


def measure(options: argparse.Namespace) -> dict[str, Pull]:
    """How each term pulls."""
    config = read_run_file(options.run / "run.yaml")
    if options.fresh:
        torch.manual_seed(config.trainer.seed)
        model = ULLME(**config.model.settings().to_dict())
    else:
        model = ULLME.from_pretrained(options.model or options.run / "model")
    model.train()
    terms = terms_of(config)
    unseen = unseen_gradient(model, config, terms[CONTRAST])
    grl = config.model_copy(update={"objectives": list(terms.values())})  # its batches bring texts to be generated
    loader = build_loader(grl, load_training_pairs(grl), model.text_tokenizer)
    found = {name: Pull() for name in terms}
    for batch in itertools.islice(loader, options.batches):
        gradient = gradients(model, batch, terms, config.trainer.bf16)
        contrast = gradient[CONTRAST]
        for name, own in gradient.items():
            found[name].share.append(float(own.norm() / contrast.norm()))
            found[name].cosine.append(float(torch.cosine_similarity(own, contrast, dim=0)))
            found[name].unseen.append(float(torch.cosine_similarity(own, unseen, dim=0)))
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run")
    parser.add_argument("--model", type=Path, help="another model's folder; default the run's")
    parser.add_argument("--fresh", action="store_true", help="a new adapter in place of a trained model")
    parser.add_argument("--batches", type=int, default=3)
    options = parser.parse_args()
    found = measure(options)
    which = "fresh adapter" if options.fresh else str(options.model or options.run)
    head = ("term", "norm / contrast's", "cosine with it", "cosine with it on unseen rows")
    table = Table(*head, title=f"{which}; {machine(torch.get_num_threads())}")
    for name, pull in found.items():
        table.add_row(name, spread(pull.share, 3), spread(pull.cosine, 3), spread(pull.unseen, 3))
    Console().print(table)


if __name__ == "__main__":
    main()
