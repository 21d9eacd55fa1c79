"""``ullme train``: from a run file to a trained model, interrupted and resumed, planned and scored."""

import json

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from tests.mteb_folders import write_sts
from tests.tiny import tiny_folder

from ullme.apps.plan import plan
from ullme.cli import main
from ullme.config import read_run_file
from ullme.models import ULLME
from ullme.trainer import EmbeddingTrainer

ROWS = 20


@pytest.fixture
def run_file(tmp_path, tiny_models):
    model = tiny_models / "llama"
    if not model.exists():
        tiny_folder(model)
    pairs = [
        {"query": f"what is {i}?", "positive": f"it is {i}, no more", "negatives": [f"it is {i + 30}", f"{i + 60}!"]}
        for i in range(ROWS)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    run = {
        "model": {"name_or_path": str(model), "lora": {"r": 2, "dropout": 0.1}, "max_length": 32},
        "data": {"train": [{"path": str(tmp_path / "pairs.jsonl")}]},
        "objectives": "grl",
        "trainer": {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "chunk_tokens": 200,
            "save_steps": 2,
            "report_to": "none",
            "use_cpu": True,
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def adapter(folder):
    return load_file(folder / "model" / "adapter_model.safetensors")


def test_a_run_leaves_its_run_file_checkpoints_and_a_model_that_loads(run_file, tmp_path):
    assert main(["train", str(run_file), "trainer.max_steps=3"]) == 0
    out = tmp_path / "out"
    assert read_run_file(out / "run.yaml") == read_run_file(run_file, ["trainer.max_steps=3"])
    assert (out / "checkpoint-2").is_dir()
    model = ULLME.from_pretrained(out / "model")
    assert model.encode(["a text"]).shape == (1, 32)
    assert any(tensor.abs().sum() > 0 for name, tensor in adapter(out).items() if "lora_B" in name)


def test_a_run_is_drawn_with_the_agreement_of_both_spaces_where_asked_for(run_file, tmp_path):
    """A contrastive run needs no likelihoods: they are computed of the held-out pairs alone, and learned from not."""
    plain = ["objectives=contrastive", "trainer.max_steps=2", "trainer.logging_steps=1"]
    watched = [
        f"data.eval=[{{path: {tmp_path / 'pairs.jsonl'}}}]",
        "trainer.eval_steps=1",
        "trainer.rank_agreement=true",
    ]
    assert main(["train", str(run_file), *plain, f"trainer.output_dir={tmp_path / 'plain'}"]) == 0
    assert main(["train", str(run_file), *plain, *watched]) == 0
    history = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_rank_agreement" in entry] == [1, 2]
    assert (tmp_path / "out" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    right, found = adapter(tmp_path / "plain"), adapter(tmp_path / "out")
    assert all(right[name].equal(found[name]) for name in right)


def test_the_same_command_resumes_to_the_same_weights(run_file, tmp_path, monkeypatch, capsys):
    assert main(["train", str(run_file), f"trainer.output_dir={tmp_path / 'whole'}"]) == 0
    steps = []
    step = EmbeddingTrainer.training_step

    def interrupted_in_the_fourth(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(EmbeddingTrainer, "training_step", interrupted_in_the_fourth)
    assert main(["train", str(run_file)]) == 130
    assert "with the same command: ullme train" in capsys.readouterr().err
    assert main(["train", str(run_file)]) == 0
    assert len(steps) == 4 + 4  # steps 1 to 4, of which the fourth was interrupted; then 3 to 6
    whole, resumed = adapter(tmp_path / "whole"), adapter(tmp_path / "out")
    assert whole.keys() == resumed.keys()
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_a_schedule_follows_the_arguments_of_the_run_file(run_file, tmp_path):
    schedule = ["trainer.lr_scheduler_type=cosine_with_min_lr", "trainer.lr_scheduler_kwargs={min_lr_rate: 0.5}"]
    rates = ["trainer.learning_rate=0.001", "trainer.logging_steps=1", "trainer.max_steps=2"]
    assert main(["train", str(run_file), *schedule, *rates]) == 0
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    found = [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]
    assert found == pytest.approx([0.001, 0.00075])


def test_a_run_that_failed_before_its_first_checkpoint_can_be_corrected(run_file, tmp_path, monkeypatch):
    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingTrainer, "training_step", interrupted)
        assert main(["train", str(run_file), "trainer.max_steps=1"]) == 130
    assert {"run.yaml", "calls.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert main(["train", str(run_file), "trainer.max_steps=1", "trainer.seed=7"]) == 0
    assert read_run_file(tmp_path / "out" / "run.yaml").trainer.seed == 7


def test_the_plan_counts_what_training_will_do_and_touches_nothing(run_file, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", str(run_file), "--dry-run"]) == 0
    assert "nothing was trained" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    config = read_run_file(run_file)
    planned = plan(config)
    assert planned.rows == {"pairs.jsonl": ROWS}
    assert planned.negatives == ROWS
    assert (planned.batches_per_epoch, planned.batch_rows, planned.steps) == (5, 4, 6)
    assert planned.chunks[1] > 1
    model = ULLME(**config.model.settings().to_dict())
    assert planned.parameters == (
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
    assert planned.memory["weights"] == 4 * planned.parameters[0]
    assert planned.memory["optimizer (Adam)"] == 8 * planned.parameters[1]


@pytest.mark.parametrize("pooling", ["mean", "latent"])
def test_the_plan_of_full_fine_tuning_counts_every_weight(run_file, pooling):
    config = read_run_file(run_file, ["model.lora=null", "objectives=contrastive", f"model.pooling={pooling}"])
    model = ULLME(**config.model.settings().to_dict())
    everything = sum(p.numel() for p in model.parameters())
    assert plan(config).parameters == (everything, everything)


def test_epochs_and_steps_are_planned_from_the_batches(run_file):
    config = read_run_file(run_file, ["trainer.max_steps=-1", "trainer.num_train_epochs=2.5"])
    assert plan(config).steps == 13  # two and a half times five batches


def test_losses_on_held_out_pairs_are_logged(run_file, tmp_path, capsys):
    held_out = f"data.eval=[{{path: {tmp_path / 'pairs.jsonl'}, limit: 5}}]"
    assert main(["train", str(run_file), held_out, "trainer.max_steps=2", "trainer.eval_steps=1"]) == 0
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    losses = [entry["eval_contrastive_loss"] for entry in state["log_history"] if "eval_contrastive_loss" in entry]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_a_run_scores_the_tasks_it_names(run_file, tmp_path):
    write_sts(tmp_path / "mteb")
    scored = ["eval.tasks=[BIOSSES]", f"eval.data_dir={tmp_path / 'mteb'}", f"eval.results_dir={tmp_path / 'results'}"]
    roomy = "model.max_length=64"  # for the task's instruction and the text after it
    assert main(["train", str(run_file), "trainer.max_steps=1", roomy, *scored]) == 0
    assert "BIOSSES" in (tmp_path / "out" / "scores.md").read_text()
