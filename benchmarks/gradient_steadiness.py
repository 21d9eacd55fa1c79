"""How steep is the beginning of a run, and how much of its first gradients is rounding?

    python benchmarks/gradient_steadiness.py runs/reproduce/small/bi_cl-seed0/bi_cl [MORE RUNS] [--batches 3]

Each run is put back to its beginning, a new adapter, and given its first batches in float32 and under autocast to
bfloat16. Of the gradient of the contrast: its norm in both, and the cosine of the two, which is 1 where rounding
changes nothing. Median over the batches, least and greatest.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from gradient_shares import CONTRAST, gradients
from measure import machine, spread

from ullme.apps.run_data import build_loader, load_training_pairs
from ullme.config import read_run_file
from ullme.models import ULLME


def steadiness(run: Path, batches: int) -> tuple[list[float], list[float], list[float]]:
    """Of each batch: the gradient's norm in float32 and in bfloat16, and the cosine of the two."""
    config = read_run_file(run / "run.yaml")
    contrast = next(objective for objective in config.objectives if objective.type == "contrastive")
    config = config.model_copy(update={"objectives": [contrast]})
    torch.manual_seed(config.trainer.seed)
    model = ULLME(**{**config.model.settings().to_dict(), "dtype": "float32"}).train()
    model.gradient_checkpointing_enable()
    exact, rounded, cosine = [], [], []
    loader = build_loader(config, load_training_pairs(config), model.text_tokenizer)
    for batch in itertools.islice(loader, batches):
        full, half = (gradients(model, batch, {CONTRAST: contrast}, autocast)[CONTRAST] for autocast in (False, True))
        exact.append(float(full.norm()))
        rounded.append(float(half.norm()))
        cosine.append(float(torch.cosine_similarity(full, half, dim=0)))
    return exact, rounded, cosine


def main() -> None:
    """Measure and print one run after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--batches", type=int, default=3)
    options = parser.parse_args()
    print(f"new adapters, {options.batches} batches; {machine(torch.get_num_threads())}")
    for run in options.runs:
        exact, rounded, cosine = (spread(values, 3) for values in steadiness(run, options.batches))
        print(f"{run.name}: norm {exact} in float32, {rounded} in bfloat16; cosine {cosine}", flush=True)


if __name__ == "__main__":
    main()
