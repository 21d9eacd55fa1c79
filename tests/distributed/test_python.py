"""The documented Python code in several processes: the loader is made before there is a group, the trainer after."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import skip_first_batches
from safetensors.torch import load_file

from tests.distributed.resume_workers import failing
from tests.distributed.workers import spawned
from tests.parity.oracle import relative_error
from tests.tiny import tiny_folder, tiny_tokenizer
from tests.unit.training import computed_reference, pairs, tiny_model
from ullme.data import PairBatchSampler, PairCollator, PairLoader, load_pairs, stream_pairs, train_loader
from ullme.prompts import TextTokenizer
from ullme.trainer import EmbeddingTrainer, training_arguments

PAGE = (Path(__file__).parents[2] / "docs" / "fine_tuning.md").read_text()
(CODE,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

#: What the documented code needs to be told to run here, in a second, and to the same end each time.
CHANGES = {
    '"smollm2-135m-instruct"': '"llama"',
    "lora_alpha=32": "lora_alpha=32, lora_dropout=0.0",
    "batch_size=20": "batch_size=4",
    "use_kl_loss=True": 'use_kl_loss=True, use_cpu=True, report_to="none", logging_steps=1',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten rows, so that the last of an epoch's batches of four is not full, and a model."""
    folder = tmp_path_factory.mktemp("python")
    tiny_folder(folder / "llama")
    rows = [{"query": f"what is {i}?", "positive": f"it is {i}", "negatives": [f"not {i}"]} for i in range(10)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def launched(rank: int, world: int, port: int) -> None:
    """As torchrun starts a process: the environment says who is who, and nobody has joined a group yet."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)


def documented(folder: Path, name: str, seed: int = 0) -> dict[str, Any]:
    """Losses, rows of each step and saved adapter of the documented code, run in a folder of this name."""
    code, rows, step = CODE.replace("runs/python", f"runs/{name}"), [], EmbeddingTrainer.training_step
    for old, new in CHANGES.items():
        assert old in code
        code = code.replace(old, new)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(
            *(EmbeddingTrainer, "training_step"),
            lambda self, model, batch, *rest: (rows.append(batch.row_ids), step(self, model, batch, *rest))[1],
        )
        torch.manual_seed(seed)  # of the adapter: process 0 tells the others
        names: dict[str, Any] = {}
        exec(code, names)
    logs = names["trainer"].trainer.state.log_history
    return {"losses": [entry["loss"] for entry in logs if "loss" in entry], "rows": rows}


def documented_of_two(rank: int, world: int, port: int, folder: Path) -> None:
    launched(rank, world, port)
    torch.save(documented(folder, "two", seed=rank), folder / f"documented-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_the_documented_order_trains_in_two_processes_what_it_trains_in_one(folder):
    spawned(documented_of_two, 2, folder)
    ranks = [torch.load(folder / f"documented-{rank}.pt") for rank in range(2)]
    one = documented(folder, "one")
    assert sorted(map(len, one["rows"])) == [2, 4, 4]
    for step, whole in enumerate(one["rows"]):
        parts = [rank["rows"][step] for rank in ranks]
        assert not set(parts[0]) & set(parts[1])
        assert parts == [whole[rank::2] for rank in range(2)]
    for rank in ranks:
        assert rank["losses"] == pytest.approx(one["losses"], rel=1e-4)
    found, right = (load_file(folder / f"runs/{n}/adapter_model.safetensors") for n in ("two", "one"))
    assert relative_error(found, right) < 1e-3


def loaders_of(folder: Path) -> dict[str, PairLoader]:
    """Of every kind, none told who it is."""
    collator, file = PairCollator(TextTokenizer(tiny_tokenizer()), 1), str(folder / "pairs.jsonl")
    make = partial(train_loader, collator=collator, batch_size=4, seed=3)
    return {
        "in memory": make(load_pairs(file)),
        "in memory, with workers": make(load_pairs(file), num_workers=1),
        "stream": make(stream_pairs(file)),
        "stream, with workers": make(stream_pairs(file), num_workers=1),
    }


def rows_of(loaders: dict[str, PairLoader]) -> dict[str, list[tuple[str, ...]]]:
    """Of each loader all but the first batch, in three ways: after a loaded state, skipped by accelerate, and all."""
    found = {}
    for name, loader in loaders.items():
        ways = {"resumed": loader, "skipped": skip_first_batches(loader, 1), "all": loader}
        found |= {f"{name}, {way}": [batch.row_ids for batch in iterated] for way, iterated in ways.items()}
    return found


def loading_of_two(rank: int, world: int, port: int, folder: Path) -> None:
    """What loaders give that were made, asked for their length and resumed before there was a group."""
    launched(rank, world, port)
    loaders = loaders_of(folder)
    lengths = {name: len(loader) for name, loader in loaders.items()}
    for loader in loaders.values():
        loader.load_state_dict({"epoch": 1, "batch": 1})
    training_arguments(output_dir=str(folder), use_cpu=True, report_to="none")
    torch.save({"lengths": lengths, "rows": rows_of(loaders)}, folder / f"loading-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_a_loader_of_any_kind_finds_its_share_when_it_is_iterated(folder):
    spawned(loading_of_two, 2, folder)
    ranks = [torch.load(folder / f"loading-{rank}.pt") for rank in range(2)]
    loaders = loaders_of(folder)
    assert ranks[0]["lengths"] == ranks[1]["lengths"] == {name: len(loader) for name, loader in loaders.items()}
    for loader in loaders.values():
        loader.load_state_dict({"epoch": 1, "batch": 1})
    for way, whole in rows_of(loaders).items():
        assert len(whole) == (3 if way.endswith("all") else 2), way
        for rank, found in enumerate(ranks):
            assert found["rows"][way] == [batch[rank::2] for batch in whole], way


def refusing(rank: int, world: int, port: int, folder: Path) -> None:
    """What would be a wrong run without a word, before there is a group and in one."""
    launched(rank, world, port)
    model, rows = tiny_model(folder, lora_dropout=0.0), pairs(8)
    collator = PairCollator(model.text_tokenizer)
    loader = train_loader(rows, collator, 4)
    said = {
        "rows of an early batch": len(next(iter(loader))),
        "reference early": failing(lambda: computed_reference(model, folder / f"early-{rank}", rows)),
        "reference's folder": str((folder / f"early-{rank}").exists()),
    }
    args = training_arguments(output_dir=str(folder), use_cpu=True, report_to="none")
    whole = PairBatchSampler(rows, 4, rank=0, world_size=1)
    own = PairLoader(rows, batch_sampler=whole, collate_fn=collator)
    wrong = {
        "one process": train_loader(rows, collator, 4, rank=0, world_size=1),
        "three processes": train_loader(rows, collator, 4, rank=rank, world_size=3),
        "another rank": train_loader(rows, collator, 4, rank=1 - rank, world_size=2),
        "own sampler": own,
    }
    for name, told in wrong.items():
        said[name] = failing(lambda told=told: EmbeddingTrainer(model, "contrastive", args, train_loader=told))
    later = EmbeddingTrainer(model, "contrastive", args, train_loader=loader)
    said["later"] = failing(lambda: later.fit_epoch(own))
    (folder / f"said-{rank}.json").write_text(json.dumps(said))
    dist.barrier()
    dist.destroy_process_group()


def test_what_would_train_on_the_same_rows_everywhere_is_refused(tmp_path):
    tiny_folder(tmp_path / "llama")
    spawned(refusing, 2, tmp_path)
    for rank in range(2):
        said = json.loads((tmp_path / f"said-{rank}.json").read_text())
        assert said["rows of an early batch"] == 4  # whole: a look at the data, such as a plan takes
        assert re.search("one of 2 .*training arguments", said["reference early"])
        assert said["reference's folder"] == "False"
        for name in ("one process", "own sampler", "later"):
            assert re.search(r"train_loader: .*1 process.* 2 .*leave .*world_size", said[name]), said[name]
        assert re.search(r"train_loader: .*3 process.* 2 .*leave .*world_size", said["three processes"])
        assert re.search(rf"train_loader: .*rank {1 - rank}.* {rank}.*leave .*rank", said["another rank"])
