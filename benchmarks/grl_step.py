"""What does a GRL step cost beside one organised as the paper's public code is? A real LLM, no GPU, equal work.

    python benchmarks/grl_step.py [--queries 8] [--negatives 3] [--chunk-queries 2] [--repeats 3] [--dtype bfloat16]

Contrastive 1, DPO 0.5, KL 1 over a positive and its negatives, all counted, the reference included; LoRA 16 in
float32 on frozen weights of ``--dtype``, under bfloat16 autocast. The batch is of documentation of Python's own
library, cut to lengths from a log-normal distribution (median 60 tokens, at most 256). The paper's way
(``paper_step.py``) holds ``--chunk-queries`` queries at a time; ours holds half as many tokens again as these have on
average, padding not counted.

First the two gradients are compared, on a small batch in float32. Then each repetition is a process of its own and the
two take turns; memory is by how much the process grew at its highest after the model was loaded and warmed up on one
short text.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from contextlib import nullcontext

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
from ullme.models.half import HalfWeights
from ullme.objectives import PRESETS, named, needs_of
from ullme.types import Batch, ObjectiveInputs, PairExample

SIDES = ("ours", "paper")  # in this order where one process runs both: the second takes the fused LoRA layers away
OBJECTIVES = PRESETS["grl"]
LONGEST = 256

#: Relative difference of two gradients that are the same in float32.
SAME_GRADIENT = 1e-3


def load(options: argparse.Namespace) -> ULLME:
    """The model with an adapter that already does something: fresh ones have no gradient in half of their weights."""
    model = ULLME(options.model, lora_name="grl", lora_r=16, lora_alpha=32, max_length=LONGEST, dtype=options.dtype)
    generator = torch.Generator().manual_seed(options.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.001)
    return model.train()


def batch_of(model: ULLME, queries: int, negatives: int, seed: int, longest: int = LONGEST) -> Batch:
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
        PairExample(text(draw.randint(6, 30)), (passage(),), tuple(passage() for _ in range(negatives)), row_id=str(b))
        for b in range(queries)
    ]
    return PairCollator(model.text_tokenizer, generation=True)(examples)


def chunk_tokens(batch: Batch, chunk_queries: int) -> int:
    """Half as many tokens again as the queries have that the paper's way holds at a time, on average over the batch."""
    return math.ceil(1.5 * int(batch.tokens_B().sum()) * chunk_queries / len(batch))


def step(model: ULLME, batch: Batch, side: str, chunk_queries: int, autocast: torch.autocast) -> float:
    """One step of a side; its total loss."""
    terms = named(OBJECTIVES)
    if side == "paper":
        return float(paper_step(model, batch, terms, chunk_queries, autocast))

    def run(chunk: Batch, needs: frozenset) -> ObjectiveInputs:
        with autocast:
            return model(batch=chunk, needs=needs)

    half_weights = HalfWeights(model, torch.bfloat16)  # as the trainer has them; none where they are bfloat16 already
    with half_weights.used() if autocast._enabled else nullcontext():
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
    """One measured step of one side, in this process."""
    torch.set_num_threads(options.threads)
    model = load(options)
    batch = batch_of(model, options.queries, options.negatives, options.seed)
    autocast = torch.autocast("cpu", torch.bfloat16)
    with autocast:
        model.embed_texts(batch.query.rows([0])).sum().backward()  # libraries set themselves up
    model.zero_grad(set_to_none=True)
    loss: list[float] = []
    figures = measured(lambda: loss.append(step(model, batch, options.part, options.chunk_queries, autocast)))
    return {**figures, "loss": loss[0]}


def check(options: argparse.Namespace) -> dict[str, float]:
    """Relative difference of the two sides' gradients in float32, on a small batch in two chunks."""
    torch.set_num_threads(options.threads)
    options.dtype = "float32"
    model = load(options)
    batch = batch_of(model, 4, options.negatives, options.seed, longest=40)
    found = {}
    for side in SIDES:
        model.zero_grad(set_to_none=True)
        step(model, batch, side, 2, torch.autocast("cpu", torch.bfloat16, enabled=False))
        found[side] = gradients(model)
    return {"difference": difference(found["ours"], found["paper"])}


def describe(options: argparse.Namespace) -> str:
    """The batch in words."""
    model = load(options)
    batch = batch_of(model, options.queries, options.negatives, options.seed)
    lengths = batch.passage.lengths_N.tolist()
    assert batch.generation is not None
    longest = int(max(batch.query.lengths_N.max(), batch.passage.lengths_N.max()))
    passages = 1 + options.negatives
    padded = len(batch) * ((1 + passages) * longest + passages * int(batch.generation.lengths_N.max()))
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
    names = ("model", "dtype", "queries", "negatives", "chunk_queries", "threads", "seed")
    passed = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    error = in_fresh_process(__file__, [*passed, "--part=check"])["difference"]
    assert error < SAME_GRADIENT, f"the two sides' gradients differ by {error:.3g}"
    console.print(machine(options.threads), describe(options), f"gradients differ by {error:.2g} in float32", sep="\n")
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for i in range(options.repeats):
        for side in SIDES if i % 2 else reversed(SIDES):
            found[side].append(in_fresh_process(__file__, [*passed, f"--part={side}"]))
            console.print(side, found[side][-1])
    console.print(table_of(found))


def main() -> None:
    """Compare, or be one part of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--negatives", type=int, default=3)
    parser.add_argument("--chunk-queries", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=(*SIDES, "check"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is None:
        compare(options)
    else:
        print(json.dumps(check(options) if options.part == "check" else work(options)))


if __name__ == "__main__":
    main()
