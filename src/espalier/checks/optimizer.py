"""Checks of the update: the optimizer's own steps against AdamW by hand, and which weights it may move.

Loshchilov and Hutter, arXiv:1711.05101: with g the gradient, clipped to a norm of at most c,

    m <- b1 m + (1 - b1) g      v <- b2 v + (1 - b2) g^2      w <- w - lr decay w - lr m^ / (sqrt v^ + eps)

with m^ = m / (1 - b1^t) and v^ = v / (1 - b2^t).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from espalier.checks.table import Outcome, failed, passed

if TYPE_CHECKING:
    from torch import Tensor

    from espalier.checks.evidence import Evidence

NUMBERS = 256  # of each copied parameter
RATE = 0.01
LIMIT = 1e-4
"""What rounding explains of two steps, relative to the size of a step."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What the optimizer may do to a model's parameters.

    first_rate: the learning rate of the first step. decayed, moved: names of the parameters that it decays, and
    trains. plain: those that must not be decayed. frozen: those that must not be trained. inexact: those whose master
    does not start from the weights as they were loaded.
    """

    first_rate: float
    decayed: Sequence[str] = ()
    moved: Sequence[str] = ()
    plain: Sequence[str] = ()
    frozen: Sequence[str] = ()
    inexact: Sequence[str] = ()


def check_optimizer(evidence: Evidence) -> Outcome:
    """Two steps on copies, the first learning rate, and the names of what is decayed and moved."""
    from espalier.loop.schedule import learning_rate

    session = evidence.session
    optimizer, model = session.learner.optimizer, session.model.loaded.model
    config = session.config.optim
    rates = Weights(
        learning_rate(0, session.dataset.steps, config),
        decayed=[name for name, decay in optimizer.decays().items() if decay],
        moved=list(optimizer.named),
        plain=undecayed(model),
        frozen=unmoved(model, session.config.model),
        inexact=inexact(optimizer, evidence.loaded),
    )
    return optimizer_steps(steps_apart(optimizer, config, session.model.compute), rates)


def optimizer_steps(apart: Mapping[str, float], weights: Weights) -> Outcome:
    """apart: how far two steps on copies of some parameters are from AdamW by hand, relative to the size of a step."""
    worst = max(apart.values(), default=0.0)
    value = f"two steps {worst:.1e} from AdamW by hand, first rate {weights.first_rate:.1e}"
    limit = f"<= {LIMIT:g}, rate above 0, no decay of norms and embeddings"
    faults = [f"a step of {name} is {gap:.1e} from AdamW by hand" for name, gap in apart.items() if not gap <= LIMIT]
    if not weights.first_rate > 0:
        faults.append(f"the first learning rate is {weights.first_rate:g}")
    odd = {
        "is decayed, and is a norm, bias, embedding or head": set(weights.decayed) & set(weights.plain),
        "is trained, and is to be frozen": set(weights.moved) & set(weights.frozen),
        "does not start from the weights as they were loaded": set(weights.inexact),
    }
    for what, names in odd.items():
        if names:
            faults.append(f"{min(names)} {what}")
    if faults:
        return failed("; ".join(faults), limit, "The update is not the one that was asked for: report this.")
    return passed(value, limit)


# ---------------------------------------------------------------------------------------------------- names of weights


def undecayed(model: Any) -> list[str]:
    """Names of the parameters without decay: those of fewer than two dimensions, of embeddings, of the head."""
    import torch

    head = model.get_output_embeddings()
    tables = []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) or module is head or path.rpartition(".")[2] == "score":
            tables.append(f"{path}.")
    names = []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.startswith(tuple(tables)):
            names.append(name)
    return names


def unmoved(model: Any, config: Any) -> list[str]:
    """Names of the parameters that `freeze_layers` holds fixed: those of the lowest layers, and the embedding."""
    if not config.freeze_layers:
        return []
    depth = model.config.get_text_config().num_hidden_layers
    lowest = max(1, math.floor(config.freeze_layers * depth + 0.5))
    table = model.get_input_embeddings().weight
    in_layer: dict[str, dict[int, list[str]]] = {}
    names = []
    for name, parameter in model.named_parameters():
        if parameter is table:
            names.append(name)
        place = re.search(r"\.(\d+)\.", name)
        if place and "trainable_tokens_delta" not in name:
            in_layer.setdefault(name[: place.start()], {}).setdefault(int(place[1]), []).append(name)
    for layers in in_layer.values():
        if len(layers) == depth:  # not the layers of another tower
            for number in range(lowest):
                names += layers.get(number, [])
    return names


def inexact(optimizer: Any, loaded: Mapping[str, Tensor]) -> list[str]:
    """Names of the masters that differ from the first numbers of the weights as they were loaded."""
    names = []
    for name, numbers in loaded.items():
        if name in optimizer.masters:
            master = optimizer.masters[name].detach().reshape(-1)[: len(numbers)]
            if not bool((master.cpu().float() == numbers).all()):
                names.append(name)
    return names


# -------------------------------------------------------------------------------------------------------- steps by hand


def steps_apart(optimizer: Any, config: Any, compute: Any) -> dict[str, float]:
    """Two steps of the run's own kind of optimizer on small copies of a matrix, a norm and an embedding, with known
    gradients that arrive in two parts: by name, the distance from AdamW by hand in sizes of a step.

    Muon's matrices are left out: its step is no closed form. The decay is at least 0.1, so that it is seen.
    """
    import torch

    config = replace(config, weight_decay=config.weight_decay or 0.1)
    shapes = {"matrix": (NUMBERS // 16, 16), "norm": (NUMBERS,), "embedding": (NUMBERS // 16, 16)}
    if config.optimizer == "muon":
        shapes.pop("matrix")
    copies = {}
    for number, (name, shape) in enumerate(shapes.items()):
        start = torch.linspace(-1, 1 + number, math.prod(shape)).view(shape).to(compute)
        copies[name] = torch.nn.Parameter(start)
    own = type(optimizer)(copies.items(), config, {"embedding"})
    weights = {name: own.parameters()[name].detach().double().clone() for name in copies}
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in weights.items()}
    for step in (1, 2):
        gradients = _arrive(copies, step)
        own.step(RATE)
        _by_hand(weights, moments, gradients, config, step)
    apart = {}
    for name, expected in weights.items():
        got = own.parameters()[name].detach().double()
        apart[name] = float((got - expected).abs().max()) / RATE
    return apart


def _arrive(copies: Mapping[str, Any], step: int) -> dict[str, Tensor]:
    """Backward passes of two micro-batches; returns the gradients that they add up to."""
    import torch

    gradients = {}
    for number, (name, parameter) in enumerate(copies.items()):
        numbers = torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape)
        first = (((numbers * 7 + number) % 13 - 6) / 8).to(parameter.dtype)  # numbers that bfloat16 holds exactly
        second = ((numbers % 5 - 1 + step) / 4).to(parameter.dtype)
        for part in (first, second):
            (parameter * part).sum().backward()
        gradients[name] = first.double() + second.double()
    return gradients


def _by_hand(
    weights: dict[str, Tensor],
    moments: dict[str, tuple[Tensor, Tensor]],
    gradients: Mapping[str, Tensor],
    config: Any,
    step: int,
) -> None:
    """One step of AdamW in float64, in place."""
    norm = math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
    clip = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
    for name, w in weights.items():
        g, (m, v) = gradients[name] * clip, moments[name]
        m.mul_(config.beta1).add_(g * (1 - config.beta1))
        v.mul_(config.beta2).add_(g * g * (1 - config.beta2))
        if name == "matrix":
            w.mul_(1 - RATE * config.weight_decay)
        lead = m / (1 - config.beta1**step)
        scale = (v / (1 - config.beta2**step)).sqrt() + config.eps
        w.sub_(RATE * lead / scale)
