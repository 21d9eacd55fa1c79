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
from typing import Any, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
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


def require_version(plugin_args: Mapping[str, Any] | None) -> None:
    """Pass if these arguments of accelerate's plugin do not ask for FSDP1; ValueError otherwise."""
    version = (plugin_args or {}).get("fsdp_version", 2)
    if version != 2:
        raise ValueError(_WRONG["version"].format(version))


def activate(accelerator: Accelerator, plugin_args: Mapping[str, Any] | None) -> None:
    """Make accelerate shard on CPUs too where it is asked to: it drops the plugin there and would run DDP instead.

    Args:
        accelerator: as the Trainer made it.
        plugin_args: the plugin's arguments, None to go by the launcher's environment.

    Raises:
        ValueError: there is one process only, and nothing to shard over.
    """
    state: Any = accelerator.state
    if plugin_args is None and os.environ.get(USE_FSDP, "false").lower() != "true":
        return
    if state.distributed_type == DistributedType.NO:
        raise ValueError(
            "fsdp: is on, and there is one process; start several (torchrun --nproc-per-node), or leave it"
        )
    if state.distributed_type == DistributedType.MULTI_CPU:
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


#: What is wrong with a setting of the plugin, and the cure.
_WRONG = {
    "version": "fsdp_config.version: {} is deprecated and joins frozen and trained weights into one; set it to 2 "
    "(fsdp_version: 2 for accelerate launch)",
    "activation_checkpointing": "fsdp_config.activation_checkpointing: {} repeats a layer with other dropout than in "
    "its first pass; set it to false, and activation_checkpointing of the training arguments to true",
    "cpu_ram_efficient_loading": "fsdp_config.cpu_ram_efficient_loading: {} leaves most processes without weights, and "
    "each probes the model's attention; set it to false",
    "state_dict_type": "fsdp_config.state_dict_type: {} leaves no model in a checkpoint that other tools can load; set "
    "it to FULL_STATE_DICT",
}


def _refuse(plugin: FullyShardedDataParallelPlugin, model: ULLME) -> None:
    kind = getattr(plugin.state_dict_type, "name", str(plugin.state_dict_type))
    found = {
        "version": (plugin.fsdp_version, plugin.fsdp_version == 2),
        "activation_checkpointing": (True, not plugin.activation_checkpointing),
        "cpu_ram_efficient_loading": (True, not plugin.cpu_ram_efficient_loading),
        "state_dict_type": (kind, kind == "FULL_STATE_DICT"),
    }
    for name, (value, right) in found.items():
        if not right:
            raise ValueError(_WRONG[name].format(value))
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


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of a sharded model's optimizer as a plain model's has it, empty but on the main process.

    Every process must call it.
    """
    named = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not named:
        return {}
    groups: Any = named["param_groups"]
    numbers = {name: i for i, name in enumerate(name for group in groups for name in group["params"])}
    return {
        "state": {numbers[name]: value for name, value in cast(dict, named["state"]).items()},
        "param_groups": [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups],
    }


def set_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give a sharded model's optimizer the whole state of a plain model's; every process must call it with all of it.

    Raises:
        ValueError: the state is of another number of parameters.
    """
    of_parameter = {parameter: name for name, parameter in model.named_parameters()}
    names = [of_parameter[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    groups = state["param_groups"]
    if sum(len(group["params"]) for group in groups) != len(names):
        raise ValueError(
            f"optimizer.pt: holds {sum(len(group['params']) for group in groups)} parameters and this run trains "
            f"{len(names)}; resume with the model and objectives that it was made with"
        )
    named: Any = {
        "state": {names[i]: value for i, value in state["state"].items()},
        "param_groups": [{**group, "params": [names[i] for i in group["params"]]} for group in groups],
    }
    set_optimizer_state_dict(model, optimizer, named, options=StateDictOptions(full_state_dict=True))
