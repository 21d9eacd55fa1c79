"""What does a GRL step cost beside one organised as the paper's public code is? A real LLM, no GPU, equal work.

    python benchmarks/grl_step.py [--queries 8] [--chunk-queries 2] [--repeats 3]

Contrastive 1, DPO 0.5, KL 1 over a positive and three negatives, all counted, the reference included; LoRA 16 under
bfloat16 autocast. The batch is of documentation of Python's own library, cut to lengths from a log-normal distribution
(median 60 tokens, at most 256). The paper's way (``paper_step.py``) holds ``--chunk-queries`` queries at a time; ours
holds no more tokens at a time than the largest of these chunks has, padding not counted. Each repetition is a process
of its own and the two take turns; memory is by how much the process grew at its highest after the model was loaded and
warmed up on one short text. The gradients of the last two are compared, in bfloat16, and with ``--check`` those of a
small batch in float32.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path

import torch
from measure import MIB, in_fresh_process, machine, measured, spread
from paper_step import paper_step
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ullme.apps.doc_sources import documented
from ullme.data import PairCollator
from ullme.gradcache import gradcache_step
from ullme.models import ULLME
from ullme.objectives import PRESETS, named, needs_of
from ullme.types import Batch, ObjectiveInputs, PairExample

SIDES = ("paper", "ours")
OBJECTIVES = PRESETS["grl"]
NEGATIVES, LONGEST = 3, 256


def load(options: argparse.Namespace) -> ULLME:
    """The model with an adapter that already does something: fresh ones have no gradient in half of their weights."""
    model = ULLME(options.model, lora_name="grl", lora_r=16, lora_alpha=32, max_length=LONGEST, dtype=options.dtype)
    generator = torch.Generator().manual_seed(options.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
    return model.train()


def batch_of(model: ULLME, queries: int, seed: int, longest: int = LONGEST) -> Batch:
    """Documentation strings end to end, cut into queries of 6 to 30 tokens and passages of skewed lengths."""
    draw = random.Random(seed)
    docs = [" ".join(d.doc.split()) for d in documented(("stdlib",))]
    draw.shuffle(docs)
    ids = model.tokenizer(" ".join(docs[:2000]), add_special_tokens=False)["input_ids"]
    start = 0

    def text(tokens: int) -> str:
        nonlocal start
        start += tokens
        return model.tokenizer.decode(ids[start - tokens : start])

    def passage() -> str:
        return text(int(min(max(draw.lognormvariate(4.1, 0.8), 8), longest)))

    examples = [
        PairExample(text(draw.randint(6, 30)), (passage(),), tuple(passage() for _ in range(NEGATIVES)), row_id=str(b))
        for b in range(queries)
    ]
    return PairCollator(model.text_tokenizer, generation=True)(examples)


def chunk_tokens(batch: Batch, chunk_queries: int) -> int:
    """Tokens of the largest of the chunks that hold a fixed number of queries."""
    return max(int(part.sum()) for part in batch.tokens_B().split(chunk_queries))


def step(model: ULLME, batch: Batch, side: str, chunk_queries: int, autocast: torch.autocast) -> float:
    """One step of a side; its total loss."""
    terms = named(OBJECTIVES)
    if side == "paper":
        return float(paper_step(model, batch, terms, chunk_queries, autocast))

    def run(chunk: Batch, needs: frozenset) -> ObjectiveInputs:
        with autocast:
            return model(batch=chunk, needs=needs)

    result = gradcache_step(
        batch,
        forward=lambda chunk: run(chunk, needs_of(OBJECTIVES)),
        embed=lambda chunk: run(chunk, frozenset({"embedding"})),
        objectives=terms,
        chunk_tokens=chunk_tokens(batch, chunk_queries),
    )
    return float(result.total)


def gradients(model: ULLME) -> dict[str, Tensor]:
    """The gradient of each parameter that has one."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def difference(found: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm, all parameters together."""
    assert found.keys() == right.keys()
    squares = [((found[n] - right[n]).double().square().sum(), right[n].double().square().sum()) for n in right]
    return float(sum(d for d, _ in squares) / sum(r for _, r in squares)) ** 0.5


