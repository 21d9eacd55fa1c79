"""Token log-likelihoods: the value and gradients of plain logits, in a memory that the vocabulary does not enter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ullme.models.logprob import _log_softmax, sequence_logp, token_logp
from ullme.models.specs import LogitsHead
from ullme.types import Texts

N, T, D, V = 3, 6, 16, 50
BLOCK = 4 * V * 4  # four rows of float32 logits: blocks do not divide the scored tokens


def softcap(logits: Tensor) -> Tensor:
    return torch.tanh(logits / 3) * 3


HEADS = {
    "plain": dict(bias=False),
    "bias": dict(bias=True),
    "scale": dict(bias=False, transform=lambda logits: logits * 0.3),
    "softcap": dict(bias=True, transform=softcap),
    "ends in tanh": dict(bias=False, transform=torch.tanh),  # whose backward reads its own output
    "before": dict(bias=False, before=True),
}


def head_of(kind: str, trainable: bool, dtype: torch.dtype) -> LogitsHead:
    options = HEADS[kind]
    linear = nn.Linear(D, V, bias=options["bias"], dtype=dtype)
    before = nn.Sequential(nn.Linear(D, D, dtype=dtype), nn.GELU()) if options.get("before") else None
    for module in (linear, before):
        if module is not None:
            module.requires_grad_(trainable)
    return LogitsHead(linear, V, before, options.get("transform"))


def parameters_of(head: LogitsHead) -> list[nn.Parameter]:
    modules = [head.embedding] + ([head.before] if head.before is not None else [])
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def texts(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, ids, and an uneven choice of scored tokens: first tokens among them, and a text without any."""
    scored_NT = torch.zeros(N, T, dtype=torch.bool)
    scored_NT[0, 2:], scored_NT[1, :4] = True, True
    return torch.randn(N, T, D, dtype=dtype), torch.randint(V, (N, T)), scored_NT


def padded_logp(
    hidden_NTD: Tensor, ids_NT: Tensor, scored_NT: Tensor, head: LogitsHead, block: int | None = None
) -> tuple[Tensor, Tensor]:
    """``sequence_logp`` of texts of equal length."""
    every = Texts.from_lists(ids_NT.tolist())
    return sequence_logp(hidden_NTD.flatten(0, 1), every, scored_NT.flatten(), head, block)


def from_logits(hidden_NTD: Tensor, ids_NT: Tensor, scored_NT: Tensor, head: LogitsHead) -> Tensor:
    logp_NTV = torch.log_softmax(head(hidden_NTD[:, :-1]).to(_log_softmax(hidden_NTD).dtype), -1)
    logp_NT = logp_NTV.gather(2, ids_NT[:, 1:, None]).squeeze(2)
    return torch.where(scored_NT[:, 1:], logp_NT, 0).sum(1)


