"""Tokens per second of each model: embedding, and training with each loss. On the GPU where there is one, else the CPU.

    python benchmarks/throughput.py [--models smollm2-135m-instruct gemma3-270m] [--dtypes bfloat16 float32]
                                    [--length 128] [--batch-size 8] [--negatives 1] [--repeats 3] --output FOLDER

Every text has ``--length`` tokens, so nothing is padding. Embedding is ``model.encode`` of 8 batches with its defaults.
A training step is forward, backward and AdamW of LoRA 16 on ``--batch-size`` rows of a query, a positive and
``--negatives`` negatives, through the trainer; each text is counted once, whatever the loss makes of it (GRL also reads
them to generate, and once more as the reference). Weights are of the dtype, LoRA is float32; a step runs under bfloat16
autocast where the weights are bfloat16. Each repetition is a process of its own, and all of them take turns. Writes
``throughput.md`` and ``throughput.csv`` after each; the same command goes on where it was stopped, and one with more
models, dtypes or repetitions measures what is missing. Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measure import in_fresh_process, machine, spread
from rich.progress import track
from transformers import TrainerCallback

from ullme.apps.doc_sources import documented
from ullme.apps.run_data import build_loader, load_training_pairs
from ullme.apps.train import training_arguments
from ullme.config import RunConfig
from ullme.files import written
from ullme.models import ULLME
from ullme.trainer import EmbeddingTrainer

#: What is measured: embedding, and the objectives of a training step by the name of their preset.
WORK = ("encode", "contrastive", "grl_sft", "grl")
ENCODED_BATCHES = 8
#: A model, a dtype and a work.
Case = tuple[str, str, str]
#: Steps before the measured ones, in which libraries set themselves up, and the measured ones.
WARM_STEPS, STEPS = 1, 3


class StepTimes(TrainerCallback):
    """Seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the device, and look at the clock."""
        self._began = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights are changed."""
        self.seconds.append(now() - self._began)


def now() -> float:
    """The clock, once the device has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def texts_of(model: ULLME, count: int, length: int) -> list[str]:
    """Documentation of Python's own library, cut into texts of exactly so many tokens each."""
    docs = [" ".join(d.doc.split()) for d in documented(("stdlib",))]
    random.Random(0).shuffle(docs)
    ids = model.tokenizer(" ".join(docs), add_special_tokens=False)["input_ids"]
    texts: list[str] = []
    for start in itertools.count(0, length):
        if len(texts) == count or start + length > len(ids):
            break
        text = model.tokenizer.decode(ids[start : start + length - specials(model)])
        if len(model.tokenizer(text)["input_ids"]) == length:
            texts.append(text)
    assert len(texts) == count, f"{len(texts)} of {count} texts; give a smaller --length or --batch-size"
    return texts


def specials(model: ULLME) -> int:
    """Tokens that the tokenizer adds to a text, such as Gemma's first."""
    return len(model.tokenizer("a")["input_ids"]) - len(model.tokenizer("a", add_special_tokens=False)["input_ids"])


def encoding(options: argparse.Namespace) -> dict[str, float]:
    """Tokens and seconds of encoding."""
    model = ULLME(options.model, dtype=options.dtype, max_length=options.length)
    texts = texts_of(model, ENCODED_BATCHES * options.batch_size, options.length)
    model.encode(texts[: options.batch_size], batch_size=options.batch_size)
    start = now()
    model.encode(texts, batch_size=options.batch_size)
    return {"tokens": len(texts) * options.length, "seconds": now() - start}


def run_file(options: argparse.Namespace, folder: Path) -> RunConfig:
    """A few steps of training with the loss."""
    trainer = {
        "output_dir": str(folder / "run"),
        "max_steps": WARM_STEPS + STEPS,
        "per_device_train_batch_size": options.batch_size,
        "bf16": options.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
    }
    model = {"name_or_path": options.model, "dtype": options.dtype, "max_length": options.length}
    return RunConfig.model_validate(
        {
            "model": {**model, "lora": {"name": "measured", "r": 16, "alpha": 32}},
            "data": {"train": [{"path": str(folder / "pairs.jsonl")}], "negatives_per_query": options.negatives},
            "objectives": options.work,
            "trainer": trainer,
        }
    )


