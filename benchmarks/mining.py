"""Do mined hard negatives raise nDCG@10 of a fixed short training run over random ones? A real LLM, no GPU.

    python benchmarks/mining.py --output runs/mining [--pairs FILE [FILE ...]] [--seeds 0 1 2]

Rows and test tasks come from files of pairs, of which some stretches are kept for a test of their own, or from the
documentation of the packages that are installed; no subpackage is on both sides. Batches, and the passages that
negatives are taken from, are of all files; the score is the mean over the queries of all.
Of each seed a fresh adapter is first trained with random negatives, or ``--start`` gives a model that has been
trained, all of whose rows ``--known`` keeps out of the test. From there every arm trains it further for as many
steps, on the same new rows in the same order: with negatives drawn at random from all training passages, and with
negatives that the first model mined from them, the nearest ones or ones drawn from a range of ranks (``MINED``). What
is done is kept in ``mining.json`` and not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ullme.apps.doc_pairs import DocPairs, doc_pairs, write_jsonl
from ullme.apps.doc_sources import PACKAGES
from ullme.apps.quickstart import cpu_multiplies_bfloat16
from ullme.apps.retrieval import RetrievalTask
from ullme.apps.train import train
from ullme.config import RunConfig
from ullme.data import load_pairs, mine_negatives
from ullme.models import ULLME
from ullme.reproduce.bootstrap import bootstrap
from ullme.types import PairExample

#: How each arm's negatives are mined, beside the default margin, which may pass over many of the nearest.
MINED: dict[str, dict[str, Any]] = {
    "sampled": {"range_min": 10, "range_max": 100, "sampled": True},
    "nearest": {"range_max": 100},
}

MAX_LENGTH = 64

#: Rows of a file of pairs that stay together, as neighbours are often about one thing.
STRETCH = 40


def rows_of(path: str) -> list[PairExample]:
    """All rows of a file of pairs."""
    pairs = load_pairs(path)
    return [pairs[at] for at in range(len(pairs))]


def pairs_of_file(path: str, options: argparse.Namespace) -> DocPairs:
    """Training rows and a retrieval task of a file of pairs: stretches of rows, drawn for one side or the other.

    A test row whose query or passage is also a training row's is left out; a text that answers several queries is one
    passage of the corpus.
    """
    rows = [replace(row, negatives=()) for row in rows_of(path)]
    stretches = [rows[at : at + STRETCH] for at in range(0, len(rows), STRETCH)]
    random.Random(0).shuffle(stretches)
    train = list(chain(*stretches[: options.passages // STRETCH]))
    seen = chain(train, *(rows_of(known) for known in options.known))
    known = {text for row in seen for text in (row.query, *row.positives)}
    held_out = list(chain(*stretches[-(options.corpus // STRETCH) :]))
    test = [row for row in held_out if known.isdisjoint((row.query, *row.positives))]
    answers: dict[str, dict[str, int]] = {}
    for row in test:
        answers.setdefault(row.query, {}).update(dict.fromkeys(row.positives, 1))
    asked = random.Random(1).sample(sorted(answers), min(options.queries, len(answers)))
    corpus = {text: text for row in test for text in row.positives}
    return DocPairs(train, corpus, {query: query for query in asked}, {query: answers[query] for query in asked})


def with_random(rows: Sequence[PairExample], passages: Sequence[str], count: int, seed: int) -> list[PairExample]:
    """The rows with negatives drawn from all passages but their own."""
    draw = random.Random(seed)
    found = []
    for row in rows:
        drawn = draw.sample(passages, count + 1)
        found.append(replace(row, negatives=tuple([p for p in drawn if p not in row.positives][:count])))
    return found


def run_config(options: argparse.Namespace, folder: Path, seed: int, start: Path | None) -> RunConfig:
    """The fixed short run, of a fresh adapter or of that in a folder."""
    adapter: dict[str, Any] = {"lora": {"name": "mining", "r": 16, "alpha": 32}}
    bf16 = cpu_multiplies_bfloat16()
    return RunConfig.model_validate(
        {
            "model": {
                "name_or_path": options.model,
                "max_length": MAX_LENGTH,
                **(adapter if start is None else {"adapter_path": str(start)}),
            },
            "data": {"train": [{"path": str(folder / "train.jsonl")}], "negatives_per_query": options.negatives},
            "objectives": [{"type": "contrastive", "temperature": 0.05}],
            "trainer": {
                "output_dir": str(folder / "run"),
                "max_steps": options.steps,
                "per_device_train_batch_size": options.batch_size,
                "learning_rate": 5e-4 if start is None else 2e-4,
                "warmup_steps": 4,
                "report_to": "none",
                "bf16": bf16,
                "use_cpu": bf16,
                "seed": seed,
            },
        }
    )


def encoder(folder: Path) -> Any:
    """Texts to embeddings under bidirectional attention, by the model in a folder."""
    dtype = "bfloat16" if cpu_multiplies_bfloat16() else "float32"
    model = ULLME.from_pretrained(folder, dtype=dtype, max_length=MAX_LENGTH)
    return lambda texts: model.encode(list(texts), attention="bidirectional")


def trained(
    rows: Callable[[], Sequence[PairExample]],
    options: argparse.Namespace,
    folder: Path,
    seed: int,
    start: Path | None = None,
) -> Path:
    """The folder of the model after the fixed run on these rows, which may be there already."""
    if not (folder / "run" / "model").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(rows(), folder / "train.jsonl")
        train(run_config(options, folder, seed, start))
    return folder / "run" / "model"


def ndcg(encode: Any, sources: Sequence[DocPairs]) -> list[float]:
    """nDCG@10 in 0..100 of every query, source by source."""
    tasks = [RetrievalTask(source.corpus, source.queries, source.qrels) for source in sources]
    found = [(task, task.per_query(encode)) for task in tasks]
    return [round(100 * scores[query]["ndcg@10"], 2) for task, scores in found for query in task.queries]


def compare(options: argparse.Namespace, sources: Sequence[DocPairs], result: dict[str, Any]) -> Iterator[None]:
    """Add what each query scores by the first model and by each arm with one seed to its result; yields after each."""
    seed, count = result["seed"], options.negatives
    pairs = list(chain(*(source.train for source in sources)))
    passages = [row.positives[0] for row in pairs]
    rows_of_a_run = options.steps * options.batch_size
    warm, rows = [random.Random(s).sample(pairs, rows_of_a_run) for s in (seed, 1000 + seed)]
    folder = options.output / f"seed-{seed}"
    start = options.start or trained(lambda: with_random(warm, passages, count, seed), options, folder / "first", seed)
    miner = encoder(start)
    if "first" not in result:
        result["first"] = ndcg(miner, sources)
        yield

    def with_negatives(arm: str) -> list[PairExample]:
        drawn = with_random(rows, passages, count, seed)
        if arm not in MINED:
            return drawn
        mined = mine_negatives(rows, miner, corpus=passages, count=count, seed=seed, **MINED[arm])
        result[f"{arm}_per_row"] = statistics.mean(len(row.negatives) for row in mined)
        return [filled(row, more, count) for row, more in zip(mined, drawn, strict=True)]

    for arm in [arm for arm in ("random", *options.arms) if arm not in result]:
        result[arm] = ndcg(encoder(trained(partial(with_negatives, arm), options, folder / arm, seed, start)), sources)
        yield


def filled(row: PairExample, drawn: PairExample, count: int) -> PairExample:
    """The row with as many negatives as the other arm's: random ones where too few were mined."""
    return replace(row, negatives=tuple(dict.fromkeys([*row.negatives, *drawn.negatives]))[:count])


