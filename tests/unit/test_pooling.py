"""Pooling."""

import pytest
import torch

from ullme.models.pooling import POOLERS, Pooling
from ullme.types import Texts

HIDDEN_XD = torch.tensor([[1.0, 0], [2, 1], [4, 3], [9, 9], [5, 7]])
TEXTS = Texts.from_lists([[1, 2, 3], [4, 5]], skip=[1, 1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", [3.0, 2.0]),
        ("weightedmean", [(2 * 2 + 3 * 4) / 5, (2 * 1 + 3 * 3) / 5]),
        ("cls", [2.0, 1.0]),
        ("lasttoken", [4.0, 3.0]),
    ],
)
def test_pooling_equals_its_definition_without_instruction(name, expected):
    assert torch.allclose(Pooling(name, 2)(HIDDEN_XD, TEXTS), torch.tensor([expected, [5.0, 7.0]]))


@pytest.mark.parametrize("name", [*POOLERS, "latent"])
def test_pooling_does_not_depend_on_other_texts(name):
    torch.manual_seed(0)
    pooling = Pooling(name, 2)
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter)
    alone = [pooling(HIDDEN_XD[:3], TEXTS.rows([0])), pooling(HIDDEN_XD[3:], TEXTS.rows([1]))]
    assert torch.allclose(pooling(HIDDEN_XD, TEXTS), torch.cat(alone), atol=1e-6)


def test_untrained_latent_pooling_is_mean_pooling():
    assert torch.allclose(Pooling("latent", 2)(HIDDEN_XD, TEXTS), Pooling("mean", 2)(HIDDEN_XD, TEXTS))


def test_latent_pooling_gives_every_parameter_a_gradient_once_it_has_moved():
    torch.manual_seed(0)
    pooling = Pooling("latent", 8)
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    pooling(torch.randn(5, 8), TEXTS).square().sum().backward()
    still = [n for n, p in pooling.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_embeddings_are_float32_under_a_narrow_backbone_and_autocast(dtype):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Pooling("mean", 2)(HIDDEN_XD.to(dtype), TEXTS).dtype == torch.float32
        assert Pooling("latent", 2)(HIDDEN_XD.to(dtype), TEXTS).dtype == torch.float32