def training(options: argparse.Namespace) -> dict[str, float]:
    """Tokens and seconds of the measured steps."""
    with tempfile.TemporaryDirectory() as name:
        config = run_file(options, Path(name))
        model = ULLME(**config.model.settings().to_dict())
        rows, width = (WARM_STEPS + STEPS) * options.batch_size, 2 + options.negatives
        texts = texts_of(model, rows * width, options.length)
        with (Path(name) / "pairs.jsonl").open("w") as file:
            for start in range(0, len(texts), width):
                query, positive, *negatives = texts[start : start + width]
                file.write(json.dumps({"query": query, "positive": positive, "negatives": negatives}) + "\n")
        times = StepTimes()
        EmbeddingTrainer(
            model,
            config.objectives,
            training_arguments(config),
            train_loader=build_loader(config, load_training_pairs(config), model.text_tokenizer),
            chunk_tokens=config.trainer.chunk_tokens,
            callbacks=[times],
        ).train()
    return {"tokens": options.batch_size * width * options.length, "seconds": statistics.median(times.seconds[1:])}


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One figure, in this process."""
    if options.threads:
        torch.set_num_threads(options.threads)
    found = encoding(options) if options.work == "encode" else training(options)
    return {"tokens_per_second": found["tokens"] / found["seconds"]}


def rows_of(found: dict[Case, list[float]]) -> list[list[str]]:
    """A row per model and dtype, with the figures of each work."""
    shown = {case: spread(rates, 0) for case, rates in found.items() if rates}
    pairs = dict.fromkeys((model, dtype) for model, dtype, _ in shown)
    return [[*pair, *(shown.get((*pair, work), "") for work in WORK)] for pair in pairs]


def measured_on(options: argparse.Namespace) -> dict[str, str]:
    """What all figures of a table share."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else machine(threads(options))
    versions = f"torch {version('torch')}, transformers {version('transformers')}"
    texts = {name: str(getattr(options, name)) for name in ("length", "batch_size", "negatives")}
    return {**texts, "device": device, "versions": versions}


def earlier(options: argparse.Namespace) -> dict[Case, list[float]]:
    """The figures that the folder holds.

    Raises:
        SystemExit: they were measured on another machine, or with other texts.
    """
    place, found, now = options.output / "throughput.csv", defaultdict(list), measured_on(options)
    if place.is_file():
        with place.open(newline="") as file:
            for row in csv.DictReader(file):
                other = [f"{name} {row[name]}, not {value}" for name, value in now.items() if row[name] != value]
                if other:
                    raise SystemExit(f"{place}: holds figures of {other[0]}; give another --output")
                found[row["model"], row["dtype"], row["work"]].append(float(row["tokens_per_second"]))
    return found


def write(options: argparse.Namespace, found: dict[Case, list[float]]) -> None:
    """The table in Markdown and CSV, with what it was measured on."""
    header, rows, shared = ["model", "dtype", *WORK], rows_of(found), measured_on(options)
    counts = sorted({len(rates) for rates in found.values() if rates})
    processes = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    said = [
        "# Tokens per second",
        "",
        f"{shared['device']}; {shared['versions']}. Texts of {options.length} tokens, "
        f"batches of {options.batch_size} texts, or of {options.batch_size} rows of a query, a positive and "
        f"{options.negatives} negatives. Processes per figure: {processes}; of several, median, least and greatest. "
        "Written by `benchmarks/throughput.py`.",
        "",
        *(f"| {' | '.join(line)} |" for line in (header, ["---"] * 2 + ["---:"] * len(WORK), *rows)),
    ]
    written(options.output / "throughput.md", "\n".join(said) + "\n")
    table = csv.writer(text := io.StringIO(), lineterminator="\n")
    table.writerow(["model", "dtype", "work", *shared, "tokens_per_second"])
    for case, rates in found.items():
        table.writerows([*case, *shared.values(), f"{rate:.1f}"] for rate in rates)
    written(options.output / "throughput.csv", text.getvalue())


def threads(options: argparse.Namespace) -> int:
    """Threads of the measured processes on a CPU."""
    return options.threads or torch.get_num_threads()


def compare(options: argparse.Namespace) -> None:
    """Every figure, as often as asked for, each in its own process."""
    cases = list(itertools.product(options.models, options.dtypes, WORK))
    found = earlier(options)
    passed = [
        f"--{n.replace('_', '-')}={getattr(options, n)}" for n in ("length", "batch_size", "negatives", "threads")
    ]
    missing = [case for turn in range(options.repeats) for case in cases if len(found[case]) <= turn]
    for case in track(missing, "measuring"):
        model, dtype, work = case
        arguments = [*passed, f"--model={model}", f"--dtype={dtype}", f"--work={work}", "--output=."]
        found[case].append(in_fresh_process(__file__, arguments)["tokens_per_second"])
        write(options, found)


def main() -> None:
    """Measure everything, or be one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m-instruct", "gemma3-270m"])
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="default: torch's own choice")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is None:
        compare(options)
    else:
        print(json.dumps(measure(options)))


if __name__ == "__main__":
    main()
