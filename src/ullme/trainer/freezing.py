"""Parameters that no objective reaches are frozen while training: wrappers wait for every trainable gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ullme.models import ULLME
from ullme.types import Need

#: The needs whose values come through the LM head, with gradient.
_PREDICTING: frozenset[Need] = frozenset({"logp", "masked"})


@contextmanager
def only_reached_trainable(model: ULLME, needs: frozenset[Need]) -> Iterator[None]:
    """Inside, what the needs do not reach is frozen; afterwards every parameter is as it was.

    Embeddings do not reach an LM head of its own (one tied to the input embeddings they do), likelihoods not the
    pooler; nor do those of masked tokens.
    """
    frozen = [p for p in _unreached(model, needs) if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _unreached(model: ULLME, needs: frozenset[Need]) -> list[nn.Parameter]:
    found: list[nn.Parameter] = []
    head = model.causal_lm.get_output_embeddings()
    if not needs & _PREDICTING and head is not None:
        tied = {id(p) for p in model.causal_lm.get_input_embeddings().parameters()}
        found += [p for p in head.parameters() if id(p) not in tied]
    if "embedding" not in needs:
        found += list(model.pooler.parameters())
    return found