def main() -> None:
    """Compare the arms for every seed that is not done, then print all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/mining"))
    parser.add_argument("--pairs", nargs="+", help="JSONL or Parquet of queries and positives, like beside like")
    parser.add_argument("--start", type=Path, help="a trained model, in place of a first training")
    parser.add_argument("--known", nargs="+", default=[], help="the rows of these pairs that it was trained on")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=tuple(MINED), default=list(MINED))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--negatives", type=int, default=3)
    parser.add_argument("--passages", type=int, default=1000, help="training passages of a file to draw and mine from")
    parser.add_argument("--queries", type=int, default=200, help="test queries of a file")
    parser.add_argument("--corpus", type=int, default=600, help="test passages of a file")
    parser.add_argument(
        "--packages", nargs="+", default=None, help="such as stdlib; default all that the quickstart uses"
    )
    options = parser.parse_args()
    sizes = {"max_train": options.passages, "max_queries": options.queries, "max_corpus": options.corpus}
    sources = (
        [pairs_of_file(path, options) for path in options.pairs]
        if options.pairs
        else [doc_pairs(options.packages or PACKAGES, **sizes)]
    )
    options.output.mkdir(parents=True, exist_ok=True)
    kept = options.output / "mining.json"
    done = json.loads(kept.read_text()) if kept.is_file() else []
    for seed in options.seeds:
        result = next((entry for entry in done if entry["seed"] == seed), {"seed": seed})
        done += [] if result in done else [result]
        for _ in compare(options, sources, result):
            kept.write_text(json.dumps(done) + "\n")
            print(
                {key: round(statistics.mean(v), 2) if isinstance(v, list) else v for key, v in result.items()},
                flush=True,
            )
    for arm in options.arms:
        print(f"{arm} over random, nDCG@10 points: {compared(done, arm)}")


def compared(done: Sequence[dict[str, Any]], arm: str) -> str:
    """The mean difference to random negatives, with a 95% interval over queries and seeds, and that of each seed."""
    gain_QS = np.array([np.subtract(entry[arm], entry["random"]) for entry in done if arm in entry]).T
    gain = bootstrap(gain_QS, draws=2000)
    each = ", ".join(f"{mean:+.2f}" for mean in gain_QS.mean(0))
    return f"{gain.mean:+.2f} ({gain.low:+.2f} to {gain.high:+.2f}) over {gain.seeds} seeds ({each})"


if __name__ == "__main__":
    main()