def work(options: argparse.Namespace) -> dict[str, float]:
    """One measured step of one side, in this process; its gradient goes to a file."""
    torch.set_num_threads(options.threads)
    model = load(options)
    batch = batch_of(model, options.queries, options.seed)
    autocast = torch.autocast("cpu", torch.bfloat16)
    with autocast:
        model.embed_texts(batch.query.rows([0])).sum().backward()  # libraries set themselves up
    model.zero_grad(set_to_none=True)
    loss: list[float] = []
    figures = measured(lambda: loss.append(step(model, batch, options.side, options.chunk_queries, autocast)))
    torch.save(gradients(model), options.gradients)
    return {**figures, "loss": loss[0]}


def check(options: argparse.Namespace) -> float:
    """Relative difference of the two sides' gradients in float32, on a small batch in two chunks."""
    torch.set_num_threads(options.threads)
    model = load(options)
    batch = batch_of(model, 4, options.seed, longest=40)
    found = {}
    for side in SIDES:
        model.zero_grad(set_to_none=True)
        step(model, batch, side, 2, torch.autocast("cpu", torch.bfloat16, enabled=False))
        found[side] = gradients(model)
    return difference(found["ours"], found["paper"])


def describe(options: argparse.Namespace) -> str:
    """The batch in words."""
    model = load(options)
    batch = batch_of(model, options.queries, options.seed)
    lengths = batch.passage.lengths_N.tolist()
    assert batch.generation is not None
    longest = int(max(batch.query.lengths_N.max(), batch.passage.lengths_N.max()))
    padded = len(batch) * ((1 + 1 + NEGATIVES) * longest + (1 + NEGATIVES) * int(batch.generation.lengths_N.max()))
    limit = chunk_tokens(batch, options.chunk_queries)
    return (
        f"{len(batch)} queries; passages of {min(lengths)} to {max(lengths)} tokens, median "
        f"{statistics.median(lengths):.0f}, mean {statistics.mean(lengths):.0f}; {int(batch.tokens_B().sum())} tokens, "
        f"{padded} padded to the longest of the batch; chunks of {options.chunk_queries} queries, and of {limit} tokens"
    )


def table_of(found: dict[str, list[dict[str, float]]]) -> Table:
    """Medians and spreads per side, and what ours takes of the paper's."""
    table = Table("step", "seconds", "added memory (MiB)", "loss")
    for side, results in found.items():
        seconds, memory = [r["seconds"] for r in results], [r["added_bytes"] / MIB for r in results]
        table.add_row(side, spread(seconds), spread(memory, 0), f"{results[0]['loss']:.4f}")
    ratios = [
        statistics.median(r[key] for r in found["ours"]) / statistics.median(r[key] for r in found["paper"])
        for key in ("seconds", "added_bytes")
    ]
    table.add_row("ours / paper", *(f"{ratio:.3f}" for ratio in ratios), "")
    return table


def compare(options: argparse.Namespace) -> None:
    """All repetitions, each in its own process, and their table."""
    console = Console(width=110)
    console.print(machine(options.threads), describe(options), sep="\n")
    names = ("model", "dtype", "queries", "chunk_queries", "threads", "seed")
    passed = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder) / f"{side}.pt" for side in SIDES}
        for _ in range(options.repeats):
            for side in SIDES:
                own = [f"--side={side}", f"--gradients={files[side]}"]
                found[side].append(in_fresh_process(__file__, [*passed, *own]))
                console.print(side, found[side][-1])
        error = difference(*(torch.load(files[side]) for side in ("ours", "paper")))
    console.print(table_of(found), f"relative difference of the gradients, bfloat16: {error:.3g}", sep="\n")


def main() -> None:
    """Measure, or check the gradients, or be one repetition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="float32", help="of the frozen weights")
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--chunk-queries", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="compare the gradients in float32 and stop")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.check:
        print(f"relative difference of the gradients, float32: {check(options):.3g}")
    elif options.side:
        print(json.dumps(work(options)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
