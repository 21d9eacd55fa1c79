"""Do mined hard negatives raise nDCG@10 of a fixed short training run over random ones? A real LLM, no GPU.

    python benchmarks/mining.py --output runs/mining [--seeds 0 1 2]

Rows and the test task come from the documentation of the packages that are installed; no subpackage is on both sides.
Of each seed the same rows, in the same order, train a fresh adapter once per arm: with negatives drawn at random from
all training passages, and with negatives that the model so trained mined from the same passages, the nearest ones and
ones drawn from a range of ranks (``MINED``). What is done is kept in ``mining.json`` and not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ullme.apps.doc_pairs import DocPairs, doc_pairs, write_jsonl
from ullme.apps.quickstart import cpu_multiplies_bfloat16
from ullme.apps.retrieval import RetrievalTask
from ullme.apps.train import train
from ullme.config import RunConfig
from ullme.data import mine_negatives
from ullme.models import ULLME
from ullme.types import PairExample

#: How each arm's negatives are mined, beside the default margin.
MINED: dict[str, dict[str, Any]] = {"sampled": {"range_min": 10, "range_max": 100, "sampled": True}, "nearest": {}}


def with_random(rows: Sequence[PairExample], passages: Sequence[str], count: int, seed: int) -> list[PairExample]:
    """The rows with negatives drawn from all passages but their own."""
    draw = random.Random(seed)
    found = []
    for row in rows:
        drawn = draw.sample(passages, count + 1)
        found.append(replace(row, negatives=tuple([p for p in drawn if p not in row.positives][:count])))
    return found


def run_config(options: argparse.Namespace, folder: Path, seed: int) -> RunConfig:
    """The fixed short run."""
    bf16 = cpu_multiplies_bfloat16()
    return RunConfig.model_validate(
        {
            "model": {
                "name_or_path": options.model,
                "lora": {"name": "mining", "r": 16, "alpha": 32},
                "max_length": 64,
            },
            "data": {"train": [{"path": str(folder / "train.jsonl")}], "negatives_per_query": options.negatives},
            "objectives": [{"type": "contrastive", "temperature": 0.05}],
            "trainer": {
                "output_dir": str(folder / "run"),
                "max_steps": options.steps,
                "per_device_train_batch_size": options.batch_size,
                "learning_rate": 5e-4,
                "warmup_steps": 4,
                "report_to": "none",
                "bf16": bf16,
                "use_cpu": bf16,
                "seed": seed,
            },
        }
    )


def encoder(model: ULLME) -> Any:
    """Texts to embeddings under bidirectional attention."""

    def encode(texts: list[str]) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cpu_multiplies_bfloat16()):
            return model.encode(list(texts), attention="bidirectional")

    return encode


def trained(rows: Sequence[PairExample], options: argparse.Namespace, folder: Path, seed: int) -> ULLME:
    """The model after the fixed run on these rows; a model that is there already is loaded."""
    if (folder / "run" / "model").is_dir():
        return ULLME.from_pretrained(folder / "run" / "model").eval()
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(rows, folder / "train.jsonl")
    return train(run_config(options, folder, seed)).model.eval()


def compare(options: argparse.Namespace, pairs: DocPairs, result: dict[str, Any]) -> Iterator[None]:
    """Add what the arms asked for score with one seed to its result; yields after each."""
    seed = result["seed"]
    passages = [row.positives[0] for row in pairs.train]
    rows = random.Random(seed).sample(pairs.train, options.steps * options.batch_size)
    task = RetrievalTask(pairs.corpus, pairs.queries, pairs.qrels)
    folder = options.output / f"seed-{seed}"
    drawn = with_random(rows, passages, options.negatives, seed)
    miner = trained(drawn, options, folder / "random", seed)
    if "random" not in result:
        result["random"] = task(encoder(miner))["ndcg@10"]
        yield
    for arm in [arm for arm in options.arms if arm not in result]:
        mined = mine_negatives(rows, encoder(miner), corpus=passages, count=options.negatives, seed=seed, **MINED[arm])
        full = [filled(row, more, options.negatives) for row, more in zip(mined, drawn, strict=True)]
        result[f"{arm}_per_row"] = statistics.mean(len(row.negatives) for row in mined)
        result[arm] = task(encoder(trained(full, options, folder / arm, seed)))["ndcg@10"]
        yield


def filled(row: PairExample, drawn: PairExample, count: int) -> PairExample:
    """The row with as many negatives as the other arm's: random ones where too few were mined."""
    return replace(row, negatives=tuple(dict.fromkeys([*row.negatives, *drawn.negatives]))[:count])


def main() -> None:
    """Compare the arms for every seed that is not done, then print all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/mining"))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=tuple(MINED), default=list(MINED))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--negatives", type=int, default=3)
    parser.add_argument("--passages", type=int, default=1000, help="training passages to draw and mine from")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--corpus", type=int, default=600, help="test passages")
    parser.add_argument(
        "--packages", nargs="+", default=None, help="such as stdlib; default all that the quickstart uses"
    )
    options = parser.parse_args()
    sizes = {"max_train": options.passages, "max_queries": options.queries, "max_corpus": options.corpus}
    pairs = doc_pairs(**sizes) if options.packages is None else doc_pairs(options.packages, **sizes)
    options.output.mkdir(parents=True, exist_ok=True)
    kept = options.output / "mining.json"
    done = json.loads(kept.read_text()) if kept.is_file() else []
    for seed in options.seeds:
        result = next((entry for entry in done if entry["seed"] == seed), {"seed": seed})
        done += [] if result in done else [result]
        for _ in compare(options, pairs, result):
            kept.write_text(json.dumps(done, indent=2) + "\n")
            print(json.dumps(result), flush=True)
    for arm in options.arms:
        gains = [100 * (entry[arm] - entry["random"]) for entry in done if arm in entry]
        print(f"{arm} over random, nDCG@10 points: mean {statistics.mean(gains):+.2f}, each {gains}")


if __name__ == "__main__":
    main()
