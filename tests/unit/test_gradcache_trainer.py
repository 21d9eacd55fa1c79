"""GradCacheTrainer: the paper's keywords, one epoch a call."""

from __future__ import annotations

import pytest
import torch

from tests.unit.training import pairs, tiny_model, weights
from ullme.data import PairCollator, train_loader
from ullme.objectives import DPO, KL, OBJECTIVES, PRESETS, Contrastive
from ullme.trainer import GradCacheTrainer


def facade(tmp_path, **options) -> GradCacheTrainer:
    values = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return GradCacheTrainer(**{"logging_steps": 1, **values, **options})


def loader(model, batch_size: int = 6, generation: bool = True):
    return train_loader(pairs(), PairCollator(model.text_tokenizer, generation=generation), batch_size)


def test_the_listings_keywords_are_the_papers_presets(tmp_path):
    grl = facade(tmp_path, con_loss_type="NTXentLoss", gen_loss_type="dpo", use_kl_loss=True)
    assert grl.objectives == PRESETS["grl"]
    for name in ("sft", "kto", "cpo"):
        assert facade(tmp_path, gen_loss_type=name, use_kl_loss=True).objectives == PRESETS[f"grl_{name}"]
    assert facade(tmp_path).objectives == PRESETS["contrastive"]
    assert facade(tmp_path, gen_loss_type="sigmoid", use_kl_loss=True).objectives == PRESETS["grl"]
    own = facade(tmp_path, con_loss_type="SupConLoss", temperature=0.1, contrastive={"symmetric": True})
    assert own.objectives == (Contrastive(loss="SupConLoss", temperature=0.1, symmetric=True),)


@pytest.mark.parametrize("name", ["sft", "dpo", "ipo", "hinge", "kto", "cpo", "simpo", "orpo"])
def test_every_generation_loss_has_its_own_defaults_and_takes_options(tmp_path, name):
    kind = OBJECTIVES[name]
    assert facade(tmp_path, gen_loss_type=name).objectives[1] == kind(weight=0.5)
    if "beta" in kind.model_fields:
        assert facade(tmp_path, gen_loss_type=name, beta=0.7).objectives[1] == kind(weight=0.5, beta=0.7)


def test_further_options_reach_the_generation_loss_and_the_kl(tmp_path):
    options = {"beta": 0.3, "generation": {"label_smoothing": 0.1}, "kl": {"direction": "gen||rt"}}
    found = facade(tmp_path, con_loss_type=None, gen_loss_type="dpo", use_kl_loss=True, **options)
    assert found.objectives == (DPO(weight=0.5, beta=0.3, label_smoothing=0.1), KL(direction="gen||rt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"con_loss_type": "NTXent_Loss"}, "con_loss_type: 'NTXent_Loss' is not available; did you mean 'NTXentLoss'"),
        ({"gen_loss_type": "DPO"}, "gen_loss_type: 'DPO' is not available; did you mean 'dpo'"),
        ({"gen_loss_type": "kto_pair"}, "gen_loss_type: 'kto_pair' is not available; did you mean 'kto'"),
        ({"gen_loss_type": "dpo", "generation": {"betta": 1}}, "key of dpo: 'betta' is unknown; did you mean 'beta'"),
        ({"gen_loss_type": "dpo", "beta": -1.0}, r"dpo.beta: .*greater than 0 \(got -1.0\)"),
        ({"gen_loss_type": "sft", "beta": 0.1}, "key of sft: 'beta' is unknown"),
        ({"contrastive": {"temperatur": 1}}, "key of contrastive: 'temperatur' is unknown; did you mean 'temperature'"),
        ({"generation": {"beta": 1}}, r"gen_loss_type: is off, yet there are options of its loss \(beta\)"),
        ({"kl": {"direction": "rt||gen"}}, "use_kl_loss: is off"),
        ({"learning_rat": 1e-4}, "'learning_rat' is unknown; did you mean 'learning_rate'"),
        ({"con_loss_type": None}, "leaves nothing to train"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_right_one(tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        facade(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_repeated_epochs_keep_optimizer_schedule_steps_and_logs(tmp_path):
    """Two calls are the two epochs of one run: same weights, same losses, same learning rates."""
    options = {"gen_loss_type": "sft", "use_kl_loss": True, "num_epochs": 2, "learning_rate": 1e-2}
    model = tiny_model(tmp_path)
    trainer = facade(tmp_path, **options)
    for epoch in range(2):
        batches = loader(model)
        output = trainer.fit_epoch(model=model, train_loader=batches)
        assert output.global_step == 4 * (epoch + 1)

    one_go = tiny_model(tmp_path)
    from ullme.trainer import EmbeddingTrainer, training_arguments

    args = training_arguments(
        output_dir=str(tmp_path / "other"),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        num_train_epochs=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
    )
    whole = EmbeddingTrainer(one_go, trainer.objectives, args, train_loader=loader(one_go))
    whole.train()
    kept = ("loss", "learning_rate", "step", "grad_norm")
    logged = [[tuple(e[k] for k in kept) for e in t.state.log_history if "loss" in e] for t in (trainer.trainer, whole)]
    assert logged[0] == logged[1] and len(logged[0]) == 8
    right, found = weights(one_go), weights(model)
    assert all(torch.equal(right[name], found[name]) for name in right)
    with pytest.raises(ValueError, match="all 2 epochs of the schedule are done"):
        trainer.fit_epoch(model=model, train_loader=loader(model))


def test_without_num_epochs_the_rate_stays_and_loaders_may_differ_in_length(tmp_path):
    model = tiny_model(tmp_path)
    trainer = facade(tmp_path, learning_rate=1e-3)
    for size in (3, 12, 4):
        trainer.fit_epoch(model=model, train_loader=loader(model, size, generation=False))
    rates = {e["learning_rate"] for e in trainer.trainer.state.log_history if "learning_rate" in e}
    assert rates == {1e-3} and trainer.trainer.state.global_step == 8 + 2 + 6


def test_a_plain_list_of_batches_is_a_loader(tmp_path):
    model = tiny_model(tmp_path)
    trainer = facade(tmp_path)
    assert trainer.fit_epoch(model=model, train_loader=list(loader(model))).global_step == 4


def test_loaders_that_cannot_serve_are_refused_with_the_cure(tmp_path):
    model = tiny_model(tmp_path)
    with pytest.raises(ValueError, match="no generation texts, which dpo need.*generation=True"):
        facade(tmp_path, gen_loss_type="dpo").fit_epoch(model=model, train_loader=loader(model, generation=False))
    with pytest.raises(ValueError, match="train_loader: has no length"):
        facade(tmp_path).fit_epoch(model=model, train_loader=(batch for batch in loader(model)))
    trainer = facade(tmp_path)
    trainer.fit_epoch(model=model, train_loader=loader(model))
    with pytest.raises(ValueError, match="model: is another"):
        trainer.fit_epoch(model=tiny_model(tmp_path), train_loader=loader(model))
