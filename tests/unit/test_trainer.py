"""EmbeddingTrainer: one step, logs, evaluation, checkpoints."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from tests.unit.training import pairs, tiny_model, trainer, weights
from ullme import distributed
from ullme.data import PairCollator, TokenMasking, train_loader
from ullme.models import ULLME
from ullme.trainer import EmbeddingTrainer, plot_losses, training_arguments


def losses(run) -> list[dict[str, float]]:
    """What was logged at each step, without times."""
    kept = ("loss", "grad_norm", "learning_rate", "contrastive_loss", "dpo_loss", "kl_loss", "eval_loss", "step")
    logged = [entry for entry in run.state.log_history if "train_runtime" not in entry]
    return [{name: entry[name] for name in kept if name in entry} for entry in logged]


def test_training_lowers_every_loss_and_logs_each(tmp_path):
    run = trainer(tmp_path, tiny_model(tmp_path, lora_dropout=0.0), "grl_sft", max_steps=30, learning_rate=3e-3)
    run.train()
    first, last = run.state.log_history[0], run.state.log_history[29]
    for name in ("loss", "contrastive_loss", "sft_loss"):
        assert last[name] < first[name], name
    assert {"kl_loss", "grad_norm", "learning_rate"} <= set(first)
    total = first["contrastive_loss"] + 0.5 * first["sft_loss"] + first["kl_loss"]
    assert first["loss"] == pytest.approx(total, rel=1e-5)


def test_logs_go_to_tensorboard_by_default(tmp_path):
    assert training_arguments(output_dir=str(tmp_path)).report_to == ["tensorboard"]
    run = trainer(tmp_path, tiny_model(tmp_path), max_steps=1, report_to="tensorboard")
    run.train()
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("chunk_tokens", [1, 200])
def test_a_run_does_not_depend_on_chunk_size(tmp_path, chunk_tokens):
    whole = trainer(tmp_path, tiny_model(tmp_path, lora_dropout=0.0), chunk_tokens=100_000)
    whole.train()
    cut = trainer(tmp_path, tiny_model(tmp_path, lora_dropout=0.0), chunk_tokens=chunk_tokens)
    cut.train()
    for a, b in zip(losses(whole), losses(cut), strict=True):
        assert a == pytest.approx(b, rel=2e-3)


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "full"])
@pytest.mark.parametrize("stop_at", [2, 4, 6])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, lora, stop_at):
    """24 rows, 4 steps an epoch: stops inside an epoch, at its end, and inside the next one; with dropout."""
    options = {
        "max_steps": 8,
        "chunk_tokens": 150,
        "save_steps": 2,
        "save_strategy": "steps",
        "lr_scheduler_type": "cosine",
    }
    objectives, adapter = ("grl", {}) if lora else ("grl_sft", {"lora_name": None, "lora_r": 16, "lora_dropout": 0.0})
    whole = trainer(tmp_path / "a", tiny_model(tmp_path, **adapter), objectives, **options)
    whole.train()
    resumed = trainer(tmp_path / "b", tiny_model(tmp_path, **adapter), objectives, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "run" / f"checkpoint-{stop_at}"))
    right, found = weights(whole.model), weights(resumed.model)
    assert right.keys() == found.keys()
    assert all(torch.equal(right[name], found[name]) for name in right)
    assert losses(whole) == losses(resumed)


def test_a_checkpoint_of_an_adapter_holds_no_base_weights_and_no_pickled_arguments(tmp_path):
    run = trainer(tmp_path, tiny_model(tmp_path), max_steps=1, save_strategy="steps", save_steps=1)
    run.train()
    files = {path.name for path in (tmp_path / "run" / "checkpoint-1").iterdir()}
    assert {"adapter_model.safetensors", "ullme.json", "trainer_state.json", "optimizer.pt"} <= files
    assert not {"model.safetensors", "training_args.bin"} & files


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    scores = iter([0.1, 0.9, 0.2, 0.3])
    seen = []

    def evaluator(model):
        seen.append(weights(model))
        return {"ndcg": next(scores)}

    run = trainer(
        tmp_path,
        tiny_model(tmp_path),
        max_steps=4,
        evaluator=evaluator,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="ndcg",
        greater_is_better=True,
    )
    run.train()
    best = weights(run.model)
    assert all(torch.equal(best[name], seen[1][name]) for name in best)
    assert run.state.best_model_checkpoint.endswith("checkpoint-2")


def test_evaluation_reports_each_objective_and_changes_nothing(tmp_path):
    options = {
        "max_steps": 4,
        "eval_dataset": {"held": pairs(10), "out": pairs(7)},
        "evaluator": lambda m: {"mrr": 0.5},
    }
    plain = trainer(tmp_path, tiny_model(tmp_path), max_steps=4)
    plain.train()
    watched = trainer(tmp_path, tiny_model(tmp_path), eval_strategy="steps", eval_steps=1, **options)
    watched.train()
    logged = [entry for entry in watched.state.log_history if "eval_mrr" in entry]
    assert len(logged) == 4
    parts = [logged[0][f"eval_held_{name}_loss"] for name in ("contrastive", "dpo", "kl")]
    assert logged[0]["eval_held_loss"] == pytest.approx(parts[0] + 0.5 * parts[1] + parts[2])
    right, found = weights(plain.model), weights(watched.model)
    assert all(torch.equal(right[name], found[name]) for name in right)


@pytest.mark.parametrize("masked", [False, True], ids=["sampled passages", "masked tokens"])
def test_evaluation_is_of_the_same_texts_in_every_epoch(tmp_path, masked):
    """At a learning rate of 0, though training samples and masks anew each epoch with the same collator."""
    model = tiny_model(tmp_path)
    masking = TokenMasking(0.4, token_id=3, replacement="all", vocabulary=64, special_ids=frozenset({0}))
    collator = PairCollator(model.text_tokenizer, 1, choice="sampled", masking=masking if masked else None)
    values = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    args = training_arguments(**values, learning_rate=0.0, num_train_epochs=3, eval_strategy="epoch")
    run = EmbeddingTrainer(
        model,
        [{"type": "mntp" if masked else "contrastive"}],
        args,
        train_dataset=pairs(),
        data_collator=collator,
        eval_dataset=pairs(10, negatives=2),
    )
    run.train()
    evaluated = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 3 and len(set(evaluated)) == 1
    assert collator.epoch == 2  # training's own goes on


def test_bf16_autocast_on_the_cpu_keeps_adapters_and_losses_in_float32(tmp_path):
    model = tiny_model(tmp_path)
    run = trainer(tmp_path, model, bf16=True, max_steps=3, chunk_tokens=150)
    run.train()
    assert all(math.isfinite(entry["loss"]) for entry in losses(run))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    exact = trainer(tmp_path, tiny_model(tmp_path), max_steps=1, chunk_tokens=150)
    exact.train()
    assert losses(run)[0]["loss"] == pytest.approx(losses(exact)[0]["loss"], rel=0.05)
    assert losses(run)[0]["loss"] != losses(exact)[0]["loss"]


def test_after_training_the_model_is_unwrapped_and_may_be_trained_again(tmp_path):
    model = tiny_model(tmp_path)
    use_cache = model.config.use_cache
    trainer(tmp_path, model, bf16=True, max_steps=1).train()
    assert "forward" not in model.__dict__ and model.config.use_cache == use_cache
    again = trainer(tmp_path, model, max_steps=1)
    again.train()
    assert math.isfinite(losses(again)[0]["loss"])


def test_activation_checkpointing_gives_the_same_run(tmp_path):
    plain = trainer(tmp_path, tiny_model(tmp_path), max_steps=2, chunk_tokens=150)
    plain.train()
    spared = trainer(tmp_path, tiny_model(tmp_path), max_steps=2, chunk_tokens=150, activation_checkpointing=True)
    spared.train()
    assert losses(spared)[1] == pytest.approx(losses(plain)[1], rel=1e-4)


def test_what_no_objective_reaches_is_frozen_only_while_training(tmp_path):
    model = tiny_model(tmp_path, lora_name=None, pooling="latent")
    head, latents = model.causal_lm.get_output_embeddings().weight, list(model.pooler.parameters())

    def changed_by(objectives):
        before = [p.detach().clone() for p in (head, *latents)]
        trainer(tmp_path, model, objectives, max_steps=2).train()
        changed = [not torch.equal(p, b) for p, b in zip((head, *latents), before, strict=True)]
        return changed[0], any(changed[1:])

    assert changed_by("contrastive") == (False, True)
    assert all(p.requires_grad for p in (head, *latents))
    assert changed_by([{"type": "sft"}]) == (True, False)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_row(tmp_path):
    model = tiny_model(tmp_path)
    run = trainer(tmp_path, model, "grl", chunk_tokens=100)
    batch = next(iter(run.get_train_dataloader()))
    broken, embed = batch.query.rows([2]), model.embed_texts

    def embed_texts(texts):
        rep_ND = embed(texts)
        for i, ids in enumerate(texts.ids_X.split(texts.lengths_N.tolist())):
            if torch.equal(ids, broken.ids_X):
                rep_ND = rep_ND.index_fill(0, torch.tensor([i]), math.nan)
        return rep_ND

    model.embed_texts = embed_texts
    with pytest.raises(ValueError, match=rf"not finite at step 1 .*rows {batch.row_ids[2]};"):
        run.train()


def test_arguments_that_cannot_work_are_refused_before_training(tmp_path):
    model = tiny_model(tmp_path)
    with pytest.raises(ValueError, match="gradient_accumulation_steps: 2 .*per_device_train_batch_size"):
        trainer(tmp_path, model, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="dpo compares with the original LLM.*lora_name"):
        trainer(tmp_path, tiny_model(tmp_path, lora_name=None), "grl")
    with pytest.raises(ValueError, match="objectives: preset: 'grll' is unknown; did you mean 'grl'"):
        trainer(tmp_path, model, "grll")
    with pytest.raises(ValueError, match="chunk_tokens: 0"):
        trainer(tmp_path, model, chunk_tokens=0)
    with pytest.raises(ValueError, match="'learning_rat' is unknown; did you mean 'learning_rate'"):
        training_arguments(learning_rat=1)
    with pytest.raises(ValueError, match="data_collator: is missing"):
        EmbeddingTrainer(model, "grl", train_dataset=pairs())


def test_batches_that_lack_generation_texts_are_refused_with_the_cure(tmp_path):
    model = tiny_model(tmp_path)
    loader = [PairCollator(model.text_tokenizer)([pairs()[i] for i in range(3)])]
    with pytest.raises(ValueError, match="no generation texts, which dpo, kl need.*generation=True"):
        trainer(tmp_path, model, train_loader=loader, max_steps=1).train()
    with pytest.raises(ValueError, match="yields list, not Batch"):
        trainer(tmp_path, model, train_loader=[[1, 2]], max_steps=1).train()


def test_a_loader_for_other_processes_than_those_that_run_is_refused(tmp_path):
    model = tiny_model(tmp_path)
    loader = train_loader(pairs(), PairCollator(model.text_tokenizer), 4, rank=0, world_size=2)
    with pytest.raises(ValueError, match=r"train_loader: .*2 processes.* 1 .*leave rank and world_size out"):
        EmbeddingTrainer(model, args=training_arguments(output_dir=str(tmp_path), use_cpu=True), train_loader=loader)


def test_a_process_that_is_one_of_several_and_alone_is_refused(tmp_path, monkeypatch):
    """As torchrun starts processes that find no GPU and are not told to use the CPU."""
    model, args = tiny_model(tmp_path), training_arguments(output_dir=str(tmp_path), use_cpu=True)
    assert distributed.rank() == 0
    for name, value in {"LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="one of 2 .*use_cpu=True"):
        EmbeddingTrainer(model, args=args, train_loader=[])
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.rank() == 0


def test_the_callers_arguments_are_left_alone(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), logging_nan_inf_filter=True, use_cpu=True)
    run = EmbeddingTrainer(tiny_model(tmp_path), args=args, train_loader=[])
    assert args.logging_nan_inf_filter and not run.args.logging_nan_inf_filter


def test_the_loss_plot_is_drawn_from_the_log(tmp_path):
    run = trainer(
        tmp_path, tiny_model(tmp_path), max_steps=2, eval_dataset=pairs(6), eval_strategy="steps", eval_steps=1
    )
    run.train()
    picture = plot_losses(run.state.log_history, tmp_path / "plots" / "loss.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="holds no loss"):
        plot_losses([], tmp_path / "none.png")


class Averaging(torch.optim.SGD):
    """As schedule-free optimizers do, holds weights to train with and others, here twice as large, for use."""

    mode = "train"

    def _turn(self, mode: str, factor: float) -> None:
        if self.mode != mode:
            for parameter in self.param_groups[0]["params"]:
                parameter.data.mul_(factor)
        self.mode = mode

    def train(self):
        self._turn("train", 0.5)

    def eval(self):
        self._turn("eval", 2.0)


def test_a_schedule_free_optimizers_averaged_weights_are_evaluated_and_saved(tmp_path):
    model, modes = tiny_model(tmp_path), []
    optimizer = Averaging([p for n, p in model.named_parameters() if "lora_" in n], lr=1e-2)
    run = trainer(
        tmp_path,
        model,
        "contrastive",
        max_steps=3,
        save_strategy="steps",
        save_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=pairs(6),
        evaluator=lambda model: modes.append(optimizer.mode) or {},
        optimizers=(optimizer, None),
    )
    run.train()
    assert modes == ["eval"] * 3 and optimizer.mode == "eval"
    saved = weights(ULLME.from_pretrained(tmp_path / "run" / "checkpoint-3"))
    assert all(torch.equal(saved[name], value) for name, value in weights(model).items())


def test_losses_of_an_epoch_are_those_of_its_own_steps(tmp_path):
    """Seven steps an epoch, logged every five: what is left of one epoch is no part of the next one's first mean."""
    model = tiny_model(tmp_path, lora_dropout=0.0)
    loader = train_loader(pairs(28), PairCollator(model.text_tokenizer), 4)
    run = trainer(tmp_path, model, "contrastive", logging_steps=5, train_loader=loader)
    for _ in range(2):
        run.fit_epoch(loader, planned_epochs=2)
    logged = [entry for entry in run.state.log_history if "contrastive_loss" in entry]
    assert len(logged) >= 2
    assert all(entry["loss"] == pytest.approx(entry["contrastive_loss"], rel=1e-3) for entry in logged)


