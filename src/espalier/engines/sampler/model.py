"""The model while a sampler draws from it: evaluation mode, its attention function, whole weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from espalier.engines import fsdp
from espalier.engines.sampler.packed import packed
from espalier.errors import ModelError
from espalier.models.attention.interface import NAME, own_attention, use_forest
from espalier.models.policy import Policy


@contextlib.contextmanager
def evaluation(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, the modules are in evaluation mode and none is compiled; each one's own mode comes back."""
    # Module by module: the caller may have some of them in another mode than the whole.
    training = [module for module in modules if module.training]
    compiled = []
    for module in modules:
        call = module.__dict__.get("_compiled_call_impl")
        if call is not None:
            compiled.append((module, call))
    for module in training:
        module.training = False
    # Every number of rows and keys would be compiled again.
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module, call in compiled:
            module._compiled_call_impl = call


class Drawable:
    """A model that samplers draw from. `drawing` is reentrant."""

    def __init__(self, model: Any, *, forest: bool, pack: bool):
        self.policy = model if isinstance(model, Policy) else None
        self.model: Any = model.model if isinstance(model, Policy) else model
        self.forest, self.pack = forest, pack
        # Walking a model's tree takes as long as a tenth of a small one's step.
        self._modules = list(self.model.modules())
        self._inside = False

    @property
    def inside(self) -> bool:
        """Whether the caller is inside `drawing`."""
        return self._inside

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @contextlib.contextmanager
    def drawing(self, *, pack: bool = True) -> Iterator[None]:
        """Inside, weights are whole on every rank, modules in evaluation mode, attention is the forest's or the
        architecture's own, and, with `pack`, linear layers are laid out for it; all is put back."""
        if self._inside:
            yield
            return
        whole = contextlib.nullcontext() if self.policy is None else fsdp.whole(self.policy)
        attention = forest_attention if self.forest else own_attention
        with (
            whole,
            evaluation(self._modules),
            attention(self.model),
            packed(self._modules if pack and self.pack else ()),
        ):
            self._inside = True
            try:
                yield
            finally:
                self._inside = False


@contextlib.contextmanager
def forest_attention(model: Any) -> Iterator[None]:
    """Inside, all layers call the forest's attention function, which decodes too; the one before comes back."""
    before = model.config._attn_implementation
    if before == NAME:
        yield
        return
    use_forest(model)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def copy_weights(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Overwrite a model's weights by name. Raises ModelError if names or shapes differ from the model's."""
    live: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    live |= dict(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in weights:
            if name not in live or live[name].shape != tensor.shape:
                got = f"{name} of shape {tuple(tensor.shape)}"
                raise ModelError(f"the sampler got weights {got}, which its {type(model).__name__} does not have")
            live[name].data.copy_(tensor)
