"""Memory and speed of training data that is streamed from Parquet, several times larger than memory may be.

Writes files of random pairs into a scratch folder, row group by row group, and removes them afterwards. Three
processes read them: one takes a whole epoch through loader and sampler and tokenises a stated share of it, one resumes
late in the epoch, one trains a tiny model on the first batches. Linux only.

    python benchmarks/stream_data.py --folder /some/scratch --gigabytes 5
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from measure import MIB, in_fresh_process, machine
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from ullme.data import PairCollator, PairLoader, stream_pairs, train_loader
from ullme.models import ULLME
from ullme.prompts import TextTokenizer
from ullme.trainer import EmbeddingTrainer, training_arguments

GIGABYTE = 10**9
POINTS = 20
VOCABULARY = 2000


def words(count: int, rng: np.random.Generator) -> list[str]:
    """Made-up words of 2 to 9 letters."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    return ["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(count)]


def write(options: argparse.Namespace) -> int:
    """The files, each with its part of the size; the rows of all."""
    rng = np.random.default_rng(0)
    vocabulary = words(20_000, rng)
    pool = " ".join(vocabulary[i] for i in rng.integers(len(vocabulary), size=4_000_000))
    rows, share = 0, options.gigabytes * GIGABYTE / options.files
    for number in range(options.files):
        path = options.folder / f"part-{number:03d}.parquet"
        schema = pa.schema([("query", pa.string()), ("positive", pa.string()), ("negatives", pa.list_(pa.string()))])
        with pq.ParquetWriter(path, schema) as writer:
            size = 0
            while size < share:
                group: list[pa.Table] = []
                while sum(map(len, group)) < options.group_rows and size < share:
                    made = list(random_pairs(options, pool, rows, min(options.group_rows, 4096), rng))
                    rows += len(made)
                    group.append(pa.Table.from_pylist(made, schema=schema))
                    size += group[-1].nbytes  # random texts are as large on disk
                writer.write_table(pa.concat_tables(group), row_group_size=options.group_rows)
                size = path.stat().st_size
    return rows