def value_and_gradients(compute: Callable[[Tensor], Tensor], hidden_NTD: Tensor, head: LogitsHead) -> list[Tensor]:
    leaf_NTD = hidden_NTD.clone().requires_grad_()
    logp_N = compute(leaf_NTD)
    weight_N = torch.arange(1, len(logp_N) + 1, dtype=logp_N.dtype)
    return [logp_N, *torch.autograd.grad((logp_N.square() * weight_N).sum(), [leaf_NTD, *parameters_of(head)])]


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("kind", HEADS)
def test_value_and_gradients_are_those_of_plain_logits(
    kind: str, dtype: torch.dtype, tolerance: float, trainable: bool
) -> None:
    torch.manual_seed(0)
    head = head_of(kind, trainable, dtype)
    hidden_NTD, ids_NT, scored_NT = texts(dtype)
    found = value_and_gradients(lambda h: padded_logp(h, ids_NT, scored_NT, head, BLOCK)[0], hidden_NTD, head)
    right = value_and_gradients(lambda h: from_logits(h, ids_NT, scored_NT, head), hidden_NTD, head)
    assert len(found) == len(right) == 2 + len(parameters_of(head))
    for a, b in zip(found, right, strict=True):
        assert a.dtype == b.dtype == dtype
        assert (a - b).norm() <= tolerance * b.norm() and b.norm() > 0


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("block", [1, V * 8, 3 * V * 8, 2**27])
def test_blocks_change_nothing(block: int, trainable: bool) -> None:
    torch.manual_seed(0)
    head, (hidden_NTD, ids_NT, scored_NT) = head_of("softcap", trainable, torch.float64), texts()
    found = value_and_gradients(lambda h: padded_logp(h, ids_NT, scored_NT, head, block)[0], hidden_NTD, head)
    right = value_and_gradients(lambda h: from_logits(h, ids_NT, scored_NT, head), hidden_NTD, head)
    assert all((a - b).norm() <= 1e-12 * b.norm() for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("kind", ["plain", "softcap"])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("scored", [[], [(1, 3)], [(0, 0), (1, 0)]])
def test_no_token_or_one_is_enough(scored: list[tuple[int, int]], trainable: bool, kind: str) -> None:
    """Nothing scored is a likelihood of zero that is still connected to the model: ranks wait for its gradient."""
    torch.manual_seed(0)
    head, (hidden_NTD, ids_NT, _) = head_of(kind, trainable, torch.float64), texts()
    scored_NT = torch.zeros(N, T, dtype=torch.bool)
    for place in scored:
        scored_NT[place] = True
    leaf_NTD = hidden_NTD.requires_grad_()
    logp_N, tokens_N = padded_logp(leaf_NTD, ids_NT, scored_NT, head)
    assert tokens_N.tolist() == scored_NT[:, 1:].sum(1).tolist()
    assert torch.allclose(logp_N, from_logits(leaf_NTD, ids_NT, scored_NT, head), rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(logp_N.sum(), [leaf_NTD, *parameters_of(head)])
    assert all(bool(g.any()) == bool(tokens_N.any()) for g in gradients)


@pytest.mark.parametrize("trainable", [False, True])
def test_under_autocast_logits_are_bfloat16_and_likelihoods_float32(trainable: bool) -> None:
    torch.manual_seed(0)
    head, (hidden_NTD, ids_NT, scored_NT) = head_of("plain", trainable, torch.float32), texts(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(lambda h: padded_logp(h, ids_NT, scored_NT, head, BLOCK)[0], hidden_NTD, head)
        right = value_and_gradients(lambda h: from_logits(h, ids_NT, scored_NT, head), hidden_NTD, head)
    assert all(tensor.dtype == torch.float32 for tensor in found)
    assert torch.allclose(found[0], right[0], rtol=1e-6)  # the same bfloat16 logits, to the bit
    assert all((a - b).norm() <= 1e-2 * b.norm() for a, b in zip(found[1:], right[1:], strict=True))


def test_a_bfloat16_model_gets_float32_likelihoods_and_its_own_gradient_dtype() -> None:
    torch.manual_seed(0)
    head, (hidden_NTD, ids_NT, scored_NT) = head_of("plain", False, torch.bfloat16), texts(torch.bfloat16)
    logp_N, gradient_NTD = value_and_gradients(lambda h: padded_logp(h, ids_NT, scored_NT, head)[0], hidden_NTD, head)
    assert logp_N.dtype == torch.float32 and gradient_NTD.dtype == torch.bfloat16
    assert torch.allclose(logp_N, from_logits(hidden_NTD, ids_NT, scored_NT, head), rtol=1e-6)


def test_a_frozen_head_is_called_once_per_block_and_never_in_backward() -> None:
    calls: list[int] = []
    head = head_of("plain", False, torch.float64)
    head.embedding.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    hidden_XD, target_X = torch.randn(10, D, dtype=torch.float64, requires_grad=True), torch.randint(V, (10,))
    logp_X = token_logp(hidden_XD, target_X, head, 4 * V * 8)
    assert calls == [4, 4, 2]
    logp_X.sum().backward(retain_graph=True)
    first_XD = hidden_XD.grad.clone()
    logp_X.sum().backward()  # the kept gradient serves again
    assert calls == [4, 4, 2] and torch.equal(hidden_XD.grad, 2 * first_XD)
    with torch.no_grad():
        assert torch.allclose(token_logp(hidden_XD, target_X, head), logp_X, rtol=1e-12) and calls[3:] == [10]


def test_an_adapter_on_the_head_is_trained() -> None:
    """The base weight is frozen, so is the hidden state: gradient reaches the adapter alone."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    wrapped = get_peft_model(
        nn.Sequential(nn.Linear(D, V)), LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    )
    head = LogitsHead(wrapped.base_model.model[0], V)
    hidden_XD, target_X = torch.randn(10, D), torch.randint(V, (10,))
    assert head.trainable and head.plain is None
    found = torch.autograd.grad(token_logp(hidden_XD, target_X, head, BLOCK).sum(), parameters_of(head))
    logp_XV = torch.log_softmax(head(hidden_XD), -1)
    right = torch.autograd.grad(logp_XV.gather(1, target_X[:, None]).sum(), parameters_of(head))
    assert len(found) == 2 and all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, right, strict=True)
    )


# ---- memory ----

ROWS, WIDTH, MEMORY_BLOCK = 256, 64, 2**23
VOCABULARIES = (49_152, 131_072, 262_144)


def peak_bytes(run: Callable[[], object]) -> int:
    """Most memory that torch's allocator had handed out at once inside, over what was in use before."""
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        run()
    events = sorted((e.start_ns(), e.nbytes()) for e in profile.kineto_results.events() if e.name() == "[memory]")
    assert events
    used = torch.tensor([size for _, size in events]).cumsum(0)
    return int(used.max())


def peak(vocabulary: int, blockwise: bool, rows: int = ROWS) -> int:
    linear = nn.Linear(WIDTH, vocabulary, bias=False).requires_grad_(False)
    head = LogitsHead(linear, vocabulary)
    hidden_XD, target_X = torch.randn(rows, WIDTH, requires_grad=True), torch.randint(vocabulary, (rows,))

    def run() -> None:
        if blockwise:
            logp_X = token_logp(hidden_XD, target_X, head, MEMORY_BLOCK)
        else:
            logp_X = torch.log_softmax(head(hidden_XD), -1).gather(1, target_X[:, None]).squeeze(1)
        logp_X.sum().backward()

    return peak_bytes(run)


def test_peak_memory_does_not_grow_with_the_vocabulary() -> None:
    """Three blocks of logits at most, whatever the vocabulary, and what grows with rows times width."""
    peaks = [peak(vocabulary, blockwise=True) for vocabulary in VOCABULARIES]
    assert max(peaks) - min(peaks) <= MEMORY_BLOCK
    assert max(peaks) <= 3 * MEMORY_BLOCK + 8 * 4 * ROWS * WIDTH
    more = peak(VOCABULARIES[1], blockwise=True, rows=4 * ROWS)
    assert more - peaks[1] <= 8 * 4 * (3 * ROWS) * WIDTH


def test_peak_memory_is_a_quarter_of_that_of_full_logits_at_most() -> None:
    assert peak(VOCABULARIES[1], blockwise=True) <= peak(VOCABULARIES[1], blockwise=False) / 4
