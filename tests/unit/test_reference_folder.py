"""The folder of a reference's likelihoods: resumed, shared, and refused by name where it does not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.unit.training import FULL, computed_reference, pairs, tiny_model
from ullme.data import PairDataset
from ullme.models import ULLME
from ullme.trainer import reference as reference_module

ROWS = 8


def computed(model, folder, data=None, **options):
    return computed_reference(model, folder, pairs(ROWS) if data is None else data, **options)


@pytest.fixture
def limited(monkeypatch):
    """Lets models score texts a number of times, then interrupts the process; the calls are listed."""
    score = ULLME.score_texts

    def limit(allowed):
        calls = []

        def counted(model, texts):
            if len(calls) == allowed:
                raise KeyboardInterrupt
            calls.append(len(texts))
            return score(model, texts)

        monkeypatch.setattr(ULLME, "score_texts", counted)
        return calls

    return limit


def test_what_is_complete_costs_no_forward_and_what_is_not_goes_on(tmp_path, limited):
    model = tiny_model(tmp_path, **FULL)
    limited(2)
    with pytest.raises(KeyboardInterrupt):
        computed(model, tmp_path)
    files = sorted(p.name for p in (tmp_path / "reference").iterdir())
    assert files == ["00000.safetensors", "00001.safetensors", "manifest.json"]
    calls = limited(4)
    table = computed(model, tmp_path)
    assert calls == [7, 3]  # of 24 texts, the third and the fourth shard
    limited(0)
    again = computed(tiny_model(tmp_path, **FULL), tmp_path, shard_texts=5)
    assert torch.equal(table.logp_N, again.logp_N) and (table.key_N == again.key_N).all()


def test_an_adapter_in_training_does_not_change_the_fingerprint(tmp_path, limited):
    table = computed(tiny_model(tmp_path, **FULL), tmp_path)
    limited(0)
    model = tiny_model(tmp_path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 1.0
    assert torch.equal(computed(model, tmp_path).logp_N, table.logp_N)


def test_computing_changes_neither_model_nor_random_numbers(tmp_path):
    model = tiny_model(tmp_path).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    state = torch.get_rng_state()
    computed(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), state) and all(m.training for m in model.modules())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def weights(model, folder):
    with torch.no_grad():
        next(model.causal_lm.parameters())[0, 0] += 1.0


def config(model, folder):
    model.config.rms_norm_eps *= 2


def tokenizer(model, folder):
    model.tokenizer.add_tokens(["number"])


def template(model, folder):
    return {"model": tiny_model(folder, **FULL, generation_template="{query}: ")}


def max_length(model, folder):
    return {"model": tiny_model(folder, **FULL, max_length=9)}


def precision(model, folder):
    return {"autocast": torch.bfloat16}


def negatives(model, folder):
    return {"negatives_per_query": 1}


def row(model, folder):
    rows = [pairs(ROWS)[i] for i in range(ROWS)]
    rows[3] = replace(rows[3], negatives=(*rows[3].negatives[:-1], "something else"))
    return {"data": PairDataset.from_examples(rows)}


def held_out(model, folder):
    return {"data": {"pairs": pairs(ROWS), "held": pairs(2)}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (weights, "weights [0-9a-f]{12}, and this run has [0-9a-f]{12}; take the model it was computed with"),
        (config, "config [0-9a-f]{12}, and this run has [0-9a-f]{12}; set config back"),
        (tokenizer, "tokenizer [0-9a-f]{12}, and this run has [0-9a-f]{12}; set tokenizer back"),
        (template, r"generation_template 'Query: .*, and this run has '\{query\}: '; set generation_template back"),
        (max_length, "max_length '64', and this run has '9'; set max_length back"),
        (precision, "precision 'torch.float32', and this run has 'torch.float32 under autocast to torch.bfloat16'"),
        (negatives, "passages 'all positives, all negatives', and this run has 'all positives, first 1 negatives'"),
        (row, "data 'pairs' [0-9a-f]{12}, and this run has [0-9a-f]{12}; give the pairs it was computed for"),
        (held_out, "data 'held' none, and this run has [0-9a-f]{12}; give the pairs"),
    ],
)
def test_another_part_is_refused_by_name(tmp_path, limited, change, said):
    model = tiny_model(tmp_path, **FULL)
    computed(model, tmp_path)
    given = {"model": model, **(change(model, tmp_path) or {})}
    limited(0)
    with pytest.raises(ValueError, match=said) as caught:
        computed(given.pop("model"), tmp_path, **given)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("reference '")
    assert message.endswith(", or delete the folder to compute it again")


def written(name, text):
    return lambda folder: (folder / name).write_text(text)


def shortened(folder):
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, "texts": 14}))


def truncated(folder):
    shard = folder / "00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-9])


def changed(folder):
    shard = folder / "00001.safetensors"
    with safe_open(shard, "pt") as file:
        metadata = file.metadata()
    save_file({**load_file(shard), "logp": load_file(shard)["logp"] + 1}, shard, metadata)


def exchanged(folder):
    (folder / "00001.safetensors").write_bytes((folder / "00003.safetensors").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (written("manifest.json", "{"), "manifest.json' is damaged or no manifest .*; delete the folder"),
        (written("manifest.json", "[1, 2]"), "manifest.json' is damaged or no manifest .*; delete the folder"),
        (written("manifest.json", '{"format": 2}'), "manifest.json' is not of format 1; update ullme"),
        (shortened, "manifest.json' is damaged .14 texts, but its data has 24.; delete the folder"),
        (lambda folder: (folder / "manifest.json").unlink(), "holds no manifest.json; name another folder"),
        (written("00001.safetensors", ""), "00001.safetensors' is damaged .*; delete this file"),
        (truncated, "00001.safetensors' is damaged .*; delete this file"),
        (changed, "00001.safetensors' is damaged or belongs to another folder; delete this file"),
        (exchanged, "00001.safetensors' is damaged or belongs to another folder; delete this file"),
    ],
)
def test_damage_is_refused_by_name(tmp_path, limited, spoil, said):
    model = tiny_model(tmp_path, **FULL)
    computed(model, tmp_path)
    spoil(tmp_path / "reference")
    limited(0)
    with pytest.raises(ValueError, match=said) as caught:
        computed(model, tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("reference")


def test_a_shard_of_another_table_is_refused(tmp_path):
    model = tiny_model(tmp_path, **FULL)
    computed(model, tmp_path)
    computed(model, tmp_path / "other", autocast=torch.bfloat16)
    shard = "reference/00000.safetensors"
    (tmp_path / shard).write_bytes((tmp_path / "other" / shard).read_bytes())
    with pytest.raises(ValueError, match="00000.safetensors' is damaged or belongs to another folder"):
        computed(model, tmp_path)


def test_a_shard_that_went_missing_is_computed_again(tmp_path, limited):
    model = tiny_model(tmp_path, **FULL)
    table = computed(model, tmp_path)
    (tmp_path / "reference" / "00002.safetensors").unlink()
    calls = limited(4)
    assert torch.equal(computed(model, tmp_path).logp_N, table.logp_N) and calls == [7]


def test_a_likelihood_that_is_not_finite_names_its_row(tmp_path):
    model = tiny_model(tmp_path, **FULL)
    with torch.no_grad():
        model.causal_lm.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="row pairs:1 is nan; look at the row"):
        computed(model, tmp_path)
    assert json.loads((tmp_path / "reference" / "manifest.json").read_text())["texts"] == 3 * ROWS


def test_processes_share_the_shards_and_read_all(tmp_path, monkeypatch):
    """Rank 1 of 2 computes every second shard; the table is whole only when rank 0 has done the others."""
    model = tiny_model(tmp_path, **FULL)
    right = computed(model, tmp_path / "single")
    with monkeypatch.context() as second:
        second.setattr(reference_module.distributed, "rank", lambda: 1)
        second.setattr(reference_module.distributed, "world_size", lambda: 2)
        (tmp_path / "reference").mkdir()
        kept = sorted(p.name for p in (tmp_path / "single" / "reference").iterdir())
        (tmp_path / "reference" / "manifest.json").write_bytes(
            (tmp_path / "single" / "reference" / "manifest.json").read_bytes()
        )
        with pytest.raises(ValueError, match="00000.safetensors' is missing.*a disk that all processes share"):
            computed(model, tmp_path)
    assert sorted(p.name for p in (tmp_path / "reference").glob("*.safetensors")) == [
        "00001.safetensors",
        "00003.safetensors",
    ]
    assert torch.equal(computed(model, tmp_path).logp_N, right.logp_N)
    assert sorted(p.name for p in (tmp_path / "reference").iterdir()) == kept
