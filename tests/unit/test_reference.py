"""The reference model's likelihoods, computed once before training: equal to the live ones in table and step."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.parity.float64 import in_float64
from tests.parity.oracle import gradients, relative_error
from tests.unit.training import FULL, computed_reference, pairs, tiny_model, trainer
from ullme.data import PairCollator, PairDataset
from ullme.models.inputs import reference_logp
from ullme.objectives import DPO
from ullme.trainer import GradCacheTrainer, compute_reference
from ullme.trainer.reference_table import token_keys

ROWS = 8


def computed(model, folder, data=None, **options):
    return computed_reference(model, folder, pairs(ROWS) if data is None else data, **options)


def batch_of(model, data, index, **options):
    return PairCollator(model.text_tokenizer, generation=True, **options)([data[i] for i in index])


def gradient_of_a_step(folder, model, batch, objectives="grl", **options):
    run = trainer(folder, model, objectives, train_loader=[batch], chunk_tokens=150, **options)
    run.create_optimizer_and_scheduler(1)
    torch.manual_seed(3)
    loss = run.training_step(model, batch)
    found = gradients(model)
    model.zero_grad()
    return found, float(loss)


@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-12), (False, 1e-6)], ids=["float64", "float32"])
def test_the_table_holds_what_the_adapter_switched_off_gives(tmp_path, double, tolerance):
    model = tiny_model(tmp_path)
    model = in_float64(model) if double else model
    table = computed(model, tmp_path)
    batch = batch_of(model, pairs(ROWS), [5, 0, 7, 2])
    live_N, _ = reference_logp(model, batch.generation)
    found_N = table.logp(batch.generation)
    assert found_N.dtype == live_N.dtype
    assert float(((found_N - live_N) / live_N).abs().max()) < tolerance
    assert not torch.allclose(found_N, model.score_texts(batch.generation)[0].detach())  # the adapter does matter


def test_absent_passages_are_zero_and_order_does_not_matter(tmp_path):
    model = tiny_model(tmp_path)
    rows = [replace(e, negatives=e.negatives[: i % 3]) for i, e in enumerate(pairs(ROWS)[i] for i in range(ROWS))]
    data = PairDataset.from_examples(rows)
    table = computed(model, tmp_path, data)
    filled = table.filled(batch_of(model, data, range(ROWS)))
    turned = table.filled(batch_of(model, data, range(ROWS)[::-1]))
    assert torch.equal(filled.ref_logp_BP.flip(0), turned.ref_logp_BP)
    assert (filled.ref_logp_BP == 0).equal(~filled.passage_mask_BP)
    assert len(table) == int(filled.passage_mask_BP.sum())


def test_every_passage_that_sampling_may_bring_is_in_the_table(tmp_path):
    model = tiny_model(tmp_path, **FULL)
    table = computed(model, tmp_path)
    collate = PairCollator(model.text_tokenizer, 1, generation=True, choice="sampled")
    for epoch in range(4):
        collate.set_epoch(epoch)
        assert table.filled(collate([pairs(ROWS)[i] for i in range(ROWS)])).ref_logp_BP.isfinite().all()


def test_only_the_first_passages_are_scored_where_no_others_come_up(tmp_path):
    model = tiny_model(tmp_path, **FULL)
    table = computed(model, tmp_path, negatives_per_query=1)
    assert len(table) == 2 * ROWS
    assert table.filled(batch_of(model, pairs(ROWS), range(3), negatives_per_query=1)).ref_logp_BP.shape == (3, 2)
    with pytest.raises(ValueError, match="rows pairs:1, pairs:2, pairs:3 have texts that .* does not know"):
        table.filled(batch_of(model, pairs(ROWS), range(3)))
    with pytest.raises(ValueError, match="passages 'all positives, first 1 negatives', and this run has 'all positi"):
        computed(model, tmp_path)


def test_a_text_that_comes_twice_is_scored_once(tmp_path):
    once = [pairs(ROWS)[i] for i in range(ROWS)]
    model = tiny_model(tmp_path, **FULL)
    assert len(computed(model, tmp_path, {"train": once, "eval": once[:3]})) == 3 * ROWS
    lengths = [len(load_file(p)["key"]) for p in (tmp_path / "reference").glob("*.safetensors")]
    assert sum(lengths) == 3 * ROWS and max(lengths) == 7


def test_a_passage_is_scored_after_each_of_its_queries(tmp_path):
    model = tiny_model(tmp_path, **FULL)
    data = PairDataset.from_examples([replace(pairs(1)[0], query=query) for query in ("one?", "another?")])
    table = computed(model, tmp_path, data)
    ref_logp_BP = table.filled(batch_of(model, data, [0, 1])).ref_logp_BP
    assert len(table) == 6 and (ref_logp_BP[0] != ref_logp_BP[1]).all()


@pytest.mark.parametrize("adapter", [{}, FULL], ids=["adapter", "full"])
def test_a_model_in_training_mode_is_scored_without_dropout(tmp_path, adapter):
    model = tiny_model(tmp_path, attention_dropout=0.5, **adapter)
    right = computed(model.eval(), tmp_path)
    found = computed(model.train(), tmp_path / "again")
    assert torch.equal(found.logp_N, right.logp_N)


def test_equal_tokens_after_another_context_are_another_text(tmp_path):
    texts = batch_of(tiny_model(tmp_path), pairs(ROWS), [0, 1]).generation
    assert len(set(token_keys(texts))) == len(texts)
    moved = replace(texts, skip_N=texts.skip_N + 1)
    assert not set(token_keys(texts)) & set(token_keys(moved))


@pytest.mark.parametrize("objectives", ["grl", [{"type": "kto"}, {"type": "ipo"}]], ids=["grl", "kto+ipo"])
def test_a_step_with_the_table_equals_one_with_the_live_reference(tmp_path, objectives):
    model = in_float64(tiny_model(tmp_path))
    batch = batch_of(model, pairs(ROWS), range(6))
    right, loss = gradient_of_a_step(tmp_path, model, batch, objectives)
    found, same = gradient_of_a_step(tmp_path, model, batch, objectives, reference=computed(model, tmp_path))
    assert same == pytest.approx(loss, rel=1e-12)
    assert relative_error(found, right) < 1e-12


def test_the_step_runs_no_reference_forward(tmp_path, monkeypatch):
    model = tiny_model(tmp_path)
    table = computed(model, tmp_path)
    monkeypatch.setattr("ullme.models.inputs.reference_logp", None)
    trainer(tmp_path, model, "grl", dataset=pairs(ROWS), reference=table, max_steps=1).train()


def test_full_fine_tuning_compares_with_a_copy_of_the_model_from_before(tmp_path):
    model = in_float64(tiny_model(tmp_path, **FULL))
    table, original = computed(model, tmp_path), copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # some training later
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    batch = batch_of(model, pairs(ROWS), range(5))
    with torch.no_grad():
        ref_logp_BP = original.eval().score_texts(batch.generation)[0].view(batch.passage_mask_BP.shape)
    assert not torch.allclose(ref_logp_BP, model.score_texts(batch.generation)[0].view_as(ref_logp_BP))
    found, loss = gradient_of_a_step(tmp_path, model, batch, [{"type": "dpo"}], reference=table)
    inputs = replace(model.train()(batch=batch, needs={"logp"}), ref_logp_BP=ref_logp_BP)
    right = DPO()(inputs).mean()
    right.backward()
    assert loss == pytest.approx(right.item(), rel=1e-12)
    assert relative_error(found, gradients(model)) < 1e-12


def test_full_fine_tuning_trains_and_evaluates_with_a_table(tmp_path):
    model = tiny_model(tmp_path, **FULL)
    table = computed(model, tmp_path, {"train": pairs(ROWS), "eval": pairs(12)})
    run = trainer(tmp_path, model, "grl", dataset=pairs(ROWS), eval_dataset=pairs(12), reference=table, max_steps=3)
    before = run.evaluate()["eval_dpo_loss"]
    assert before == pytest.approx(0.6931, abs=1e-4)  # nothing is preferred to itself
    run.train()
    assert run.evaluate()["eval_dpo_loss"] < before
    with pytest.raises(ValueError, match="rows pairs:13 have texts that .* does not know; call compute_reference"):
        run.evaluate(pairs(13))


def test_the_papers_facade_takes_a_table(tmp_path):
    model = tiny_model(tmp_path, **FULL)
    batch = batch_of(model, pairs(ROWS), range(4))
    options = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    with pytest.raises(ValueError, match="dpo compares with the original LLM.*compute_reference"):
        GradCacheTrainer(gen_loss_type="dpo", **options).fit_epoch(model, [batch])
    GradCacheTrainer(gen_loss_type="dpo", reference=computed(model, tmp_path), **options).fit_epoch(model, [batch])


def test_what_cannot_work_is_refused_before_training(tmp_path):
    model = tiny_model(tmp_path, **FULL)
    table = computed(model, tmp_path)
    for said, objectives, given in [
        ("dpo compares with the original LLM.*reference=compute_reference", "grl", None),
        ("kto compares passages of other queries, paired anew.*lora_name", [{"type": "kto"}], table),
        ("reference: is given and no objective compares", "contrastive", table),
    ]:
        with pytest.raises(ValueError, match=said) as caught:
            trainer(tmp_path, model, objectives, reference=given)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="shard_texts: 0"):
        computed(model, tmp_path, shard_texts=0)
    with pytest.raises(ValueError, match="there is no row"):
        computed(model, tmp_path, data=[])
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        compute_reference(model, pairs(2), tmp_path / "file")