def test_a_list_of_batches_is_resumed_inside_an_epoch(tmp_path):
    def batches(model):
        collate, rows = PairCollator(model.text_tokenizer), pairs()
        return [collate([rows[i] for i in range(at, at + 6)]) for at in range(0, 24, 6)]

    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path, model := tiny_model(tmp_path), "contrastive", train_loader=batches(model), **options)
    whole.train()
    again = trainer(tmp_path, model := tiny_model(tmp_path), "contrastive", train_loader=batches(model), **options)
    again.train(str(tmp_path / "run" / "checkpoint-6"))
    right = weights(whole.model)
    assert all(torch.equal(value, right[name]) for name, value in weights(again.model).items())


def test_a_loader_that_cannot_be_resumed_exactly_is_told(tmp_path):
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    for resume in (None, str(tmp_path / "run" / "checkpoint-2")):
        model = tiny_model(tmp_path)
        drawn = DataLoader(pairs(), batch_size=6, shuffle=True, collate_fn=PairCollator(model.text_tokenizer))
        run = trainer(tmp_path, model, "contrastive", train_loader=drawn, **options)
        if resume is None:
            run.train()
            continue
        with pytest.warns(UserWarning, match="train_loader: draws its order anew"):
            run.train(resume)


@pytest.mark.parametrize(
    ("argument", "cure"),
    [
        ({"label_smoothing_factor": 0.1}, 'generation={"label_smoothing"'),
        ({"neftune_noise_alpha": 5.0}, "leave it out"),
        ({"include_num_input_tokens_seen": "all"}, "leave it out"),
    ],
)
def test_arguments_without_effect_are_refused_with_the_cure(tmp_path, argument, cure):
    with pytest.raises(ValueError, match=f"{next(iter(argument))}: .* has no effect here; .*{cure}"):
        trainer(tmp_path, tiny_model(tmp_path), **argument)