def random_pairs(
    options: argparse.Namespace, pool: str, first: int, count: int, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Rows that differ in their number; one in fifty repeats an earlier query, as a query with two answers does."""
    texts = options.negatives + 2
    starts = rng.integers(len(pool) - 2000, size=(count, texts)).tolist()
    lengths = rng.integers(200, 1000, size=(count, texts)).tolist()
    for i in range(count):
        number = first + i if i % 50 else max(first, first + i - 50)
        cut = [pool[s : s + n] for s, n in zip(starts[i], lengths[i], strict=True)]
        yield {
            "query": f"{number} {cut[0][:60]}",
            "positive": f"{first + i} {cut[1]}",
            "negatives": [f"{first + i} {n}" for n in cut[2:]],
        }


def tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer of the files' own first rows."""
    first = next(pq.ParquetFile(sorted(folder.glob("*.parquet"))[0]).iter_batches(500, columns=["positive"]))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(first.column(0).to_pylist(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def loader_of(options: argparse.Namespace) -> PairLoader:
    """The loader that all three processes use."""
    collator = PairCollator(TextTokenizer(tokenizer_of(options.folder), max_length=128), options.negatives)
    return train_loader(
        stream_pairs(str(options.folder / "*.parquet")),
        collator,
        options.batch_size,
        shuffle_rows=options.shuffle_rows,
        num_workers=options.workers,
    )


class Memory:
    """The highest resident set since the last look, in MiB."""

    def __init__(self) -> None:
        self.peak()

    def peak(self) -> float:
        """Since the last call."""
        lines = Path("/proc/self/status").read_text().splitlines()
        Path("/proc/self/clear_refs").write_text("5")
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def read_epoch(options: argparse.Namespace) -> dict[str, Any]:
    """A whole epoch: every row read, checked and dealt, every n-th batch tokenised."""
    loader = loader_of(options)
    batches, every = loader.dataset, max(1, round(1 / options.share))
    memory, peaks, rows, tokens, tokenising = Memory(), [], 0, 0, 0.0
    begun = time.perf_counter()
    for i, refs in enumerate(loader.batch_sampler):
        examples = batches.__getitems__(refs)
        assert len({e.query for e in examples}) == len(examples), "a query twice in a batch"
        rows += len(examples)
        if i % every == 0:
            start = time.perf_counter()
            batch = loader.collate_fn(examples)
            tokens += int(batch.query.lengths_N.sum() + batch.passage.lengths_N.sum())
            tokenising += time.perf_counter() - start
        if (i + 1) * POINTS // len(loader) > i * POINTS // len(loader):
            peaks.append(memory.peak())
    seconds = time.perf_counter() - begun
    share = len(range(0, len(loader), every)) / len(loader)
    figures = {"rows": rows, "batches": len(loader), "tokens": tokens, "share": share}
    return {**figures, "peaks": peaks, "seconds": seconds, "tokenising": tokenising}


def resume(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to the first batch of an epoch, and to one late in it, each in a loader of its own."""
    found: dict[str, Any] = {}
    for name, share in (("start", 0.0), ("late", 0.9)):
        loader = loader_of(options)
        loader.load_state_dict({"epoch": 0, "batch": int(share * len(loader))})
        begun = time.perf_counter()
        next(iter(loader))
        found[name] = time.perf_counter() - begun
    return found


class Watch(TrainerCallback):
    """Notes the memory every ten steps."""

    def __init__(self) -> None:
        self.memory, self.peaks = Memory(), []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer."""
        if state.global_step % max(state.max_steps // 10, 1) == 0:
            self.peaks.append(self.memory.peak())


def train(options: argparse.Namespace) -> dict[str, Any]:
    """A tiny model on the first batches."""
    loader, folder = loader_of(options), options.folder / "model"
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model("llama", vocab_size=VOCABULARY, max_position_embeddings=512, **sizes, **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer_of(options.folder).save_pretrained(folder)
    watch = Watch()
    arguments = training_arguments(
        output_dir=str(options.folder / "run"),
        max_steps=options.steps,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        logging_steps=10,
        learning_rate=1e-3,
        disable_tqdm=True,
    )
    model = ULLME(str(folder), lora_name="tiny", max_length=128)
    trainer = EmbeddingTrainer(model, "contrastive", arguments, train_loader=loader, callbacks=[watch])
    begun = time.perf_counter()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": time.perf_counter() - begun, "peaks": watch.peaks, "losses": losses}


PHASES = {"read_epoch": read_epoch, "resume": resume, "train": train}


def tables(options: argparse.Namespace, rows: int, size: int, found: dict[str, dict[str, Any]]) -> Iterator[Any]:
    """What was found, to be read by people."""
    read, train_, resume_ = (found[name] for name in ("read_epoch", "train", "resume"))
    yield f"{size / GIGABYTE:.2f} GB in {options.files} files, {rows:,} rows; read {read['rows']:,} in "
    yield f"{read['batches']:,} batches, {read['share']:.1%} of them tokenised ({read['tokens']:,} tokens)"
    for name, peaks in (("epoch", read["peaks"]), ("training", train_["peaks"])):
        table = Table("share of " + name, "peak (MiB)", "to the first")
        for i, peak in enumerate(peaks, start=1):
            table.add_row(f"{i / len(peaks):.0%}", f"{peak:.0f}", f"{peak / peaks[0]:.3f}")
        yield table
    tokenised = read["tokenising"] / read["seconds"]
    per_second = size / MIB / (read["seconds"] - read["tokenising"])
    yield f"epoch: {read['seconds']:.0f} s, {tokenised:.0%} tokenising; {per_second:.0f} MiB of file a second else"
    ratio = resume_["late"] / resume_["start"]
    yield f"resuming at 90% of the epoch takes {ratio:.2f}x the time of its first batch ({resume_['start']:.2f} s)"
    yield f"training: {options.steps} steps in {train_['seconds']:.0f} s, losses {train_['losses']}"


def main() -> None:
    """Write the files, run the phases one after another, each in its own process, and remove the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder; a new one in it is used")
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--group-rows", type=int, default=4096)
    parser.add_argument("--negatives", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--shuffle-rows", type=int, default=16384)
    parser.add_argument("--share", type=float, default=0.05, help="share of the batches that is tokenised")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase is not None:
        print(json.dumps(PHASES[options.phase](options)))
        return
    options.folder = options.folder / "ullme-stream-data"
    options.folder.mkdir(parents=True)
    try:
        free = shutil.disk_usage(options.folder).free / GIGABYTE
        if free < 3 * options.gigabytes:
            raise SystemExit(f"{options.folder}: {free:.0f} GB are free; lower --gigabytes")
        rows = write(options)
        size = sum(path.stat().st_size for path in options.folder.glob("*.parquet"))
        named = {k: v for k, v in vars(options).items() if k != "phase"}
        passed = [f"--{name.replace('_', '-')}={value}" for name, value in named.items()]
        found = {name: in_fresh_process(__file__, [*passed, f"--phase={name}"]) for name in PHASES}
    finally:
        shutil.rmtree(options.folder)
    Console(width=120).print(machine(1), f"{named}", *tables(options, rows, size, found), sep="\n")


if __name__ == "__main__":
    main()
