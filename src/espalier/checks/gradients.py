"""Checks of gradients: no split of a step changes them, and the layout in use has those of one-by-one forwards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from espalier.checks.first_groups import within
from espalier.checks.losses import measured
from espalier.checks.table import Outcome, failed, passed, skipped
from espalier.types import Sample

if TYPE_CHECKING:
    from torch import Tensor

    from espalier.checks.evidence import Evidence
    from espalier.engines.protocols import StepResult

SPLIT_LIMIT = {"float64": 1e-8, "float32": 1e-4, "bfloat16": 0.1, "float16": 0.1}
"""How far losses and gradients of two splits may be apart, relative, by dtype: rounding of half precision is not the
same in two packings."""
LAYOUT_GRADIENT = {"float64": 1e-6, "float32": 1e-3, "bfloat16": 0.35, "float16": 0.35}
"""The same of two layouts."""
LAYOUT_TOKENS = 512
MOST_TOKENS = 1024
KEPT = 3
"""Parameters whose gradients are kept and compared by direction; of all others norms are."""
KEPT_NUMBERS = 1 << 20


class Gradient(NamedTuple):
    """A loss, the squared norm of its gradient by parameter, and the first numbers of some gradients."""

    loss: float
    squares: dict[str, float]
    kept: dict[str, Tensor]


# -------------------------------------------------------------------------------------------------------- accumulation


def check_accumulation(evidence: Evidence) -> Outcome:
    """Loss and gradient of some of the first step in one forward and in three, and the loss as it is measured."""
    session, first = evidence.session, evidence.first
    if first is None:
        return skipped("nothing to learn from in the first step")
    learner = session.learner
    budget = max(learner.options.budget, LAYOUT_TOKENS)
    shortest = sorted(first.groups, key=lambda group: sum(len(s) for s in group))
    groups = within(shortest, min(budget, MOST_TOKENS))
    if len(groups) < 2:
        groups = within(shortest[:3], budget)
    if sum(map(len, groups)) < 2 or (learner.options.whole and len(groups) < 2):
        return skipped("a single group fills a forward")
    dtype = str(session.model.compute).removeprefix("torch.")
    apart = groups if learner.options.whole else [[s for group in groups for s in group]]
    loss = session.config.algorithm.loss
    with without_noise(learner):
        one = gradient_of(learner, groups, loss, first.state, budget)
        few = gradient_of(learner, apart, loss, first.state, _third(learner, apart))
        direct = measured(evidence, replace(first, groups=groups))
    return accumulation(one, few, direct, SPLIT_LIMIT[dtype])


def accumulation(one: Gradient, few: Gradient, direct: float, limit: float) -> Outcome:
    """The same step in one forward and in several: losses, the one that is measured without gradients included, and
    gradients in norm and direction."""
    loss = max(relative(one.loss, few.loss), relative(one.loss, direct))
    norm, turn = difference(one, few)
    value = f"loss {loss:.1e}, norm {norm:.1e}, direction {turn:.1e} apart"
    bound = f"<= {limit:g} between one forward and three"
    if max(loss, norm, turn) <= limit:  # false for nan
        return passed(value, bound)
    return failed(
        value,
        bound,
        "Loss or gradient of a step depend on how it is cut into forwards, or are not the loss that is measured: what "
        "terms are divided by, or what is added up, is wrong. Report this.",
    )


def gradient_of(
    learner: Any, groups: Sequence[list[Sample]], loss: Any, state: dict[str, float], budget: int
) -> Gradient:
    """Loss and gradient of groups in forwards of at most `budget` tokens; the gradient is cleared again."""
    kept = learner.forwards.budget
    learner.forwards.budget = budget
    try:
        result: StepResult = learner.forward_backward(groups, loss, state, 0)
    finally:
        learner.forwards.budget = kept
    router = learner.options.router_coef * result.terms.get("router", 0.0)  # hangs on the split by its nature
    return read_gradient(learner, result.loss - router)


def read_gradient(learner: Any, loss: float) -> Gradient:
    """The gradient that stands in the learner's parameters, which is cleared."""
    from espalier.engines import fsdp

    names: list[str] = []
    squares: list[float] = []
    kept: dict[str, Tensor] = {}
    for name, parameter in learner.optimizer.parameters().items():
        if parameter.grad is None:
            continue
        local = fsdp.local(parameter.grad).detach()
        names.append(name)
        squares.append(
            float(local.double().square().sum()) if local.numel() < KEPT_NUMBERS else float(local.norm()) ** 2
        )
        if squares[-1] and len(kept) < KEPT:
            kept[name] = local.reshape(-1)[:KEPT_NUMBERS].double().cpu()
        parameter.grad = None
    squares = learner.world.sum(squares)
    return Gradient(loss, dict(zip(names, squares, strict=True)), kept)


