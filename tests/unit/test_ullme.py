"""ULLME: embedding and generation by one model."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.batches import random_batch
from tests.tiny import SENTENCES, randomise_adapter, tiny_folder, tiny_ullme
from ullme.apps.check_tiny import tiny_config
from ullme.models import ULLME
from ullme.models.encoding import forward_batches
from ullme.models.lora import reference_mode
from ullme.models.specs import COUNTED_POSITIONS, most_positions
from ullme.types import Texts


@pytest.fixture
def model(tiny_models):
    return tiny_ullme(tiny_models, lora_name="test", lora_r=4)


@pytest.fixture(scope="module")
def plain(tiny_models):
    return AutoModelForCausalLM.from_pretrained(tiny_folder(tiny_models / "plain")).eval()


def test_generation_equals_the_plain_model_bit_for_bit(tiny_models, plain):
    model = ULLME(str(tiny_models / "plain")).eval()
    inputs = model.tokenizer(SENTENCES[:3], return_tensors="pt", padding=True)
    model(**inputs, is_generate=False)
    assert torch.equal(model(**inputs, is_generate=True).logits, plain(**inputs).logits)


def test_greedy_generation_with_cache_equals_the_plain_model(tiny_models, plain):
    model = ULLME(str(tiny_models / "plain")).eval()
    inputs = model.tokenizer(SENTENCES[:1], return_tensors="pt")
    model(**inputs)
    ours = model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=True)
    assert torch.equal(ours, plain.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=True))


def test_an_early_token_sees_a_late_one_only_when_embedding_bidirectionally(tiny_models):
    model = tiny_ullme(tiny_models, pooling="cls").eval()
    texts = Texts.from_lists([[5, 6, 7, 8, 9], [5, 6, 7, 8, 200]])
    for attention, same in (("causal", True), ("bidirectional", False)):
        first, other = model.embed_texts(texts, attention)
        assert torch.allclose(first, other, atol=1e-6) == same


def test_embeddings_are_the_same_alone_padded_on_either_side_and_in_any_batch(model):
    model.eval()
    alone = torch.cat([model(**model.tokenizer([s], return_tensors="pt"))["rep"] for s in SENTENCES])
    for side in ("left", "right"):
        inputs = model.tokenizer(SENTENCES, return_tensors="pt", padding=True, padding_side=side)
        assert torch.allclose(model(**inputs)["rep"], alone, atol=1e-5)
    for batch_size in (1, 2, 32):
        assert torch.allclose(model.encode(SENTENCES, batch_size=batch_size, convert_to_tensor=True), alone, atol=1e-5)


def test_prompt_lengths_leave_instruction_tokens_out_of_the_pool(model):
    model.eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    cls = model(ids, prompt_lengths=torch.tensor([3]))["rep"]
    hidden = model.switch.hidden(model.causal_lm, ids, torch.ones_like(ids), "bidirectional")
    assert torch.allclose(cls, hidden[:, 3], atol=1e-6)


@pytest.mark.parametrize("lengths", [[0, 4], [2, 3], [-1, 0]])
def test_prompt_lengths_that_leave_nothing_of_a_text_are_refused(model, lengths):
    ids, mask = torch.tensor([[5, 6, 7], [8, 9, 1]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    with pytest.raises(ValueError, match=r"prompt_lengths\[\d\]: -?\d tokens of a text of \d are left out"):
        model(ids, mask, prompt_lengths=torch.tensor(lengths))


def test_likelihoods_equal_those_of_the_plain_logits(model):
    model.eval()
    batch = random_batch(3, 2, seed=1, generation=True)
    logp_N, tokens_N = model.score_texts(batch.generation)
    for n in range(6):
        ids = batch.generation.rows([n]).ids_X[None]
        skip = int(batch.generation.skip_N[n])
        logits = model(input_ids=ids, is_generate=True).logits.log_softmax(-1)
        token_logp = logits[:, :-1].gather(2, ids[:, 1:, None]).squeeze()
        assert torch.allclose(logp_N[n], token_logp[skip - 1 :].sum(), atol=1e-4)
        assert tokens_N[n] == ids.shape[1] - skip


def test_reference_is_the_original_model_and_leaves_everything_as_it_was(tiny_models, model):
    model.train()
    batch = random_batch(2, 2, seed=2, generation=True)
    frozen = next(p for n, p in model.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    inputs = model(batch=batch, needs=("logp", "reference"))
    base = tiny_ullme(tiny_models).eval()
    assert torch.allclose(inputs.ref_logp_BP.flatten(), base.score_texts(batch.generation)[0], atol=1e-5)
    assert not torch.allclose(inputs.ref_logp_BP, inputs.logp_BP, atol=1e-3)
    assert not inputs.ref_logp_BP.requires_grad
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    assert model.training and all(m.training for m in model.modules())


def test_reference_mode_restores_after_an_error(model):
    with pytest.raises(RuntimeError), reference_mode(model, model.peft_model):
        raise RuntimeError
    randomise_adapter(model)
    assert all(p.requires_grad == ("lora_" in n) for n, p in model.causal_lm.named_parameters())


def test_reference_without_adapter_is_refused_with_the_cure(tiny_models):
    with pytest.raises(ValueError, match="set lora_name"):
        tiny_ullme(tiny_models)(batch=random_batch(1, 2, 0, generation=True), needs=("reference",))


def test_absent_passages_are_zero_and_have_no_likelihood(model):
    batch = random_batch(4, 3, seed=3, generation=True, ragged=True)
    inputs = model(batch=batch, needs=("embedding", "logp", "reference"))
    absent = ~batch.passage_mask_BP
    assert absent.any()
    assert not inputs.passage_BPD[absent].any()
    assert not inputs.logp_BP[absent].any() and not inputs.ref_logp_BP[absent].any()
    assert not inputs.tokens_BP[absent].any()


def test_only_the_adapter_is_trainable_with_lora_and_everything_without(tiny_models, model):
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if "lora_" in n
    }
    assert all(p.requires_grad for p in tiny_ullme(tiny_models).parameters())
    assert not any("lm_head" in n for n, p in model.named_parameters() if p.requires_grad)


def test_no_parameter_appears_twice_in_the_state(model):
    names = [n for n, _ in model.named_parameters(remove_duplicate=False) if "embed" not in n and "lm_head" not in n]
    assert len(names) == len({id(dict(model.named_parameters(remove_duplicate=False))[n]) for n in names})


def test_forward_batches_cover_present_texts_once(model):
    batch = random_batch(4, 3, seed=3, ragged=True)
    covered = sorted(i for rows in forward_batches(batch.passage, 30) for i in rows)
    assert covered == batch.passage_mask_BP.flatten().nonzero().flatten().tolist()


def test_wrong_backbone_type_names_the_right_one(tiny_models):
    tiny_ullme(tiny_models)
    with pytest.raises(ValueError, match="model_backbone_type: 'mistral' is wrong .* use 'llama'"):
        ULLME(str(tiny_models / "llama"), "mistral")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "maen"}, "pooling: 'maen' is unknown; did you mean 'mean'"),
        ({"attention": "full"}, "attention: 'full' is unknown; .*choose from bidirectional, causal"),
        ({"window": "open"}, "window: 'open' is unknown; .*choose from window, full"),
        ({"dtype": "bf16"}, "dtype: 'bf16' is unknown; .*bfloat16"),
        ({"quantization": "4bit"}, "^quantization: '4bit' needs a GPU"),
        ({"lora_name": "a", "lora_r": 0}, "lora_r: 0 is not positive"),
        ({"lora_name": "a", "lora_target_modules": ("nothing",)}, "lora_target_modules: .*nothing"),
        ({"lora_dropout": 1.0}, "lora_dropout: 1.0 is no probability"),
        ({"lora_name": "a", "adapter_path": "b"}, "exclude each other"),
        ({"adapter_path": "nowhere"}, "nowhere.*no adapter_config.json"),
        ({"generation_template": "no field"}, "lacks the field"),
        ({"max_length": 0}, "max_length: 0 is not positive"),
        ({"pooling": "cls", "attention": "causal"}, "pooling: 'cls' pools the first token, which under causal"),
    ],
)
def test_wrong_setting_names_field_value_and_cure(tiny_models, settings, message):
    tiny_ullme(tiny_models)
    if settings.get("quantization") and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=message):
        ULLME(str(tiny_models / "llama"), **settings)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nobody/nothing", "smollm-135m-instruct", "x.gguf"])
def test_model_that_cannot_be_found_is_one_clear_line(name):
    with pytest.raises(ValueError, match=r"^[^\n]*(does not exist|cannot be loaded)[^\n]*$"):
        ULLME(name)


def test_windows_are_kept_to_both_sides_or_opened_on_request(tiny_models):
    ids, other = torch.arange(5, 25)[None], torch.arange(5, 25)[None].clone()
    other[0, -1] = 200
    one_layer = {"num_hidden_layers": 1, "sliding_window": 4, "layer_types": ["sliding_attention"]}
    for window, same in (("window", True), ("full", False)):
        model = tiny_ullme(tiny_models / "windowed", "gemma3_text", one_layer, pooling="cls", window=window).eval()
        assert torch.allclose(model(ids)["rep"], model(other)["rep"], atol=1e-6) == same


def test_recurrent_model_is_refused_before_its_weights_are_read(tmp_path):
    AutoConfig.for_model("mamba").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="mamba.*cannot see the future"):
        ULLME(str(tmp_path))


def test_latent_pooling_trains_its_own_parameters(tiny_models):
    model = tiny_ullme(tiny_models, lora_name="x", pooling="latent")
    model(torch.tensor([[5, 6, 7]]))["rep"].sum().backward()
    assert model.pooler.latent.network[-1].weight.grad is not None


def test_reentrant_checkpointing_is_refused(model):
    with pytest.raises(ValueError, match="use_reentrant"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


def test_texts_longer_than_a_model_can_count_are_refused(tiny_models):
    with pytest.raises(ValueError, match="max_length: a text of 641 tokens is more than the 640 positions of 'gpt2'"):
        tiny_ullme(tiny_models, "gpt2", max_length=641)
    model = tiny_ullme(tiny_models, "gpt2", max_length=640)
    assert model.embed_texts(Texts.from_lists([[5] * 640])).isfinite().all()
    with pytest.raises(ValueError, match="a text of 700 tokens .* set a smaller max_length"):
        model.score_texts(Texts.from_lists([[5] * 700]))  # a query and its passage, each within max_length


@pytest.mark.parametrize("model_type", sorted(COUNTED_POSITIONS))
def test_architectures_that_count_positions_read_as_many_and_no_more(model_type):
    config = tiny_config(model_type)
    model, most = AutoModelForCausalLM.from_config(config).eval(), most_positions(config)
    ids_NT = torch.full((1, most + 1), 5)
    with torch.no_grad():
        assert model(ids_NT[:, :most]).logits.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):
            model(ids_NT)
