"""Does ``--dry-run`` foretell the memory of a real step? Prediction against measurement, by purpose.

    python benchmarks/plan_memory.py [--model smollm2-135m-instruct] [--cases lora full] [--rows 3] [--words 90]

GRL (contrastive, DPO against the live reference, KL) with a positive and three negatives for LoRA, contrastive and SFT
for full fine-tuning, on documentation of Python's own library, through ``EmbeddingTrainer`` from a run file; planned
in one process, trained for two steps in another. Every query is a chunk, and both steps see the same rows. What is
measured of the second step, in which the optimizer has its state: the bytes of weights, gradients and optimizer as
tensors, and by how much the process's memory rose at its highest, above what it was when the step began (``step``;
freed memory is given back before) and above what it was before the model was loaded (``all``).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measure import MIB, _status, in_fresh_process, machine
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from ullme.apps.doc_sources import documented
from ullme.apps.plan import plan
from ullme.apps.run_data import build_loader, load_training_pairs
from ullme.apps.train import training_arguments
from ullme.config import RunConfig
from ullme.models import ULLME
from ullme.trainer import EmbeddingTrainer

NEGATIVES, LONGEST = 3, 256
LORA = {"name": "planned", "r": 16, "alpha": 32, "dropout": 0.2}
FULL = {"lora": None, "objectives": [{"type": "contrastive"}, {"type": "sft"}]}

#: What each case changes of a LoRA run in float32.
CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, autocast": {"bf16": True},
    "lora, bfloat16": {"dtype": "bfloat16", "bf16": True},
    "lora, recomputed": {"gradient_checkpointing": True},
    "lora, autocast, recomputed": {"bf16": True, "gradient_checkpointing": True},
    "lora, bfloat16, recomputed": {"dtype": "bfloat16", "bf16": True, "gradient_checkpointing": True},
    "lora, one chunk": {"chunk_tokens": 100_000},
    "full": FULL,
    "full, autocast, recomputed": {**FULL, "bf16": True, "gradient_checkpointing": True},
}
_OF_MODEL = ("dtype", "lora")

#: Purposes whose bytes are those of tensors, and what of the plan each is.
TENSORS = {
    "weights": ("weights", "half-precision copies"),
    "gradients": ("gradients",),
    "optimizer": ("optimizer (Adam)",),
}


@dataclass
class Measured(TrainerCallback):
    """Bytes of the last step."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    step: int = 0
    highest: int = 0
    before: int = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the highest memory start anew."""
        self.before = start_anew()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """All gradients are there."""
        self.gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """The optimizer has its state."""
        self.highest = _status("VmHWM")
        self.step = self.highest - self.before
        tensors = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        self.optimizer = sum(t.nbytes for t in tensors)


def start_anew() -> int:
    """The process's memory, from which its highest value starts anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def run_file(options: argparse.Namespace, folder: Path) -> RunConfig:
    """The run of a case, its data in the folder."""
    docs = sorted({" ".join(d.doc.split()[: options.words]) for d in documented(("stdlib",)) if len(d.doc) > 200})
    docs = docs[:: len(docs) // ((1 + NEGATIVES) * options.rows)]
    rows = [docs[i : i + 1 + NEGATIVES] for i in range(0, (1 + NEGATIVES) * options.rows, 1 + NEGATIVES)]
    pairs = [{"query": " ".join(row[0].split()[:8]), "positive": row[0], "negatives": row[1:]} for row in rows]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    model = {"name_or_path": options.model, "lora": LORA, "max_length": LONGEST}
    trainer: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "max_steps": 2,
        "per_device_train_batch_size": options.rows,
        "chunk_tokens": 1,
        "use_cpu": True,
        "report_to": "none",
    }
    run = {"model": model, "data": {"train": [{"path": str(folder / "pairs.jsonl")}]}, "trainer": trainer}
    for name, value in ({"objectives": "grl"} | CASES[options.case]).items():
        (run if name == "objectives" else model if name in _OF_MODEL else trainer)[name] = value
    return RunConfig.model_validate(run)


def planned(options: argparse.Namespace) -> dict[str, Any]:
    """The plan's bytes by purpose."""
    with tempfile.TemporaryDirectory() as folder:
        found = plan(run_file(options, Path(folder)))
        return {"memory": found.memory, "chunks": found.chunks, "source": found.memory_source}


def trained(options: argparse.Namespace) -> dict[str, int]:
    """Two steps in this process, the second one measured."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        config = run_file(options, Path(folder))
        torch.nn.functional.linear(torch.ones(64, 64), torch.ones(64, 64))  # the library sets itself up
        start = start_anew()
        model = ULLME(**config.model.settings().to_dict())
        loader = build_loader(config, load_training_pairs(config), model.text_tokenizer)
        figures = Measured()
        trainer = EmbeddingTrainer(
            model,
            config.objectives,
            training_arguments(config),
            train_loader=loader,
            chunk_tokens=config.trainer.chunk_tokens,
            callbacks=[figures],
        )
        trainer.train()
        figures.weights = sum(p.nbytes for p in model.parameters())
        return {**asdict(figures), "all": figures.highest - start}


def compare(options: argparse.Namespace) -> None:
    """Every case: planned, trained, and the ratio of the two."""
    console = Console(width=130)
    console.print(machine(options.threads))
    table = Table("predicted / measured (MiB)", *TENSORS, "step", "all")
    for case in options.cases:
        passed = [f"--{name}={getattr(options, name)}" for name in ("model", "rows", "words", "threads")]
        passed.append(f"--case={case}")
        found = in_fresh_process(__file__, [*passed, "--part=plan"])
        memory, figures = found["memory"], in_fresh_process(__file__, [*passed, "--part=train"])
        sums = {name: sum(memory.get(part, 0) for part in parts) for name, parts in TENSORS.items()}
        figures["weights"] += memory.get("half-precision copies", 0)  # held by the trainer, and seen in the sums only
        total = sum(memory.values())
        sums |= {"step": total - sums["weights"] - sums["optimizer"], "all": total}
        console.print(case, found, figures)
        table.add_row(case, *(_ratio(sums[name], figures[name]) for name in sums))
    console.print(table)


def _ratio(predicted: float, measured: float) -> str:
    return f"{predicted / MIB:.0f} / {measured / MIB:.0f} = {predicted / measured:.2f}"


PARTS = {"plan": planned, "train": trained}


def main() -> None:
    """Compare, or be one part of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--words", type=int, default=90)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is None:
        compare(options)
        return
    result = PARTS[options.part](options)
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
