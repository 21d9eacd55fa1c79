"""FSDP2 for a ULLME: what accelerate is told about the model, what is refused, and weights put together again.

accelerate shards and unshards (``fully_shard``), whatever the device. What it must be told is where to cut, which the
model's own structure says, and that gradients and weights keep the precision in which they are held: autocast alone
decides in what precision a layer computes, as it does without sharding.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor

from ullme.models import ULLME
from ullme.models.attention import text_decoder

#: How ``accelerate launch`` says that FSDP is asked for.
USE_FSDP = "ACCELERATE_USE_FSDP"


def decoder_layers(model: ULLME) -> list[nn.Module]:
    """The repeated layers of the decoder, found by structure: its list of modules that holds most of its weights.

    Raises:
        ValueError: the decoder has no such list.
    """
    decoder = text_decoder(model.causal_lm)
    lists = [(sum(p.numel() for p in one.parameters()), one) for one in decoder.modules() if type(one) is nn.ModuleList]
    size, layers = max(lists, key=lambda found: found[0], default=(0, nn.ModuleList()))  # of equals the outermost
    if not size:
        raise ValueError(
            f"fsdp: {type(decoder).__name__} has no list of layers along which it could be cut; train without fsdp"
        )
    return list(layers)


def activate(accelerator: Accelerator, plugin_args: Mapping[str, Any] | None) -> None:
    """Make accelerate shard on CPUs too where it is asked to: it drops the plugin there and would run DDP instead.

    Args:
        accelerator: as the Trainer made it.
        plugin_args: the plugin's arguments, None to go by the launcher's environment.
    """
    state: Any = accelerator.state
    asked = plugin_args is not None or os.environ.get(USE_FSDP, "false").lower() == "true"
    if asked and state.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**(plugin_args or {}))
        # both, as accelerate itself sets them: every new AcceleratorState takes over what PartialState says
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP


def configure(plugin: FullyShardedDataParallelPlugin, model: ULLME) -> None:
    """Tell accelerate where to cut this model, and to leave precision alone.

    Classes of layers that the user has named are kept.

    Raises:
        ValueError: the plugin asks for what cannot work.
    """
    _refuse(plugin, model)
    if not plugin.transformer_cls_names_to_wrap:
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in decoder_layers(model)})
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    # accelerate's own policy would reduce gradients, and hold adapters and pooler, in half precision
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def _refuse(plugin: FullyShardedDataParallelPlugin, model: ULLME) -> None:
    wrong = {
        f"version: {plugin.fsdp_version} freezes no parameter of a shard by itself and cannot train adapters; set "
        "version to 2 in fsdp_config (fsdp_version: 2 for accelerate launch)": plugin.fsdp_version != 2,
        "activation_checkpointing: true repeats a layer with other dropout than its first pass; set it to false and "
        "gradient_checkpointing (of the model: activation_checkpointing) to true": plugin.activation_checkpointing,
        "cpu_ram_efficient_loading: true leaves most processes without weights, and every process probes the model's "
        "attention; set it to false": plugin.cpu_ram_efficient_loading,
        "state_dict_type: SHARDED_STATE_DICT makes checkpoints that only as many processes could read; set "
        "state_dict_type to FULL_STATE_DICT": "FULL" not in str(plugin.state_dict_type),
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"fsdp_config.{message}")
    if getattr(model.causal_lm, "hf_device_map", None):
        raise ValueError("device_map: has placed the model's layers, and fsdp places shards of them; leave it out")


def require_sharded(model: nn.Module) -> None:
    """Pass if FSDP2 has wrapped the model and its layers; gradients of weights that a batch leaves out are zeros."""
    assert isinstance(model, FSDPModule), f"{type(model).__name__} is not sharded"
    assert sum(isinstance(module, FSDPModule) for module in model.modules()) > 1, "no layer is sharded by itself"
    if hasattr(model, "set_reduce_scatter_unused_params"):  # from torch 2.13 on
        model.set_reduce_scatter_unused_params(True)


@contextmanager
def whole(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the model's parameters are these tensors, whole and on this process alone: enough to save it.

    Args:
        model: sharded.
        state: its whole state, by name; nothing happens where it is empty, as on all processes but the main one.
    """
    swapped: list[tuple[nn.Module, str, nn.Parameter]] = []
    tied: dict[nn.Parameter, nn.Parameter] = {}
    try:
        for path, module in model.named_modules() if state else ():
            for name, held in list(module._parameters.items()):
                if held is None:
                    continue
                if held not in tied:
                    tensor = state[f"{path}.{name}".lstrip(".")]
                    tied[held] = nn.Parameter(tensor, requires_grad=held.requires_grad)
                swapped.append((module, name, held))
                module._parameters[name] = tied[held]
        yield
    finally:
        for module, name, held in swapped:
            module._parameters[name] = held


def twin_of(model: ULLME) -> ULLME:
    """A model of the same parameters and of modules of its own: ``fully_shard`` cannot be taken off modules again."""
    kept = (*model.parameters(), model.tokenizer, model.text_tokenizer)
    return copy.deepcopy(model, {id(one): one for one in kept})


def release(model: nn.Module) -> None:
    """Free the weights of a model whose twin has taken them over, shard by shard."""
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)


def give_back(sharded: nn.Module, model: nn.Module) -> None:
    """Give a model the whole weights of its sharded twin, where it had them; every process must call it."""
    for module in sharded.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the root keeps its own weights whole after a forward without backward
    own = dict(model.named_parameters())
    for name, parameter in sharded.named_parameters():
        value = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        own[name].data = value.detach().to(own[name].device)
