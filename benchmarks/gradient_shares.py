"""Which way does each term of a loss pull the adapter, and how hard beside the contrast? On batches of a run.

    python benchmarks/gradient_shares.py --run runs/reproduce/small/grl-seed1/grl [--model FOLDER] [--batches 3]

The terms are those of GRL and of its relatives at the weights of the study. KL is taken apart into what reaches the
model through the embeddings (P_gen taken as given) and through the likelihoods (P_rt taken as given), and is shown
once more with the contrast's temperature under the similarities. Of each term: the norm of its weighted gradient as a
share of the contrast's, and the cosine of the two; mean over the batches, least and greatest. Batches are the run's
first ones; the model is its last, ``--model``'s, or with ``--fresh`` a new adapter.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path

import torch
from measure import machine, spread
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ullme.apps.run_data import build_loader, load_training_pairs
from ullme.config import RunConfig, read_run_file
from ullme.models import ULLME
from ullme.objectives import Objective, needs_of, objectives_from
from ullme.types import Batch

CONTRAST = "contrast"


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


def measure(options: argparse.Namespace) -> dict[str, tuple[list[float], list[float]]]:
    """Of each term: share of the contrast's norm, and cosine with it, in each batch."""
    config = read_run_file(options.run / "run.yaml")
    if options.fresh:
        torch.manual_seed(config.trainer.seed)
        model = ULLME(**config.model.settings().to_dict())
    else:
        model = ULLME.from_pretrained(options.model or options.run / "model")
    terms = terms_of(config)
    grl = config.model_copy(update={"objectives": list(terms.values())})  # batches with generation
    loader = build_loader(grl, load_training_pairs(grl), model.text_tokenizer)
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in terms}
    for batch in itertools.islice(loader, options.batches):
        gradient = gradients(model.train(), batch, terms, config.trainer.bf16)
        contrast = gradient[CONTRAST]
        for name, own in gradient.items():
            found[name][0].append(float(own.norm() / contrast.norm()))
            found[name][1].append(float(torch.nn.functional.cosine_similarity(own, contrast, dim=0)))
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
    table = Table("term", "norm / contrast's", "cosine with it", title=f"{which}; {machine(torch.get_num_threads())}")
    for name, (shares, cosines) in found.items():
        table.add_row(name, spread(shares, 3), spread(cosines, 3))
    Console().print(table)


if __name__ == "__main__":
    main()
