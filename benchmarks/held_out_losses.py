"""Does every loss of every preset fall on rows that training never saw? A real LLM, fifty steps, no GPU.

    python benchmarks/held_out_losses.py --output runs/held_out_losses [--preset grl ...]

Each preset trains a fresh LoRA adapter on pairs from the documentation of installed packages and is evaluated on
held-out pairs before, during and after. A preset that is done is not run again; one that was interrupted resumes. The
table at the end, and ``held_out_losses.json`` in the output folder, hold every figure.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers.trainer_utils import get_last_checkpoint, set_seed

from ullme.apps.doc_pairs import doc_pairs
from ullme.apps.run_data import build_collator
from ullme.config import RunConfig
from ullme.data import PairDataset, train_loader
from ullme.models import ULLME
from ullme.objectives import PRESETS
from ullme.trainer import EmbeddingTrainer, training_arguments
from ullme.types import PairExample

RESULTS = "held_out_losses.json"


def rows_for(preset: str, negatives: int, held_out: int) -> tuple[list[PairExample], list[PairExample]]:
    """Training and held-out rows from different subpackages' functions; texts alone for what needs no pairs."""
    rows = [r for r in doc_pairs(negatives=negatives, passage_words=20).train if len(r.negatives) == negatives]
    if preset in ("mntp", "simcse"):
        rows = [replace(r, query=r.positives[0], negatives=()) for r in rows]
    units = sorted({r.source for r in rows})
    kept = set(units[::6])  # every sixth subpackage is held out
    unseen = [r for r in rows if r.source in kept]
    return [r for r in rows if r.source not in kept], unseen[:: max(1, len(unseen) // held_out)][:held_out]


def run(preset: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The evaluations of a preset: one entry per evaluated step."""
    train_rows, unseen = rows_for(preset, options.negatives, options.held_out)
    folder = options.output / preset
    dropout = {"dropout": 0.1} if preset == "simcse" else {}
    config = RunConfig.model_validate(
        {
            "model": {
                "name_or_path": options.model,
                "lora": {"name": preset, **dropout},
                "max_length": 64,
                "dtype": "bfloat16",
            },
            "data": {"train": [{"path": "documentation"}]},
            "objectives": preset,
            "trainer": {"output_dir": folder},
        }
    )
    set_seed(options.seed)
    model = ULLME(**config.model.settings().to_dict())
    collator = build_collator(config, model.text_tokenizer)
    arguments = training_arguments(
        output_dir=str(folder),
        max_steps=options.steps,
        learning_rate=2e-4,
        warmup_steps=5,
        bf16=True,
        use_cpu=True,
        save_steps=10,
        save_total_limit=1,
        logging_steps=5,
        eval_strategy="steps",
        eval_steps=options.steps // 2,
        per_device_eval_batch_size=16,
        report_to="none",
        seed=options.seed,
    )
    trainer = EmbeddingTrainer(
        model,
        config.objectives,
        arguments,
        train_loader=train_loader(PairDataset.from_examples(train_rows), collator, options.batch_size),
        eval_dataset=PairDataset.from_examples(unseen),
        data_collator=collator,
    )
    last = get_last_checkpoint(str(folder)) if folder.exists() else None
    before = folder / "before.json"
    if not before.exists():
        folder.mkdir(parents=True, exist_ok=True)
        before.write_text(json.dumps({"step": 0, **trainer.evaluate()}))
    trainer.train(resume_from_checkpoint=last)
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry and entry["step"]]
    return [json.loads(before.read_text()), *history]


def table_of(results: dict[str, list[dict[str, Any]]]) -> Table:
    """Every metric of the evaluations, first and last."""
    table = Table("preset", "held-out rows", "before", "after", "change")
    for preset, entries in results.items():
        skipped = ("runtime", "per_second", "step", "epoch")
        for name in [n for n in entries[0] if n.startswith("eval_") and not n.endswith(skipped)]:
            first, last = entries[0][name], entries[-1][name]
            table.add_row(preset, name.removeprefix("eval_"), f"{first:.4f}", f"{last:.4f}", f"{last - first:+.4f}")
    return table


def main() -> None:
    """Run the presets that have no result yet, and print all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/held_out_losses"))
    parser.add_argument("--preset", action="append", choices=PRESETS, help="default: all")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--negatives", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    path = options.output / RESULTS
    results = json.loads(path.read_text()) if path.exists() else {}
    for preset in options.preset or PRESETS:
        if preset not in results:
            results[preset] = run(preset, options)
            options.output.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=1))
    Console(width=100).print(table_of(results))


if __name__ == "__main__":
    main()
