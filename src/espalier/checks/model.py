"""Checks of the model: its layout against its own forward, the first loss, the first update."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from espalier.checks.table import Outcome, failed, passed, warned
from espalier.types import Sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from espalier.checks.evidence import Evidence

LAYOUT_LIMIT = {"float64": 1e-6, "float32": 2e-3, "bfloat16": 0.25}
"""The largest difference between layouts by dtype, in nats a token or in score."""


def check_layout(evidence: Evidence) -> Outcome:
    """The layout in use, in the dtype that trains if one process trains."""
    import torch

    session = evidence.session
    compute = session.model.compute if session.processes.size == 1 else torch.float32
    return layout(session.model.policy, evidence.few, compute, evidence.alone)


def check_loss(evidence: Evidence) -> Outcome:
    """The loss of some of the first step."""
    session = evidence.session
    uniform = None
    if session.traits.likelihood:
        uniform = math.log(session.model.loaded.model.config.get_text_config().vocab_size)
    return loss(evidence.probe.loss, uniform)


def check_update(evidence: Evidence) -> Outcome:
    """The weights that one step would change."""
    return update(evidence.probe.shares)


def layout(policy: Any, groups: Sequence[list[Sample]], dtype: torch.dtype, alone: Tensor | None = None) -> Outcome:
    """What the layout in use says of some groups against the architecture's own forward, one row at a time (`alone`, or
    measured here): log-probabilities of trained tokens by its own logits, or, of a model with a scalar head, what the
    head says of its own hidden states.

    Compares the largest difference, and takes the model as it stands: call it in the dtype that trains, and before the
    model is sharded. In half precision the yardstick rounds as much as what it measures: a difference beyond the limit
    is measured again against the same weights in float32, and may be twice that of the yardstick itself.
    """
    import torch

    from espalier.forest.pack import pack, totals

    samples = [s for group in groups for s in group]
    device = next(policy.parameters()).device
    with torch.no_grad():
        batch = pack(groups, totals(groups), share=policy.shares, says=policy.says, device=device)
        scores = policy(batch)
        packed = scores["scores_RK"] if policy.says == "reads" else scores["logprobs"][batch.score]
        alone = one_by_one(policy, samples) if alone is None else alone
    what, unit = ("reads", "score") if policy.says == "reads" else ("tokens", "nats")
    bound, worst, yardstick = LAYOUT_LIMIT[str(dtype).removeprefix("torch.")], _apart(packed, alone), "one-by-one"
    if not worst <= bound and dtype in (torch.bfloat16, torch.float16):
        with torch.no_grad(), widened(policy.model):
            exact = one_by_one(policy, samples)
        worst, yardstick = _apart(packed, exact), "one-by-one in float32"
        bound = max(bound, 2 * _apart(alone, exact))
        if (
            not _mean_apart(packed, exact) <= 2 * _mean_apart(alone, exact) + 0.01
        ):  # single tokens are noisy, all are not
            worst = math.inf
    value = f"{policy.layout}: {worst:.1e} over {len(alone):,} {what}"
    limit = f"<= {bound:.3g} {unit} of {yardstick}"
    if not worst <= bound:  # nan fails, too
        way_out = "This architecture is not right in this layout: set --layout padded, and report the model."
        return failed(value, limit, way_out)
    return passed(value, limit)


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference."""
    return float((one.double() - other.double()).abs().max()) if len(one) else 0.0


def _mean_apart(one: Tensor, other: Tensor) -> float:
    """The mean absolute difference."""
    return float((one.double() - other.double()).abs().mean()) if len(one) else 0.0


@contextmanager
def widened(model: Any) -> Iterator[None]:
    """Inside, every module computes in float32: its weights are widened when it is called and take their place again
    when it returns, so that no second copy of the model is made."""
    import torch

    def is_low(parameter: Any) -> bool:
        return bool(parameter.is_floating_point() and parameter.element_size() < 4)

    def widen(module: Any, args: Any) -> Any:
        for parameter in module.parameters(recurse=False):
            if is_low(parameter):
                kept.setdefault(module, []).append((parameter, parameter.data))
                parameter.data = parameter.data.float()
        return tuple(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in args)

    def restore(module: Any, args: Any, output: Any) -> None:
        for parameter, data in kept.pop(module, []):
            parameter.data = data

    kept: dict[Any, list[tuple[Any, Any]]] = {}
    hooks = []
    for module in model.modules():
        if any(is_low(parameter) for parameter in module.parameters(recurse=False)):
            hooks += [module.register_forward_pre_hook(widen), module.register_forward_hook(restore)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in list(kept):
            restore(module, None, None)


def one_by_one(policy: Any, samples: Sequence[Sample]) -> Tensor:
    """Log-probabilities of every trained token, or scores at every read, from the model's own attention and its own
    logits, a sample at a time."""
    import torch

    from espalier.models.attention.interface import own_attention

    model = policy.model
    out: list[Tensor] = []
    with ExitStack() as restored:
        restored.callback(model.train, model.training)
        restored.enter_context(own_attention(model))
        model.eval()  # without the dropout that the layout under test keys by sample and leaves out here
        for s in samples:
            ids = torch.tensor([s.tokens], device=next(model.parameters()).device)
            out.append(_scores(policy, s, ids) if policy.says == "reads" else _logprobs(policy, s, ids))
    return torch.cat(out) if out else torch.zeros(0)


def _scores(policy: Any, s: Sample, ids: Tensor) -> Tensor:
    """What the scalar head says at the reads of one sample, by the backbone's own forward."""
    head = policy.model.score
    hidden = policy.backbone(input_ids=ids, use_cache=False).last_hidden_state[0]
    scores: Tensor = head(hidden[s.reads].to(head.weight.dtype)).float()
    return scores


def _logprobs(policy: Any, s: Sample, ids: Tensor) -> Tensor:
    """Log-probabilities of one sample's trained tokens, by the model's own logits."""
    import torch

    logits = policy.model(input_ids=ids, use_cache=False).logits[0, :-1]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / s.temperature
    logprobs: Tensor = wide.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logprobs[torch.tensor(s.mask[1:], device=logprobs.device)]


def loss(value: float, uniform: float | None) -> Outcome:
    """The first loss is finite; one that is a likelihood and above twice that of a uniform guess (`uniform` nats a
    token) says that model and tokenizer probably do not belong together."""
    shown, limit = f"{value:.4f}", "finite"
    if uniform is not None:
        shown, limit = f"{value:.4f} nats a token", f"finite; uniform guess {uniform:.2f}"
    if not math.isfinite(value):
        return failed(shown, limit, "The weights or the data hold numbers that overflow: try dtype float32.")
    if uniform is not None and value > 2 * uniform:
        return warned(shown, limit, "Worse than guessing: do model and tokenizer belong together?")
    return passed(shown, limit)


def update(shares: Mapping[str, float]) -> Outcome:
    """Share of weights with a gradient that one step at the peak rate changes, in the master's and the export's
    dtype."""
    value = ", ".join(f"{share:.1%} in {name}" for name, share in shares.items())
    master = next(iter(shares.values()))
    if master < 0.5:
        return failed(value, ">= 50 %", "Most weights would not move: raise lr.")
    if min(shares.values()) < 0.01:
        way_out = "One step vanishes in the export's rounding; many steps add up in the masters."
        return warned(value, ">= 50 %", way_out)
    return passed(value, ">= 50 %")
