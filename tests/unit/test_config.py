"""The run file: what it accepts, what it refuses and how it says so."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from transformers import trainer_optimizer
from transformers.integrations import integration_utils
from transformers.trainer_utils import SchedulerType

from tests.tiny import tiny_tokenizer
from ullme.apps.run_data import build_collator
from ullme.apps.train import training_arguments, warn_of_rounding
from ullme.config import LoraSection, ModelConfig, RunConfig, read_run_file
from ullme.config.training_choices import require_installed
from ullme.models import ModelSettings
from ullme.objectives import PRESETS
from ullme.prompts import TextTokenizer
from ullme.templates import instruction_prompt
from ullme.types import PairExample

ROOT = Path(__file__).parents[2]
MINIMAL = {
    "model": {"name_or_path": "some/model", "lora": {"r": 4}},
    "data": {"train": [{"path": "pairs.jsonl"}]},
    "objectives": "grl",
    "trainer": {"output_dir": "runs/test"},
}


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def refusal(path, *overrides):
    with pytest.raises(ValueError) as caught:
        read_run_file(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_run_file_of_the_repository_is_valid(path):
    assert read_run_file(path).objectives


def test_a_preset_stands_for_its_objectives(run_file):
    assert tuple(read_run_file(run_file).objectives) == PRESETS["grl"]


def test_contrastive_is_the_default(run_file):
    run_file.write_text(yaml.safe_dump({k: v for k, v in MINIMAL.items() if k != "objectives"}))
    assert tuple(read_run_file(run_file).objectives) == PRESETS["contrastive"]


def test_overrides_reach_sections_lists_and_presets(run_file):
    run = read_run_file(
        run_file,
        [
            "trainer.learning_rate=1e-4",
            "model.lora.r=32",
            "objectives.1.weight=0.25",
            "data.train.0.instruction=Find the passage",
            "model.prompts.query='Query: '",
            "eval.tasks=[STS12, STS13]",
        ],
    )
    assert run.trainer.learning_rate == 1e-4
    assert run.model.lora.r == 32
    assert [o.weight for o in run.objectives] == [1.0, 0.25, 1.0]
    assert run.data.train[0].instruction == "Find the passage"
    assert run.model.prompts == {"query": "Query: "}
    assert run.eval.tasks == ["STS12", "STS13"]


def test_interpolations_are_resolved(run_file):
    assert read_run_file(run_file, ["trainer.run_name=r${model.lora.r}"]).trainer.run_name == "r4"


def test_a_resolved_run_reads_back_as_itself(run_file, tmp_path):
    run = read_run_file(run_file, ["trainer.seed=7"])
    kept = run.save(tmp_path / "kept.yaml")
    assert read_run_file(kept) == run


def test_the_model_section_names_the_models_own_settings(run_file):
    settings = read_run_file(run_file, ["model.pooling=lasttoken", "model.append_eos=true"]).model.settings()
    assert settings == ModelSettings("some/model", lora_name="default", lora_r=4, pooling="lasttoken", append_eos=True)


def test_without_lora_all_weights_are_trained(run_file):
    assert not read_run_file(run_file, ["model.lora=null", "objectives=contrastive"]).model.settings().has_adapter


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("trainer.learing_rate=1", "trainer.learing_rate", "learning_rate"),
        ("modell.x=1", "modell", "model"),
        ("model.lora.ranke=1", "model.lora.ranke", ""),
        ("model.lora.alpa=1", "model.lora.alpa", "alpha"),
        ("data.train.0.pth=x", "data.train.0.pth", "path"),
        ("objectives.0.temprature=0.1", "objectives.0.temprature", "temperature"),
        ("objectives.1.betta=0.1", "objectives.1.betta", "beta"),
        ("eval.taks=[x]", "eval.taks", "tasks"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_nearest(run_file, override, key, nearest):
    message = refusal(run_file, override)
    assert message.startswith(f"{run_file}: {key}: unknown key")
    assert nearest in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.output_dir=???", "trainer.output_dir"),
        ("trainer.max_steps=many", "trainer.max_steps: 'many' should be a valid integer"),
        ("trainer.learning_rate=-1", "trainer.learning_rate: -1 should be greater than 0"),
        ("model.lora.r=0", "model.lora.r: 0 should be greater than 0"),
        ("model.lora.dropout=1", "model.lora.dropout: 1 should be less than 1"),
        ("model.pooling=mena", "model.pooling: 'mena' is unknown; did you mean 'mean'?"),
        ("model.dtype=fp32", "model.dtype: 'fp32' is unknown"),
        ("model.attention=bidirectionl", "did you mean 'bidirectional'?"),
        ("model.adapter_path=x", "model.adapter_path: 'x' and lora_name 'default' exclude each other"),
        ("objectives=grll", "objectives: 'grll' is unknown; did you mean 'grl'?"),
        ("objectives=[{type: dpoo}]", "objectives.0: type: 'dpoo' is unknown; did you mean 'dpo'?"),
        ("objectives=[{weight: 1}]", "has no type"),
        ("objectives=[]", "objectives: "),
        ("objectives.0.weight=-1", "objectives.0.weight: -1 should be greater than or equal to 0"),
        ("objectives=[{type: sft, weight: 0}]", "every weight is 0"),
        ("data.negatives_per_query=0", "data.negatives_per_query: is 0"),
        ("data.train=[]", "data.train: "),
        ("data=3", "data: 3 is no section"),
        ("trainer.gradient_accumulation_steps=4", "lower chunk_tokens"),
        ("trainer.warmup_ratio=0.1", "give warmup_steps"),
        ("trainer.lr_scheduler_type=cosin", "did you mean 'cosine'?"),
        ("trainer.lr_scheduler_type=warmup_stable_decay", "trainer.lr_scheduler_type: 'warmup_stable_decay' does not"),
        ("trainer.lr_scheduler_type=warmup_stable_decay", "set there what it needs of num_decay_steps, "),
        ("trainer.lr_scheduler_type=cosine_with_min_lr", "num_cycles, min_lr, min_lr_rate, or choose"),
        ("trainer.lr_scheduler_type=reduce_lr_on_plateau", "name some in data.eval"),
        ("trainer.lr_scheduler_kwargs={min_lr: 0.1}", "leave trainer.lr_scheduler_kwargs out"),
        ("trainer.lr_scheduler_kwargs=3", "trainer.lr_scheduler_kwargs: 3 should be a valid dictionary"),
        ("trainer={output_dir: x, lr_scheduler_type: constant, lr_scheduler_kwargs: {a: 1}}", "would change nothing"),
        ("trainer={output_dir: x, lr_scheduler_type: polynomial, max_steps: 5, warmup_steps: 5}", "'polynomial' does"),
        ("trainer.optim=adamw_torc", "trainer.optim: 'adamw_torc' is unknown; did you mean 'adamw_torch'?"),
        ("trainer.optim=galore_adamw", "trainer.optim: 'galore_adamw' needs optim_target_modules"),
        ("trainer.optim=lomo", "trainer.optim: 'lomo' changes the weights during the backward pass"),
        ("trainer.report_to=wandbb", "trainer.report_to: 'wandbb' is unknown; did you mean 'wandb'?"),
        ("trainer.report_to=[tensorboard, none]", "trainer.report_to: 'none' excludes the others"),
        ("trainer.output_dir=null", "trainer.output_dir: None "),
    ],
)
def test_a_wrong_value_is_named_with_its_dotted_key(run_file, override, said):
    message = refusal(run_file, override)
    assert message.startswith(f"{run_file}: ")
    assert said in message


@pytest.mark.parametrize("late", ["{num_decay_steps: 2, min_lr_ratio: a}", "{num_decay_steps: 2, num_cycles: a}"])
def test_an_argument_that_a_schedule_meets_only_at_its_end_is_refused_at_once(run_file, late):
    schedule = "trainer.lr_scheduler_type=warmup_stable_decay"
    said = refusal(run_file, "trainer.warmup_steps=3", schedule, f"trainer.lr_scheduler_kwargs={late}")
    assert "trainer.lr_scheduler_type: 'warmup_stable_decay' does not work" in said


def test_a_schedule_gets_its_arguments_and_a_run_file_without_any_is_what_it_was(run_file, tmp_path):
    plain = read_run_file(run_file)
    for values in (plain.model_dump(mode="json"), plain.model_dump(mode="json", exclude={"eval"})):
        assert "lr_scheduler_kwargs" not in values["trainer"] and values["trainer"]["lr_scheduler_type"] == "linear"
    assert "lr_scheduler_kwargs" not in plain.save(tmp_path / "plain.yaml").read_text()
    chosen = ["trainer.lr_scheduler_type=warmup_stable_decay", "trainer.lr_scheduler_kwargs.num_decay_steps=2"]
    run = read_run_file(run_file, chosen)
    assert run.model_dump(mode="json")["trainer"]["lr_scheduler_kwargs"] == {"num_decay_steps": 2}
    assert read_run_file(run.save(tmp_path / "kept.yaml")) == run
    assert training_arguments(run).lr_scheduler_kwargs == {"num_decay_steps": 2}


@pytest.mark.parametrize("schedule", [kind.value for kind in SchedulerType])
def test_every_schedule_of_transformers_can_be_chosen(run_file, schedule):
    options = {"warmup_stable_decay": "{num_decay_steps: 5}"} | {
        name: "{min_lr_rate: 0.1}" for name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
    }
    chosen = f"trainer.lr_scheduler_kwargs={options.get(schedule, '{}')}"
    held_out = "data.eval=[{path: held_out.jsonl}]"
    for warmup in ("0", "0.1", "7", "2000"):
        overrides = [f"trainer.lr_scheduler_type={schedule}", chosen, held_out, f"trainer.warmup_steps={warmup}"]
        assert read_run_file(run_file, overrides).trainer.lr_scheduler_type == schedule


@pytest.mark.parametrize(
    ("optim", "package"),
    [
        ("schedule_free_adamw", "schedulefree"),
        ("paged_adamw_8bit", "bitsandbytes"),
        ("adamw_torch_8bit", "torchao"),
        ("grokadamw", "grokadamw"),
        ("stable_adamw", "torch-optimi"),
    ],
)
def test_an_optimizer_without_its_package_is_refused_with_what_to_install(monkeypatch, optim, package):
    for name in vars(trainer_optimizer).copy():
        if name.startswith("is_") and name.endswith("_available"):
            monkeypatch.setattr(trainer_optimizer, name, lambda *args: False)
    with pytest.raises(
        ValueError, match=rf"^trainer\.optim: '{optim}' cannot be used here \(.*{package}.*choose another"
    ):
        require_installed(optim, "none")


@pytest.mark.parametrize("report_to", ["wandb", ["tensorboard", "wandb"]])
def test_a_place_for_logs_without_its_package_is_refused_with_what_to_install(monkeypatch, report_to):
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    with pytest.raises(ValueError, match=r"^trainer\.report_to: 'wandb' cannot be used here \(.*pip install wandb"):
        require_installed("adamw_torch", report_to)


@pytest.mark.parametrize("report_to", ["none", "all", "tensorboard", ["none"], []])
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"])
def test_what_needs_no_further_package_passes(optim, report_to):
    require_installed(optim, report_to)


def test_the_reference_is_live_where_the_model_holds_the_original(run_file):
    def reference(*overrides):
        return read_run_file(run_file, overrides).reference

    assert reference() == "live"
    assert reference("trainer.reference=precomputed") == "precomputed"
    assert reference("model.lora=null") == "precomputed"
    assert reference("model.merged_adapters=[some/stage]") == "precomputed"
    assert reference("objectives=grl_sft") is None


@pytest.mark.parametrize("gone", ["model.lora=null", "model.merged_adapters=[some/stage]"])
def test_a_reference_that_cannot_be_had_is_refused_with_its_reason(run_file, gone):
    key = gone.split("=")[0]
    said = refusal(run_file, gone, "objectives=grl_kto")
    assert said.startswith(f"{run_file}: {key}: ") and "objective 'kto' compares passages of other queries" in said
    said = refusal(run_file, gone, "trainer.reference=live")
    assert said.startswith(f"{run_file}: trainer.reference: 'live' is the model without its adapter") and key in said
    said = refusal(run_file, "objectives=grl_sft", "trainer.reference=live")
    assert "trainer.reference: is 'live', and no objective compares" in said


@pytest.mark.parametrize(
    "override",
    ["trainer.seed", "=3", "trainer.seed=[", "data.train.9.path=x", "objectives.x.weight=1"],
)
def test_a_broken_override_is_quoted(run_file, override):
    assert refusal(run_file, override).startswith(f"override {override!r}: ")


@pytest.mark.parametrize(
    "text", ["trainer: {seed: '${no.such}'}", "", "- a\n", "a: [", "trainer: {}\ntrainer: {}\n", "3", "\x00"]
)
def test_what_is_no_run_file_is_refused_by_name(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert refusal(path).startswith(f"{path}: ")


def test_a_missing_run_file_is_answered_with_the_nearest(run_file):
    assert str(run_file) in refusal(run_file.with_name("rum.yaml"))


def test_a_run_does_not_change_once_read(run_file):
    run: RunConfig = read_run_file(run_file)
    with pytest.raises(ValueError, match="frozen"):
        run.trainer.seed = 1


def test_the_model_section_has_every_setting_of_a_model_with_its_default():
    assert ModelConfig(name_or_path="x").settings() == ModelSettings("x")
    elsewhere = {"gradient_checkpointing"}  # in the trainer section, as in TrainingArguments
    renamed = {"model_name_or_path": "name_or_path", "model_backbone_type": "backbone_type"}
    own = {renamed.get(f.name, f.name) for f in fields(ModelSettings) if not f.name.startswith("lora_")} - elsewhere
    assert own == set(ModelConfig.model_fields) - {"lora"}
    of_adapter = {f.name.removeprefix("lora_"): f.default for f in fields(ModelSettings) if f.name.startswith("lora_")}
    section = {name: field.default for name, field in LoraSection.model_fields.items()}
    assert of_adapter | {"name": "default"} == section


@pytest.mark.parametrize("named", ["data.passage_prompt='passage: '", "model.prompts.document='passage: '"])
def test_passages_are_trained_with_the_prompt_that_documents_are_embedded_with(run_file, tmp_path, named):
    run = read_run_file(run_file, [named, "model.prompts.query='query: '"])
    assert run.model.prompts == {"query": "query: ", "document": "passage: "}
    assert run.data.passage_prompt == "passage: " and run.model.settings().prompts == run.model.prompts
    assert read_run_file(run.save(tmp_path / "resolved.yaml")) == run
    tokenizer = TextTokenizer(tiny_tokenizer())
    batch = build_collator(run, tokenizer)([PairExample("cat", ("mat",)), PairExample("cow", ("moo",), (), "Find it")])
    query, document = (tokenizer.texts([text], f"{kind}: ") for text, kind in (("cat", "query"), ("mat", "passage")))
    assert batch.query.rows([0]).ids_X.tolist() == query.ids_X.tolist()
    assert (
        batch.query.rows([1]).ids_X.tolist() == tokenizer.texts(["cow"], instruction_prompt("Find it")).ids_X.tolist()
    )
    assert batch.passage.rows([0]).ids_X.tolist() == document.ids_X.tolist()


def test_two_prompts_of_passages_are_refused(run_file):
    said = refusal(run_file, "data.passage_prompt='a: '", "model.prompts.document='b: '")
    assert "data.passage_prompt: 'a: ' would be trained with and model.prompts.document, 'b: '" in said


@pytest.mark.parametrize(("override", "warned"), [("model.lora=null", True), ("model.lora.r=2", False)])
def test_half_precision_weights_that_are_trained_are_warned_of(run_file, caplog, override, warned):
    warn_of_rounding(read_run_file(run_file, ["model.dtype=bfloat16", "objectives=contrastive", override]))
    assert ("held in bfloat16" in caplog.text) == warned
