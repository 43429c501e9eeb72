"""Optimizers over named parameters: AdamW, or Muon for the layers' matrices, with float32 master weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from espalier.config.sections import OptimConfig
from espalier.engines.fsdp import full, like


class Optimizer:
    """Updates named parameters.

    A parameter below float32 gets a float32 master: gradients are added up in float32 as they arrive, the update is
    made on the master, the parameter takes its rounding. Weight decay applies to matrices; `plain` names (embeddings,
    head) and vectors have none.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig, plain: set[str]):
        self.config = config
        self.named = dict(named)
        self.masters: dict[str, nn.Parameter] = {}
        for name, parameter in self.named.items():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                self._add_master(name, parameter)
        by_muon: list[str] = []
        decayed: list[str] = []
        bare: list[str] = []
        for name, parameter in self.named.items():
            if name in plain or parameter.ndim < 2:
                bare.append(name)
            elif config.optimizer == "muon" and parameter.ndim == 2:
                by_muon.append(name)
            else:
                # Stacked matrices (the experts of a layer) are decayed, but Muon takes single
                # matrices only.
                decayed.append(name)
        self._optimizers: list[tuple[torch.optim.Optimizer, list[str]]] = []
        if decayed or bare:
            self._optimizers.append((self._adam(decayed, bare), decayed + bare))
        if by_muon:
            self._optimizers.append((self._muon(by_muon), by_muon))

    def _adam(self, decayed: list[str], bare: list[str]) -> torch.optim.Optimizer:
        groups = []
        for names, decay in ((decayed, self.config.weight_decay), (bare, 0.0)):
            if names:
                groups.append({"params": [self._trained(name) for name in names], "weight_decay": decay})
        betas = (self.config.beta1, self.config.beta2)
        return torch.optim.AdamW(groups, lr=self.config.lr, betas=betas, eps=self.config.eps, fused=True)

    def _muon(self, names: list[str]) -> torch.optim.Optimizer:
        return torch.optim.Muon(
            [self._trained(name) for name in names],
            lr=self.config.lr,
            weight_decay=self.config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )

    def _add_master(self, name: str, parameter: nn.Parameter) -> None:
        master = nn.Parameter(parameter.detach().float())
        self.masters[name] = master

        # Gradients of micro-batches are added up in float32, and the low one is freed as soon as it
        # is there.
        def collect(param: Tensor) -> None:
            assert param.grad is not None
            if master.grad is None:
                master.grad = param.grad.float()
            else:
                master.grad += param.grad
            param.grad = None

        parameter.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]

    def _trained(self, name: str) -> nn.Parameter:
        return self.masters.get(name, self.named[name])

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is updated, by name: a parameter's master if it has one, else the parameter itself."""
        return {name: self._trained(name) for name in self.named}

    def decays(self) -> dict[str, float]:
        """The weight decay of each parameter."""
        decay_of: dict[int, float] = {}
        for optimizer, _ in self._optimizers:
            for group in optimizer.param_groups:
                decay_of.update((id(parameter), group["weight_decay"]) for parameter in group["params"])
        return {name: decay_of[id(parameter)] for name, parameter in self.parameters().items()}

    def updates(self) -> dict[str, int]:
        """How many updates AdamW has made of each of its parameters; Muon counts none."""
        counts = {}
        for optimizer, names in self._optimizers:
            if isinstance(optimizer, torch.optim.AdamW):
                for name in names:
                    counts[name] = int(optimizer.state.get(self._trained(name), {}).get("step", 0))
        return counts

    @torch.no_grad()
    def take(self, name: str, value: Tensor) -> None:
        """Set a parameter (and its master) to a float32 value."""
        self._trained(name).copy_(value)
        if name in self.masters:
            self.named[name].copy_(value)

    def step(self, lr: float) -> float:
        """Clip to `clip_norm`, update with learning rate `lr`, clear gradients. Returns the norm before clipping.

        Parameters without a gradient (an expert nobody was routed to) count as zero gradient: every optimizer moves
        them as it would after a rank or a micro-batch that did not touch them.
        """
        grads: list[Tensor] = []
        for parameter in self.parameters().values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            grads.append(parameter.grad)
        norm = full(torch.nn.utils.get_total_norm(grads)).item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm is {norm}")
        if self.config.clip_norm and norm > self.config.clip_norm:
            torch._foreach_mul_(grads, self.config.clip_norm / (norm + 1e-6))
        for optimizer, _ in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, master in self.masters.items():
                self.named[name].copy_(master)
        return norm

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole trained weights by name; a collective under FSDP, one tensor at a time."""
        for name, parameter in self.parameters().items():
            yield name, full(parameter.detach())

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Whole optimizer state, as `PARAMETER|KEY` and tensor; a collective under FSDP, one tensor at a time."""
        for optimizer, names in self._optimizers:
            for name in names:
                for field, value in optimizer.state.get(self._trained(name), {}).items():
                    whole = full(value) if isinstance(value, Tensor) else torch.tensor(value)
                    yield f"{name}|{field}", whole

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state()` yielded. Raises KeyError if an entry belongs to no parameter."""
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, field = key.rsplit("|", 1)
            by_name.setdefault(name, {})[field] = value
        strangers = sorted(set(by_name) - set(self.named))
        if strangers:
            raise KeyError(f"optimizer state for parameters that are not trained: {', '.join(strangers[:3])}")
        for optimizer, names in self._optimizers:
            for name in names:
                parameter = self._trained(name)
                optimizer.state[parameter] = {
                    field: _placed(value, parameter) for field, value in by_name.get(name, {}).items()
                }


def _placed(value: Tensor, parameter: Tensor) -> Tensor:
    """An entry of a parameter's state: sharded as the parameter is, or a number, which is whole on every rank."""
    if value.ndim:
        return like(value, parameter)
    return value.to(parameter.device)
