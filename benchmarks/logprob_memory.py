"""What do token log-likelihoods cost without logits for all of them? Ours against full logits, three vocabularies.

    python benchmarks/logprob_memory.py [--rows 2048] [--width 576] [--dtype bfloat16] [--head frozen] [--repeats 3]
    python benchmarks/logprob_memory.py --ways ours full kernel checkpointed --vocabularies 49152

Forward and backward of random hidden states through a random head; each repetition is a process of its own, and the
ways take turns. Memory is by how much the process grew at its highest. ``kernel`` is torch's ``linear_cross_entropy``
with our block, ``checkpointed`` computes each block's logits again in backward.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from measure import MIB, in_fresh_process, machine, measured, spread
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ullme.models.logprob import BLOCK_BYTES, token_logp
from ullme.models.specs import LogitsHead

VOCABULARIES = (49_152, 131_072, 262_144)


def full_logp(hidden_XD: Tensor, target_X: Tensor, head: LogitsHead) -> Tensor:
    """From the logits of all rows at once."""
    return torch.log_softmax(head(hidden_XD).float(), -1).gather(1, target_X[:, None]).squeeze(1)


def checkpointed_logp(hidden_XD: Tensor, target_X: Tensor, head: LogitsHead) -> Tensor:
    """From blocks whose logits are computed again in backward."""
    rows = BLOCK_BYTES["cpu"] // (4 * head.vocabulary)
    blocks = zip(hidden_XD.split(rows), target_X.split(rows), strict=True)
    return torch.cat([checkpoint(full_logp, h, t, head, use_reentrant=False) for h, t in blocks])


def kernel_logp(hidden_XD: Tensor, target_X: Tensor, head: LogitsHead) -> Tensor:
    """By torch's kernel, in the dtype of autocast where it is on: it is none of autocast's functions."""
    rows = BLOCK_BYTES["cpu"] // (4 * head.vocabulary)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden_XD.dtype
    loss_X = torch.nn.functional.linear_cross_entropy(
        hidden_XD.to(dtype),
        head.embedding.weight.to(dtype),
        target_X,
        reduction="none",
        options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows),
    )
    return -loss_X.float()


WAYS = {"ours": token_logp, "full": full_logp, "checkpointed": checkpointed_logp, "kernel": kernel_logp}


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
            logp_X = WAYS[way](hidden_XD[:rows], target_X[:rows], head)
        logp_X.sum().backward()

    run(8)  # what libraries set up on first use is not counted
    return measured(lambda: run(options.rows))


def table_of(found: dict[tuple[int, str], list[dict[str, float]]]) -> Table:
    """Medians and spreads per vocabulary and way, and what each takes of full logits."""
    table = Table("vocabulary", "way", "added memory (MiB)", "seconds", "memory ratio", "time ratio")
    for (vocabulary, way), results in found.items():
        memory, seconds = [r["added_bytes"] / MIB for r in results], [r["seconds"] for r in results]
        ratios = [
            f"{statistics.median(r[key] for r in results) / statistics.median(r[key] for r in whole):.2f}"
            for key in ("added_bytes", "seconds")
            if (whole := found.get((vocabulary, "full")))
        ]
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
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["ours", "full"])
    parser.add_argument("--vocabularies", nargs="+", type=int, default=VOCABULARIES)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--vocabulary", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way is not None:
        print(json.dumps(work(options.way, options.vocabulary, options)))
        return
    passed = [f"--{name}={getattr(options, name)}" for name in ("rows", "width", "dtype", "head", "threads")]
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for vocabulary in options.vocabularies:
            for way in options.ways:
                own = [f"--way={way}", f"--vocabulary={vocabulary}"]
                found.setdefault((vocabulary, way), []).append(in_fresh_process(__file__, [*passed, *own]))
    Console(width=120).print(machine(options.threads), f"{vars(options)}", table_of(found), sep="\n")


if __name__ == "__main__":
    main()