def difference(one: Gradient, other: Gradient) -> tuple[float, float]:
    """How far two gradients are apart: the largest difference of norms over parameters, relative to the whole norm, and
    the largest distance of kept gradients, relative to their own."""
    whole = math.sqrt(math.fsum(one.squares.values()))
    if not whole:
        return (0.0 if not math.fsum(other.squares.values()) else math.inf), 0.0
    norm = 0.0
    for name in one.squares.keys() | other.squares.keys():
        gap = math.sqrt(one.squares.get(name, 0.0)) - math.sqrt(other.squares.get(name, 0.0))
        norm = max(norm, abs(gap) / whole if math.isfinite(gap) else math.inf)
    turn = 0.0
    for name, kept in one.kept.items():
        if name in other.kept:
            turn = max(turn, float((kept - other.kept[name]).norm() / kept.norm()))
    return norm, turn


def relative(one: float, other: float) -> float:
    """How far two numbers are apart, relative above 1; infinite if one is not finite."""
    gap = abs(one - other) / max(1.0, abs(one))
    return gap if math.isfinite(gap) else math.inf


def _third(learner: Any, groups: Sequence[list[Sample]]) -> int:
    """A budget that makes three forwards or more of some groups, if they can be cut."""
    tokens = sum(len(s) for group in groups for s in group)
    kept = learner.forwards.budget
    for budget in (tokens // 3, tokens // 6, 1):
        learner.forwards.budget = budget
        count = sum(1 for forward in learner.forwards.plan(groups) if forward)
        learner.forwards.budget = kept
        if count >= 3:
            return budget
    return 1


@contextmanager
def without_noise(learner: Any) -> Iterator[None]:
    """Inside, no noise is drawn, which a measurement has none of either."""
    policy = learner.policy
    noisy, policy.noisy = policy.noisy, False
    try:
        yield
    finally:
        policy.noisy = noisy


# -------------------------------------------------------------------------------------------------------------- layout


def check_gradients(evidence: Evidence) -> Outcome:
    """Gradients of some of the first step in the layout in use, against those of one sample at a time."""
    import torch

    from espalier.checks.evidence import few

    session = evidence.session
    compute = session.model.compute if session.processes.size == 1 else torch.float32
    groups = few(evidence.few, LAYOUT_TOKENS)
    return layout_gradients(session.model.policy, groups, str(compute).removeprefix("torch."))


def layout_gradients(policy: Any, groups: Sequence[list[Sample]], dtype: str) -> Outcome:
    """The gradients that the layout in use gives to some early parameters, against those of the architecture's own
    forward of one sample after the other. What later tokens say to a shared prefix is in them, and not in the
    forward."""
    import torch

    from espalier.checks.model import one_by_one
    from espalier.forest.pack import pack, totals

    parameters = early(policy.model)
    limit = f"<= {LAYOUT_GRADIENT[dtype]:g} from one-by-one"
    device = next(policy.parameters()).device
    batch = pack(groups, totals(groups), share=policy.shares, says=policy.says, device=device)
    scores = policy(batch)
    packed = scores["scores_RK"] if policy.says == "reads" else scores["logprobs"][batch.score]
    if not parameters or not len(packed):
        return skipped("nothing is trained that could be compared", limit)
    weight = _coefficients(packed)
    ours = _grads((packed * weight).sum(), parameters)
    theirs: dict[str, Tensor] = {}
    start = 0
    for s in (s for group in groups for s in group):
        with torch.enable_grad():
            alone = one_by_one(policy, [s])
        if not len(alone):
            continue
        value = (alone * weight[start : start + len(alone)]).sum()
        start += len(alone)
        for name, grad in _grads(value, parameters).items():
            theirs[name] = theirs[name] + grad if name in theirs else grad
    return gradients(ours, theirs, LAYOUT_GRADIENT[dtype], f"{policy.layout}, {len(packed):,} scores")


def gradients(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], bound: float, about: str) -> Outcome:
    """The distance of gradients from those of one-by-one forwards, relative to their norms."""
    worst, where = 0.0, "all"
    for name, exact in theirs.items():
        size = float(exact.norm())
        gap = float((ours[name] - exact).norm()) / size if size else float(ours[name].norm())
        if not gap <= worst:
            worst, where = gap, name
    value, limit = f"{about}: {worst:.1e} ({where})", f"<= {bound:g} of one-by-one"
    if worst <= bound:
        return passed(value, limit)
    way_out = "The gradients of this layout are not right: set --layout padded, and report the model."
    return failed(value, limit, way_out)


def early(model: Any) -> dict[str, Any]:
    """The trained parameters that are compared: the first ones, and the first that makes keys."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    keys = [name for name in trained if any(word in name for word in ("k_proj", "qkv", "c_attn", "query_key_value"))]
    names = [*list(trained)[:1], *keys[:2]] or list(trained)[:KEPT]
    return {name: trained[name] for name in dict.fromkeys(names)}


def _grads(value: Tensor, parameters: Mapping[str, Any]) -> dict[str, Tensor]:
    """The gradients of some parameters alone, in float32; nothing is added to what they hold."""
    import torch

    grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters.items(), grads, strict=True)
    return {name: (torch.zeros_like(p) if grad is None else grad).float() for (name, p), grad in pairs}


def _coefficients(scores: Tensor) -> Tensor:
    """Numbers between 0.5 and 1.5 for every score, none like its neighbour."""
    import torch

    count = torch.arange(scores.numel(), device=scores.device)
    return (0.5 + (count * 7 % 11) / 10).view(scores.shape).to(scores.dtype)
