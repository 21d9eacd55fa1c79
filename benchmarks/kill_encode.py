"""Is a corpus whose encoding is killed again and again the one that never was? Real processes, kill -9, no GPU.

    python benchmarks/kill_encode.py --output runs/kill_encode [--kills 30] [--seed 0]

``ullme encode`` with a tiny random model is killed at random moments and given the same command again until it is done;
then the next round begins. Every file it leaves is compared, byte by byte, with those of a run left alone, and after
every kill each shard that counts as finished is checked against its record. Figures are kept in ``kills.json`` in the
output folder: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from encode_inputs import write_model, write_texts
from rich.console import Console
from rich.table import Table

from ullme.encode.folder import file_record

COMMAND = [sys.executable, "-c", "import sys; from ullme.cli import main; sys.exit(main())", "encode"]
ROWS, SHARD_ROWS = 24_000, 400

#: Options of the rounds, one after the other.
SCENARIOS: dict[str, list[str]] = {
    "npy, float32": [],
    "parquet, int8, truncated": ["--storage", "parquet", "--precision", "int8", "--truncate-dim", "48"],
    "npy, binary, no text": ["--precision", "binary", "--no-text"],
}

#: What a killed process may leave half-done, by the name of what it left.
PLACES = {
    "shard-": "finishing a shard",
    "rows-": "writing ids and texts",
    "embeddings-": "computing a shard",
    "ranges": "calibrating",
    "manifest": "writing the manifest",
}

#: Of all kills, the share that comes at any moment of the process, its start included; the others come while it works.
ANY_MOMENT = 0.15


def started(folder: Path, scenario: str, name: str) -> subprocess.Popen[bytes]:
    """The command, running; its output goes to a file beside the corpus."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    places = [str(folder / "model"), str(folder / "texts.jsonl"), str(folder / name)]
    own = ["--shard-rows", str(SHARD_ROWS), "--device", "cpu", *SCENARIOS[scenario]]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen([*COMMAND, *places, *own], stdout=log, stderr=log, env=environment)


def wait_for_work(process: subprocess.Popen[bytes], out: Path) -> float:
    """Seconds until the job is put into the folder, which every run does right before it encodes."""
    start, stamp = time.time(), begun(out)
    while process.poll() is None and begun(out) == stamp:
        time.sleep(0.002)
    return time.time() - start


def begun(out: Path) -> int:
    """When a run last put its job into the folder."""
    try:
        return (out / ".unfinished" / "job.json").stat().st_mtime_ns
    except FileNotFoundError:  # not yet there, or no longer
        return 0


def left_alone(folder: Path, scenario: str, name: str) -> dict[str, float]:
    """A run to its end; seconds until it works, and of work. One that is done is not run again."""
    times = folder / f"{name}.json"
    if not times.exists():
        shutil.rmtree(folder / name, ignore_errors=True)
        process = started(folder, scenario, name)
        waited = wait_for_work(process, folder / name)
        start = time.time()
        if process.wait():
            raise SystemExit((folder / f"{name}.log").read_text())
        times.write_text(json.dumps({"start": waited, "work": time.time() - start}))
    return json.loads(times.read_text())


def killed(
    folder: Path, scenario: str, name: str, times: dict[str, float], draw: random.Random
) -> dict[str, Any] | None:
    """One start of the command and one kill; None where it was done before the kill came."""
    out = folder / name
    before, stamp = half_written(out), begun(out)
    process = started(folder, scenario, name)
    if draw.random() < ANY_MOMENT:
        time.sleep(draw.uniform(0, times["start"]))
    else:
        wait_for_work(process, out)
        time.sleep(draw.uniform(0, times["work"] / 3))
    process.kill()
    if process.wait() == 0:
        return None
    if process.returncode > 0:
        raise SystemExit((folder / f"{name}.log").read_text())
    left = half_written(out) - before
    place = next((said for start, said in PLACES.items() if any(path.startswith(start) for path in left)), None)
    done, damaged = finished(out)
    place = place or ("starting" if begun(out) == stamp else "between shards")
    return {
        "scenario": scenario,
        "round": name,
        "shards": done,
        "place": place,
        **damaged,
    }


def half_written(out: Path) -> set[str]:
    """What killed processes were writing, as far as no later one has cleared it away."""
    return {path.name for path in (out / ".unfinished").glob("*." + "?" * 32)}


def finished(out: Path) -> tuple[int, dict[str, list[str]]]:
    """Shards that count as finished, and files of these that are not what their record says."""
    records = [json.loads(path.read_text()) for path in (out / ".unfinished").glob("shard-?????.json")]
    files = {name: known for record in records for name, known in record["files"].items()}
    return len(records), {"damaged": [name for name, known in files.items() if file_record(out / name) != known]}


def tree(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file below a folder, by its content."""
    return {str(path.relative_to(folder)): file_record(path) for path in folder.rglob("*") if path.is_file()}


def main() -> None:
    """Kill, continue, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder, console = options.output, Console()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "kills.json"
    found = json.loads(kept.read_text()) if kept.exists() else {"kills": [], "rounds": []}
    if not (folder / "texts.jsonl").exists():
        write_model(folder / "model")
        write_texts(folder / "texts.jsonl", ROWS, words=8, seed=options.seed)
    while len(found["kills"]) < options.kills:
        rounds = len(found["rounds"])
        scenario = list(SCENARIOS)[rounds % len(SCENARIOS)]
        alone = f"alone-{rounds % len(SCENARIOS)}"
        times, name = left_alone(folder, scenario, alone), f"killed-{rounds}"
        draw = random.Random(f"{options.seed} {len(found['kills'])}")
        kill = killed(folder, scenario, name, times, draw)
        if kill is not None:
            found["kills"].append(kill)
            console.print(kill)
        else:
            same = tree(folder / name) == tree(folder / alone)
            found["rounds"].append({"scenario": scenario, "round": name, "identical": same})
            console.print(found["rounds"][-1])
        kept.write_text(json.dumps(found, indent=1))
    conclude(folder, found, kept)
    report(found, console)


def conclude(folder: Path, found: dict[str, Any], kept: Path) -> None:
    """Let the round that was killed last end, and compare it too."""
    rounds = len(found["rounds"])
    if not found["kills"] or found["kills"][-1]["round"] != f"killed-{rounds}":
        return
    scenario, name = list(SCENARIOS)[rounds % len(SCENARIOS)], f"killed-{rounds}"
    if started(folder, scenario, name).wait():
        raise SystemExit((folder / f"{name}.log").read_text())
    same = tree(folder / name) == tree(folder / f"alone-{rounds % len(SCENARIOS)}")
    found["rounds"].append({"scenario": scenario, "round": name, "identical": same})
    kept.write_text(json.dumps(found, indent=1))


def report(found: dict[str, Any], console: Console) -> None:
    """A table of the rounds, and where the kills came."""
    table = Table("options", "kills", "rounds", "identical", "damaged after a kill")
    for scenario in SCENARIOS:
        kills = [kill for kill in found["kills"] if kill["scenario"] == scenario]
        rounds = [each for each in found["rounds"] if each["scenario"] == scenario]
        damaged = sum(len(kill["damaged"]) for kill in kills)
        table.add_row(scenario, *map(str, (len(kills), len(rounds), sum(r["identical"] for r in rounds), damaged)))
    console.print(table)
    console.print(dict(Counter(kill["place"] for kill in found["kills"])))


if __name__ == "__main__":
    main()
