"""Is a training that is killed again and again the training that never was? Real processes, kill -9, no GPU.

    python benchmarks/kill_training.py --output runs/kill_training [--kills 50] [--seed 0]

Small runs of ``ullme train`` on a tiny random model are killed at random moments, in most of them while they train and
save, in some while they start, and given the same command again until they are done. What they leave is compared with
the same run left alone: final weights bit by bit, every logged loss as it stands. After every kill each folder that
has a checkpoint's name is checked against its manifest. Figures are kept in ``kills.json`` in the output folder: the
same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import ullme
from ullme.trainer.resume import checkpoints, fault

COMMAND = [sys.executable, "-c", "import sys; from ullme.cli import main; sys.exit(main())", "train"]
STEPS, SAVE_STEPS, ROWS = 24, 1, 60

#: What is trained: two spaces coupled through the batch, with an adapter and dropout; every weight, against a reference
#: computed before training; hidden tokens.
SCENARIOS: dict[str, dict[str, Any]] = {
    "grl, adapter": {"objectives": "grl", "lora": {"r": 4, "dropout": 0.1}},
    "dpo, all weights": {"objectives": [{"type": "dpo"}, {"type": "sft"}], "lora": None},
    "mntp, adapter": {"objectives": "mntp", "lora": {"r": 4, "dropout": 0.1}},
}

#: What a killed process may leave, by the name of what it left, the first that fits.
PLACES = {
    ".unfinished-deleted-*": "deleting an old checkpoint",
    ".unfinished-*": "writing a checkpoint",
    ".model-*": "writing the model",
}

#: Where a kill aims, one drawn for each: at any moment of the process, its start included; at any moment of training;
#: at any moment of writing a checkpoint, which comes after a random one of training.
AIMS = ("process", "training", "training", "training", "writing", "writing")

#: Seconds after the beginning of a write in which a kill may come; the write takes about as long.
WRITING = 0.08


@dataclass(frozen=True)
class Kill:
    """One kill, and what was found after it."""

    scenario: str
    round: int
    place: str
    step: int
    damaged: list[str]


def write_inputs(folder: Path) -> None:
    """A tiny model with a tokenizer, and pairs."""
    torch.manual_seed(0)
    texts = [f"what is number {i}, and what comes after it?" for i in range(ROWS)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>", "_"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder / "model")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=512, max_position_embeddings=128, **sizes)).save_pretrained(
        folder / "model"
    )
    negatives = [[f"number {i + 1}", f"{i + 7} is another number"] for i in range(ROWS)]
    pairs = [{"query": q, "positive": q[8:], "negatives": n} for q, n in zip(texts, negatives, strict=True)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def write_run_file(folder: Path, scenario: str, name: str) -> Path:
    """The run file of a scenario whose run is in ``folder / name``."""
    chosen = SCENARIOS[scenario]
    run = {
        "model": {"name_or_path": str(folder / "model"), "lora": chosen["lora"], "max_length": 48},
        "data": {"train": [{"path": str(folder / "pairs.jsonl")}]},
        "objectives": chosen["objectives"],
        "trainer": {
            "output_dir": str(folder / name),
            "max_steps": STEPS,
            "save_steps": SAVE_STEPS,
            "logging_steps": 3,
            "per_device_train_batch_size": 4,
            "chunk_tokens": 200,
            "learning_rate": 1e-3,
            "report_to": "none",
            "use_cpu": True,
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def started(run_file: Path) -> subprocess.Popen[bytes]:
    """The command, running; its output goes to a file beside the run file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    with run_file.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([*COMMAND, str(run_file)], stdout=log, stderr=log, env=environment)


def wait_for_training(process: subprocess.Popen[bytes], folder: Path) -> float:
    """Seconds until the run file is put into the run's folder, which is done right before training."""
    begun, kept = time.time(), folder / "run.yaml"
    before = kept.stat().st_mtime_ns if kept.exists() else 0
    while process.poll() is None and (not kept.exists() or kept.stat().st_mtime_ns == before):
        time.sleep(0.005)
    return time.time() - begun


def left_alone(folder: Path, scenario: str, name: str) -> dict[str, float]:
    """Run a scenario to its end; seconds until training starts and of training. One that is done is not run again."""
    times = folder / f"{name}.json"
    if not times.exists():
        shutil.rmtree(folder / name, ignore_errors=True)
        process = started(write_run_file(folder, scenario, name))
        start = wait_for_training(process, folder / name)
        begun = time.time()
        if process.wait() != 0:
            raise SystemExit(f"{scenario}: the run fails, see {folder / name}.log")
        times.write_text(json.dumps({"start": start, "training": time.time() - begun}))
    return json.loads(times.read_text())


