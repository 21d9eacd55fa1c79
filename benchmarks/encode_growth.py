"""Does encoding take time in proportion to the tokens, and memory that does not grow with the corpus? No GPU.

    python benchmarks/encode_growth.py [--rows 1000 ...] [--repeats 2] [--shard-rows 4096]

A tiny random model encodes texts of few words from a JSONL file into a folder on disk; each size in a fresh process,
the sizes one after the other in each repetition. Time per token is of the processor (one thread computes, one reads
ahead), which other work on the machine lengthens less than the clock's. Memory is what the resident set rose by while
it encoded, after a first, small corpus. A second table has longer texts at a fixed number of rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from encode_inputs import write_model, write_texts
from measure import MIB, in_fresh_process, machine, measured, spread
from rich.console import Console
from rich.table import Table

ROWS = (1_000, 5_000, 20_000, 80_000, 200_000)
LENGTHS = (4, 8, 16, 32, 64)
FIXED_ROWS, FIXED_WORDS = 5_000, 8


def part(options: argparse.Namespace) -> dict[str, Any]:
    """One corpus in this process."""
    from ullme.encode import EncodeOptions, TextSource, encode_corpus
    from ullme.models import ULLME

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = ULLME(str(write_model(folder / "model")))
        stored = EncodeOptions(shard_rows=options.shard_rows)
        warm = TextSource(write_texts(folder / "warm.jsonl", 1000, options.words, seed=1))
        encode_corpus(lambda device: model, warm, folder / "warm", stored)
        source = TextSource(write_texts(folder / "texts.jsonl", options.part, options.words))
        tokens = count_tokens(model, source)
        before = time.process_time()
        figures = measured(lambda: encode_corpus(lambda device: model, source, folder / "out", stored))
        return {**figures, "cpu_seconds": time.process_time() - before, "tokens": tokens}


def count_tokens(model: Any, source: Any) -> int:
    """Tokens of all texts, as the model reads them."""
    texts = (row.text for row in source.rows())
    return sum(
        model.text_tokenizer.texts(block).ids_X.shape[0] for block in iter(lambda: list(islice(texts, 1000)), [])
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS), help="mean words of a text")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--shard-rows", type=int, default=4096)
    parser.add_argument("--words", type=int, default=FIXED_WORDS)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(part(options)))
        return
    sizes = [(rows, FIXED_WORDS) for rows in options.rows] + [(FIXED_ROWS, words) for words in options.lengths]
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for _ in range(options.repeats):
        for rows, words in dict.fromkeys(sizes):
            own = [f"--part={rows}", f"--words={words}", f"--shard-rows={options.shard_rows}"]
            found.setdefault((rows, words), []).append(in_fresh_process(__file__, own))
    console = Console()
    console.print(f"{machine(1)}; shards of {options.shard_rows} rows")
    console.print(table("rows", [(rows, FIXED_WORDS) for rows in options.rows], found, at=0))
    console.print(table("words", [(FIXED_ROWS, words) for words in options.lengths], found, at=1))


def table(
    what: str, sizes: list[tuple[int, int]], found: dict[tuple[int, int], list[dict[str, Any]]], at: int
) -> Table:
    """Figures by one side of the size, time per token against its median over the sizes."""
    per_token = {size: [f["cpu_seconds"] / f["tokens"] for f in found[size]] for size in sizes}
    middle = statistics.median(statistics.median(values) for values in per_token.values()) if sizes else 1.0
    shown = Table(what, "tokens", "time, s", "of the processor, s", "per token, ratio", "added memory, MiB")
    for size in sizes:
        runs = found[size]
        shown.add_row(
            f"{size[at]}",
            f"{runs[0]['tokens']}",
            spread([f["seconds"] for f in runs]),
            spread([f["cpu_seconds"] for f in runs]),
            spread([value / middle for value in per_token[size]], 2),
            spread([f["added_bytes"] / MIB for f in runs]),
        )
    return shown


if __name__ == "__main__":
    main()
