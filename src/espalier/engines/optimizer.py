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
        for name, p in self.named.items():
            if p.dtype in (torch.bfloat16, torch.float16):
                self._add_master(name, p)
        muon = [n for n, p in self.named.items() if config.optimizer == "muon" and p.ndim == 2 and n not in plain]
        rest = [n for n in self.named if n not in set(muon)]
        decayed = [n for n in rest if self.named[n].ndim >= 2 and n not in plain]
        bare = [n for n in rest if n not in set(decayed)]
        self._optimizers: list[tuple[torch.optim.Optimizer, list[str]]] = []
        if rest:
            groups = [
                {"params": [self._trained(n) for n in names], "weight_decay": decay}
                for names, decay in ((decayed, config.weight_decay), (bare, 0.0))
                if names
            ]
            betas = (config.beta1, config.beta2)
            adam = torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
            self._optimizers.append((adam, decayed + bare))
        if muon:
            params = [self._trained(n) for n in muon]
            self._optimizers.append(
                (
                    torch.optim.Muon(
                        params, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
                    ),
                    muon,
                )
            )

    def _add_master(self, name: str, p: nn.Parameter) -> None:
        master = nn.Parameter(p.detach().float())
        self.masters[name] = master

        def collect(param: Tensor) -> None:
            assert param.grad is not None
            if master.grad is None:
                master.grad = param.grad.float()
            else:
                master.grad += param.grad
            param.grad = None

        p.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]

    def _trained(self, name: str) -> nn.Parameter:
        return self.masters.get(name, self.named[name])

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is updated, by name: the masters where there are any."""
        return {name: self._trained(name) for name in self.named}

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
        for p in self.parameters().values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            grads.append(p.grad)
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
        for name, p in self.parameters().items():
            yield name, full(p.detach())

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Whole optimizer state, as `PARAMETER|KEY` and tensor; a collective under FSDP, one tensor at a time."""
        for optimizer, names in self._optimizers:
            for name in names:
                for key, value in optimizer.state.get(self._trained(name), {}).items():
                    yield f"{name}|{key}", full(value) if isinstance(value, Tensor) else torch.tensor(value)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state()` yielded. Raises KeyError when an entry belongs to no parameter."""
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, field = key.rsplit("|", 1)
            by_name.setdefault(name, {})[field] = value
        if strangers := sorted(set(by_name) - set(self.named)):
            raise KeyError(f"optimizer state for parameters that are not trained: {', '.join(strangers[:3])}")
        for optimizer, names in self._optimizers:
            for name in names:
                p = self._trained(name)
                entries = by_name.get(name, {})
                optimizer.state[p] = {k: like(v, p) if v.ndim else v.to(p.device) for k, v in entries.items()}
