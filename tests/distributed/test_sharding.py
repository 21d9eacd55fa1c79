"""What sharding is told about a model, what it refuses, and weights that come back as they were."""

from __future__ import annotations

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import load_file

from tests.tiny import tiny_ullme
from tests.unit.training import trainer
from ullme.trainer import training_arguments
from ullme.trainer.sharding import configure, decoder_layers, release, twin_of, whole

WORKING = {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT", "cpu_ram_efficient_loading": False}


@pytest.fixture(scope="module")
def model(tiny_models):
    return tiny_ullme(tiny_models, "llama", lora_name="test", lora_r=4)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "gpt2", "phi", "mistral"])
def test_layers_are_found_by_structure(tiny_models, model_type):
    model = tiny_ullme(tiny_models, model_type, lora_name="test", lora_r=4)
    plugin = FullyShardedDataParallelPlugin(**WORKING)
    configure(plugin, model)
    assert len(decoder_layers(model)) == model.config.num_hidden_layers
    assert plugin.transformer_cls_names_to_wrap == [type(decoder_layers(model)[0]).__name__]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("activation_checkpointing", True),
        ("cpu_ram_efficient_loading", True),
        ("state_dict_type", "SHARDED_STATE_DICT"),
    ],
)
def test_what_cannot_work_is_refused_by_name(model, setting, value):
    plugin = FullyShardedDataParallelPlugin(**{**WORKING, setting: value})
    with pytest.raises(ValueError, match=rf"^fsdp_config\.{setting}: {value} .*; set") as error:
        configure(plugin, model)
    assert "\n" not in str(error.value)


def test_fsdp1_is_refused(tmp_path, model):
    with pytest.raises(ValueError, match=r"^fsdp_config\.version: 1 .*; set it to 2"):
        trainer(tmp_path, model, fsdp=True, fsdp_config={"version": 1})


def test_one_process_is_refused(tmp_path, model, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"^fsdp: is on, and there is one process"):
        trainer(tmp_path, model)


def test_a_twin_shares_weights_and_nothing_else(tiny_models):
    model = tiny_ullme(tiny_models, "gpt2")
    twin = twin_of(model)
    assert [id(p) for p in twin.parameters()] == [id(p) for p in model.parameters()]
    assert not set(map(id, twin.modules())) & set(map(id, model.modules()))
    assert twin.tokenizer is model.tokenizer
    texts = ["one", "two words"]
    assert torch.equal(twin.encode(texts, convert_to_tensor=True), model.encode(texts, convert_to_tensor=True))


def test_a_twin_of_an_adapted_model_switches_its_own_adapter(model):
    twin = twin_of(model)
    modules = set(map(id, twin.modules()))
    assert twin.peft_model is not model.peft_model
    assert all(id(module) in modules for module in twin.peft_model.base_model.model.modules())


def test_whole_weights_stand_in_for_the_length_of_a_block(model, tmp_path):
    before = {name: p for name, p in model.named_parameters()}
    state = {name: torch.full_like(p, 0.5) for name, p in model.state_dict().items()}
    with whole(model, state):
        assert all(bool((p == 0.5).all()) for p in model.parameters())
        model.save_pretrained(tmp_path / "saved")
    assert all(p is before[name] for name, p in model.named_parameters())
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert saved and all(bool((value == 0.5).all()) for value in saved.values())


def test_released_weights_take_no_memory():
    linear = torch.nn.Linear(3, 4)
    release(linear)
    assert [p.numel() for p in linear.parameters()] == [0, 0]


def test_the_arguments_of_a_trainer_have_a_timeout():
    assert training_arguments(output_dir="unused").rank_timeout > 0
