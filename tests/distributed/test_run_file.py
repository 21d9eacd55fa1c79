"""``ullme train`` in two processes: they share batches and the scoring of the reference, and learn what one learns."""

from __future__ import annotations

import json
import os
import socket
from functools import partial

import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from tests.parity.oracle import relative_error
from tests.tiny import tiny_folder
from ullme.apps import run_data
from ullme.apps.train import train
from ullme.config import RunConfig
from ullme.trainer import compute_reference
from ullme.trainer import reference as reference_module


def run(folder, name: str, rows_per_process: int, replace=setattr) -> None:
    """Full fine-tuning with grl; the files that this process scores are counted into another one."""
    scored = []
    score = reference_module._score
    replace(reference_module, "_score", lambda *args: (scored.append(1), score(*args)))
    replace(run_data, "compute_reference", partial(compute_reference, shard_texts=9))
    config = RunConfig(
        model={"name_or_path": str(folder / "llama"), "max_length": 32},
        data={"train": [{"path": str(folder / "pairs.jsonl")}]},
        objectives="grl",
        trainer={
            "output_dir": folder / name,
            "per_device_train_batch_size": rows_per_process,
            "max_steps": 3,
            "learning_rate": 1e-3,
            "chunk_tokens": 150,
            "report_to": "none",
            "use_cpu": True,
        },
    )
    train(config)
    with (folder / f"{name}.scored").open("a") as file:
        file.write(f"{len(scored)}\n")


def one_of_two(rank: int, port: int, folder) -> None:
    """As torchrun starts it: the environment says who is who, and nobody has joined a group yet."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    run(folder, "two", rows_per_process=2)


def test_two_processes_learn_what_one_does(tmp_path, monkeypatch):
    tiny_folder(tmp_path / "llama")
    rows = [{"query": f"what is {i}?", "positive": f"it is {i}", "negatives": [f"not {i}", f"{i}!"]} for i in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_of_two, args=(port, tmp_path), nprocs=2)
    run(tmp_path, "one", 4, monkeypatch.setattr)
    assert (tmp_path / "two.scored").read_text().split() == ["2", "2"]  # 36 texts in files of 9
    assert (tmp_path / "one.scored").read_text().split() == ["4"]
    before = load_file(tmp_path / "llama" / "model.safetensors")
    right, found = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    moved = {name: right[name] - before[name] for name in before}
    assert relative_error({name: found[name] - before[name] for name in before}, moved) < 1e-3
