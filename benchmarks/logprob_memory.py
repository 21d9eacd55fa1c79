"""What do token log-likelihoods cost without logits for all of them? Blocks against full logits, three vocabularies.

    python benchmarks/logprob_memory.py [--rows 2048] [--width 576] [--dtype bfloat16] [--head frozen] [--repeats 3]

Forward and backward of random hidden states through a random head; each repetition is a process of its own, and the two
ways take turns. Memory is by how much the process grew at its highest.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from measure import MIB, in_fresh_process, machine, measured, spread
from rich.console import Console
from rich.table import Table
from torch import nn

from ullme.models.logprob import token_logp
from ullme.models.specs import LogitsHead

VOCABULARIES = (49_152, 131_072, 262_144)
WAYS = ("blocks", "full logits")


def work(way: str, vocabulary: int, options: argparse.Namespace) -> dict[str, float]:
    """One forward and backward, in this process."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    head = LogitsHead(nn.Linear(options.width, vocabulary, bias=False), vocabulary)
    head.embedding.requires_grad_(options.head == "trained")
    hidden_XD = torch.randn(options.rows, options.width, requires_grad=True)
    target_X = torch.randint(vocabulary, (options.rows,))

    def run(rows: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bfloat16"):
            if way == "blocks":
                logp_X = token_logp(hidden_XD[:rows], target_X[:rows], head)
            else:
                logp_XV = torch.log_softmax(head(hidden_XD[:rows]).float(), -1)
                logp_X = logp_XV.gather(1, target_X[:rows, None]).squeeze(1)
        logp_X.sum().backward()

    run(8)  # what libraries set up on first use is not counted
    return measured(lambda: run(options.rows))


def table_of(found: dict[tuple[str, int], list[dict[str, float]]]) -> Table:
    """Medians and spreads per vocabulary and way, and what blocks take of full logits."""
    table = Table("vocabulary", "way", "added memory (MiB)", "seconds", "memory ratio", "time ratio")
    for vocabulary in VOCABULARIES:
        values = {
            way: (
                [r["added_bytes"] / MIB for r in found[way, vocabulary]],
                [r["seconds"] for r in found[way, vocabulary]],
            )
            for way in WAYS
        }
        whole = [statistics.median(column) for column in values["full logits"]]
        for way, (memory, seconds) in values.items():
            ratios = [f"{statistics.median(x) / w:.2f}" for x, w in zip((memory, seconds), whole, strict=True)]
            table.add_row(f"{vocabulary:,}", way, spread(memory, 0), spread(seconds, 2), *ratios)
    return table


def main() -> None:
    """Run all repetitions, each in its own process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--head", choices=("frozen", "trained"), default="frozen")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--vocabulary", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way is not None:
        print(json.dumps(work(options.way, options.vocabulary, options)))
        return
    passed = [f"--{name}={getattr(options, name)}" for name in ("rows", "width", "dtype", "head", "threads")]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for vocabulary in VOCABULARIES:
            for way in WAYS:
                own = [f"--way={way}", f"--vocabulary={vocabulary}"]
                found.setdefault((way, vocabulary), []).append(in_fresh_process(__file__, [*passed, *own]))
    Console(width=120).print(machine(options.threads), f"{vars(options)}", table_of(found), sep="\n")


if __name__ == "__main__":
    main()
