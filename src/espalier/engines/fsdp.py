"""Sharding with FSDP2: parameters are split over the ranks and whole only while their module runs."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from espalier.engines.processes import Distributed
from espalier.models import adapters
from espalier.models.policy import Policy


def shard(policy: Policy, world: Distributed, compute: torch.dtype) -> None:
    """Shard every layer that the architecture's plan names, a scalar head, then the root, in place.

    Gradients are summed over the ranks, not averaged: losses carry totals of the whole step. Under bfloat16 compute the
    shards stay float32 and gradients are reduced in float32; a scalar head computes in float32, as in one process.
    Adapters must be in place before.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    mixed = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers(policy.model):
        fully_shard(layer, mesh=mesh, mp_policy=mixed)
    if (head := getattr(policy.model, adapters.SCORE, None)) is not None:
        fully_shard(head, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    fully_shard(policy, mesh=mesh, mp_policy=mixed)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            if world.device.type == "cpu":  # gloo has no reduction with a factor
                module.set_force_sum_reduction_for_comms(True)


def reshard(policy: Policy) -> None:
    """Free the whole parameters that a forward without a backward left in place.

    The root keeps its own for the backward pass. Without one they would stay, in the compute dtype, and a later export
    would read them instead of the shards.
    """
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def layers(model: Any) -> Iterator[nn.Module]:
    """The repeated layers: those `model.fsdp_plan` names, or the classes that transformers never splits."""
    patterns = [name for name in (getattr(model, "fsdp_plan", None) or {}) if name.endswith(".*")]
    found = [m for name, m in model.named_modules() if any(_matches(name, p) for p in patterns)]
    if not found:
        classes = set(model._no_split_modules or ())
        found = [m for m in model.modules() if type(m).__name__ in classes]
    yield from found


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) and name.count(".") == pattern.count(".")


def full(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank; a collective where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(whole: Tensor, model: Tensor) -> Tensor:
    """`whole`, sharded as `model` is; every rank must hold the same `whole`."""
    if isinstance(model, DTensor):
        return distribute_tensor(whole.to(model.device), model.device_mesh, model.placements)
    return whole.to(model.device)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
