"""docs/distributed.md: its commands run on CPUs, or at least mean something to the tools that they are for."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser

from tests.tiny import tiny_folder, tiny_ullme
from ullme.cli import main
from ullme.config import RunConfig
from ullme.trainer import training_arguments
from ullme.trainer.sharding import configure

PAGE = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [text.strip() for kind, text in BLOCKS if kind == "bash" and not text.startswith("#!")]
TORCHRUN = [command for command in COMMANDS if command.startswith("torchrun")]
(SCRIPT,) = (text for kind, text in BLOCKS if text.startswith("#!"))
LOCAL = [command for command in TORCHRUN if "--nnodes" not in command]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("command", TORCHRUN)
def test_torchrun_knows_its_options_and_the_run_file_its_keys(command):
    parsed = get_args_parser().parse_args(shlex.split(command)[1:])
    assert parsed.module and parsed.training_script == "ullme"
    verb, file, *overrides = parsed.training_script_args
    assert (verb, file) == ("train", "run.yaml")
    values = {key.removeprefix("trainer."): yaml.safe_load(v) for key, v in (o.split("=") for o in overrides)}
    RunConfig(model={"name_or_path": "m"}, data={"train": [{"path": "p"}]}, trainer={"output_dir": "o", **values})


def test_settings_of_the_table_exist():
    named = re.findall(r"^\| `trainer\.(\w+)`", PAGE, re.MULTILINE)
    assert len(named) == 4
    fields = RunConfig.model_fields["trainer"].annotation.model_fields
    assert set(named) <= set(fields)


def test_accelerates_configuration_shards_what_its_command_launches(tmp_path, tiny_models, monkeypatch):
    (tmp_path / "fsdp2.yaml").write_text(next(text for kind, text in BLOCKS if kind == "yaml"))
    monkeypatch.chdir(tmp_path)
    (command,) = (c for c in COMMANDS if c.startswith("accelerate launch"))
    args = launch_command_parser().parse_args(shlex.split(command)[2:])
    assert load_config_from_file("fsdp2.yaml").distributed_type == "FSDP"
    args, _, _ = _validate_launch_command(args)
    assert (args.module, args.training_script, args.training_script_args) == (True, "ullme", ["train", "run.yaml"])
    for name, value in prepare_multi_gpu_env(args).items():
        if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP")):
            monkeypatch.setenv(name, value)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    configure(plugin, tiny_ullme(tiny_models, "llama", lora_name="test", lora_r=4))
    assert plugin.transformer_cls_names_to_wrap == ["LlamaDecoderLayer"]


def test_the_arguments_in_python_are_arguments():
    (code,) = (text for kind, text in BLOCKS if kind == "python")
    found: dict = {}
    call = code.replace("bf16=True", "use_cpu=True")
    exec(call, {"training_arguments": training_arguments}, found)
    assert found["arguments"].fsdp_plugin_args["fsdp_version"] == 2
    assert found["arguments"].accelerator_config.gradient_accumulation_kwargs == {"sync_each_batch": True}


def test_the_script_is_a_shell_script(tmp_path):
    (tmp_path / "run.sh").write_text(SCRIPT)
    assert subprocess.run(["bash", "-n", "run.sh"], cwd=tmp_path).returncode == 0


@pytest.fixture
def run_folder(tmp_path):
    """A run file of three steps and what it needs."""
    tiny_folder(tmp_path / "llama")
    rows = [{"query": f"what is {i}?", "positive": f"it is {i}", "negatives": [f"not {i}"]} for i in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {"name_or_path": "./llama", "max_length": 32, "lora": {"r": 4}},
        "data": {"train": [{"path": "pairs.jsonl"}]},
        "objectives": "grl",
        "trainer": {
            **{"output_dir": "runs/documented", "max_steps": 3, "per_device_train_batch_size": 2},
            **{"use_cpu": True, "report_to": "none"},
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def executed(folder: Path, command: list[str], code: int | None, **environment: str) -> None:
    """Run it; ``code`` is what it must end with, None for anything but 0."""
    path = f"{folder / 'bin'}:{BIN}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code if code is not None else done.returncode, done.stderr[-2000:]


def same_as_one_process(folder: Path, monkeypatch, overrides: Sequence[str] = ()) -> None:
    monkeypatch.chdir(folder)
    own = ["trainer.output_dir=runs/one", "trainer.per_device_train_batch_size=4"]
    assert main(["train", "run.yaml", *own, *overrides]) == 0
    found, right = (load_file(f"runs/{n}/model/adapter_model.safetensors") for n in ("documented", "one"))
    assert found.keys() == right.keys()
    for name, value in right.items():
        assert (found[name] - value).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("command", LOCAL)
def test_a_command_on_one_machine_trains_what_one_process_trains(run_folder, command, monkeypatch):
    executed(run_folder, shlex.split(command), 0)
    same_as_one_process(run_folder, monkeypatch)


#: Stand-ins for a step of the job, here; one that is told that time is up as soon as there is a checkpoint.
STEP = 'exec "$@"'
STEP_OUT_OF_TIME = """
"$@" & run=$!
trap 'kill -TERM "$run"; wait "$run"; exit' TERM
until compgen -G "runs/documented/checkpoint-*" > /dev/null; do read -t 0.1 < <(:) || true; done
kill -TERM "$PPID"
while kill -0 "$run" 2> /dev/null; do wait "$run"; done
"""
CONTROL = 'case "$1" in show) echo 127.0.0.1 ;; *) echo "$@" >> asked.txt ;; esac'


@pytest.mark.slow
def test_the_script_goes_on_after_its_time_was_up_and_ends_as_one_process(run_folder, monkeypatch):
    (run_folder / "run.sh").write_text(SCRIPT)
    (run_folder / "bin").mkdir()
    slurm = {"JOB_ID": "7", "JOB_NODELIST": "here", "NNODES": "1", "GPUS_ON_NODE": "2"}
    environment = {f"SLURM_{name}": value for name, value in slurm.items()}
    steps = ["trainer.max_steps=40", "trainer.save_steps=4"]
    for step, code in ((STEP_OUT_OF_TIME, None), (STEP, 0)):
        for name, text in {"srun": step, "scontrol": CONTROL}.items():
            (run_folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
            (run_folder / "bin" / name).chmod(0o755)
        executed(run_folder, ["bash", "run.sh", *steps], code, **environment)
        assert (run_folder / "runs/documented/model").exists() == (code == 0)
    assert (run_folder / "asked.txt").read_text() == "requeue 7\n"
    same_as_one_process(run_folder, monkeypatch, steps)
