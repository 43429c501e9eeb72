"""Sharding with FSDP2: parameters are split over the ranks and whole only while their module runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    Adapters must be in place before this is called.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    mixed = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers(policy.model):
        fully_shard(layer, mesh=mesh, mp_policy=mixed)
    for head in (getattr(policy.model, adapters.SCORE, None), policy.value_head):
        if head is None:
            continue
        fully_shard(head, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    fully_shard(policy, mesh=mesh, mp_policy=mixed)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo has no reduction with a factor, not even with one of 1.
            if world.device.type == "cpu":
                module.set_force_sum_reduction_for_comms(True)


def reshard(policy: Policy) -> None:
    """Free the whole parameters that a forward without a backward left in place.

    The root keeps its own for the backward pass. Without one they would stay, in the compute dtype, and a later export
    would read them instead of the shards.
    """
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def whole(policy: Policy) -> Iterator[None]:
    """Inside, every rank has all parameters whole, so forwards need no other rank; they are gathered on entering, which
    is a collective, and freed on leaving. Nothing happens to a policy that is not sharded."""
    root: nn.Module = policy
    if not isinstance(root, FSDPModule):
        yield
        return
    modules = [(module, module is root) for module in policy.modules() if isinstance(module, FSDPModule)]
    # What the root's first forward does: a layer that runs before it would take itself for a root.
    root._get_fsdp_state()._lazy_init()
    for module, _ in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module, is_root in modules:
            # As torch sets it: the root keeps its parameters for the backward pass.
            module.set_reshard_after_forward(not is_root, recurse=False)
        reshard(policy)


def layers(model: Any) -> Iterator[nn.Module]:
    """The repeated layers: those `model.fsdp_plan` names, or the classes that transformers never splits."""
    plan = getattr(model, "fsdp_plan", None) or {}
    patterns = [name for name in plan if name.endswith(".*")]
    modules = [module for name, module in model.named_modules() if any(_matches(name, pattern) for pattern in patterns)]
    if not modules:
        classes = set(model._no_split_modules or ())
        modules = [module for module in model.modules() if type(module).__name__ in classes]
    yield from modules


def _matches(name: str, pattern: str) -> bool:
    # `*` of fnmatch also matches dots, so that layers.* would take in every module inside a layer.
    return fnmatchcase(name, pattern) and name.count(".") == pattern.count(".")


def full(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank; a collective if it is sharded."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor


def like(whole: Tensor, pattern: Tensor) -> Tensor:
    """`whole`, sharded as `pattern` is; every rank must hold the same `whole`."""
    if isinstance(pattern, DTensor):
        return distribute_tensor(whole.to(pattern.device), pattern.device_mesh, pattern.placements)
    return whole.to(pattern.device)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard, or the tensor itself if it is not sharded."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    return tensor