def killed_once(run_file: Path, times: dict[str, float], rng: random.Random) -> bool:
    """Run the command and kill it at a random moment; False if it was done before."""
    process, folder, aim = started(run_file), run_file.with_suffix(""), rng.choice(AIMS)
    delay = rng.uniform(0, times["start"] + times["training"])
    if aim != "process":
        wait_for_training(process, folder)
        delay = rng.uniform(0, times["training"] / 4)
    try:
        code = process.wait(delay)
    except subprocess.TimeoutExpired:
        while aim == "writing" and process.poll() is None and not any(folder.glob(".unfinished-*")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, WRITING) if aim == "writing" else 0)
        process.kill()
        if process.wait() < 0:
            return True
        code = process.returncode
    if code != 0:
        raise SystemExit(f"the command fails with {code}, see {run_file.with_suffix('.log')}")
    return False


def leftovers(folder: Path, pattern: str = ".*") -> set[tuple[str, int]]:
    """What is half-written in a run's folder, and since when."""
    return {(path.name, path.stat().st_ctime_ns) for path in folder.glob(pattern)}


def examined(folder: Path, scenario: str, number: int, before: set[tuple[str, int]]) -> Kill:
    """What a kill left in the run's folder, beside what an earlier one had."""
    found = checkpoints(folder) if folder.exists() else []
    hit = [place for pattern, place in PLACES.items() if leftovers(folder, pattern) - before]
    place = hit[0] if hit else "between checkpoints" if found else "before the first checkpoint"
    damaged = [f"{path.name}: {what}" for path in found if (what := fault(path))]
    return Kill(scenario, number, place, int(found[-1].name.split("-")[1]) if found else 0, damaged)


def same_as(folder: Path, right: str, name: str) -> dict[str, bool]:
    """Whether two runs ended in the same weights, bit by bit, and logged the same."""
    weights = [
        {k: v for path in sorted((folder / run / "model").glob("*.safetensors")) for k, v in load_file(path).items()}
        for run in (right, name)
    ]
    bits = weights[0].keys() == weights[1].keys() and all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
    return {"weights": bool(weights[0]) and bits, "losses": losses(folder / right) == losses(folder / name)}


def losses(folder: Path) -> list[dict[str, float]]:
    """What a run logged of every period, without times."""
    history = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def code_digest() -> str:
    """A hash of ullme's code: runs of different code need not end alike."""
    paths = sorted(Path(ullme.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def kill_until(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill runs of all scenarios in turn until there were this many kills, and each of them is done."""
    kept = folder / "kills.json"
    new = {"code": code_digest(), "kills": [], "runs": []}
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else new
    for number, scenario in zip(count(), cycle(SCENARIOS)):
        if found["code"] != code_digest():
            raise SystemExit("ullme's code has changed since the first run; name a new output folder")
        if any(run["round"] == number for run in found["runs"]):
            continue
        if len(found["kills"]) >= kills:
            break
        right, name = f"whole-{number % len(SCENARIOS)}", f"killed-{number}"
        times = left_alone(folder, scenario, right)
        run_file = write_run_file(folder, scenario, name)
        earlier = len(found["kills"])
        rng = random.Random(f"{seed} {earlier}")
        before = leftovers(folder / name)
        while len(found["kills"]) < kills and killed_once(run_file, times, rng):
            found["kills"].append(asdict(examined(folder / name, scenario, number, before)))
            kept.write_text(json.dumps(found, indent=1))
            before = leftovers(folder / name)
        if started(run_file).wait() != 0:
            raise SystemExit(f"the command fails, see {run_file.with_suffix('.log')}")
        left = sorted(name for name, _ in leftovers(folder / name))
        found["runs"].append({"scenario": scenario, "round": number, "left": left, **same_as(folder, right, name)})
        kept.write_text(json.dumps(found, indent=1))
    return found


def table_of(found: dict[str, Any]) -> Table:
    """Figures per scenario."""
    table = Table(title=f"{len(found['kills'])} kills")
    places = sorted({kill["place"] for kill in found["kills"]})
    for name in ("run", "kills", *places, "damaged", "runs", "same weights", "same losses"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for scenario in SCENARIOS:
        kills = [kill for kill in found["kills"] if kill["scenario"] == scenario]
        runs = [run for run in found["runs"] if run["scenario"] == scenario]
        where = Counter(kill["place"] for kill in kills)
        figures = [len(kills), *(where[p] for p in places), sum(bool(k["damaged"]) for k in kills), len(runs)]
        figures += [sum(run["weights"] for run in runs), sum(run["losses"] for run in runs)]
        table.add_row(scenario, *map(str, figures))
    return table


def main() -> int:
    """Kill, compare, print; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/kill_training"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "pairs.jsonl").exists():
        write_inputs(folder)
    found = kill_until(folder, options.kills, options.seed)
    Console(width=160).print(table_of(found))
    broken = [run for run in found["runs"] if not (run["weights"] and run["losses"]) or run["left"]]
    damaged = [kill for kill in found["kills"] if kill["damaged"]]
    for entry in (*broken, *damaged):
        print(entry)
    return int(bool(broken or damaged))


if __name__ == "__main__":
    sys.exit(main())
