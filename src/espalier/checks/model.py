"""Checks of the model: its layout against its own forward, the first loss, the first update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any

from espalier.checks.table import Outcome, failed, passed, warned
from espalier.types import Sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from espalier.checks.evidence import Evidence

LAYOUT_LIMIT = {"float64": 1e-6, "float32": 2e-3, "bfloat16": 0.25}
"""The largest difference between layouts by dtype, in nats a token or in score."""
LAYOUT_TOKENS = 1024  # enough for several rows, little beside a step
FEW_GROUPS = 64


def check_layout(evidence: Evidence) -> Outcome:
    """The layout in use, in the dtype that trains if one process trains."""
    import torch

    session = evidence.session
    compute = session.model.compute if session.processes.size == 1 else torch.float32
    return layout(session.model.policy, session.dataset.groups(0), compute)


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


def layout(policy: Any, groups: Sequence[list[Sample]], dtype: torch.dtype) -> Outcome:
    """What the layout in use says against the architecture's own forward, one row at a time: log-probabilities of
    trained tokens by its own logits, or, of a model with a scalar head, what the head says of its own hidden states.

    Compares the largest difference over some groups of the first step, a long one among them, and takes the model as it
    stands: call it in the dtype that trains, and before the model is sharded.
    """
    import torch

    from espalier.forest.pack import pack, totals

    chosen = _few(groups, LAYOUT_TOKENS)
    sums = totals(chosen)
    device = next(policy.parameters()).device
    with torch.no_grad():
        batch = pack(chosen, sums, share=policy.shares, says=policy.says, device=device)
        scores = policy(batch)
        packed = scores["scores_RK"] if policy.says == "reads" else scores["logprobs"][batch.score]
        alone = one_by_one(policy, [s for group in chosen for s in group])
    worst = (packed.double() - alone.double()).abs().max().item() if len(alone) else 0.0
    what, unit = ("reads", "score") if policy.says == "reads" else ("tokens", "nats")
    bound = LAYOUT_LIMIT[str(dtype).removeprefix("torch.")]
    value = f"{policy.layout}: {worst:.1e} over {len(alone):,} {what}"
    limit = f"<= {bound:g} {unit} of one-by-one"
    if not worst <= bound:  # nan fails, too
        way_out = "This architecture is not right in this layout: set --layout padded, and report the model."
        return failed(value, limit, way_out)
    return passed(value, limit)


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


def _few(groups: Sequence[list[Sample]], budget: int) -> list[list[Sample]]:
    """Groups of at most `budget` tokens together: the longest that takes up half of it, then short ones; at least one,
    cut short if it must be."""
    sized = [(sum(len(s) for s in group), group) for group in islice(groups, FEW_GROUPS)]
    sized.sort(key=lambda pair: pair[0])
    half = [pair for pair in sized if pair[0] <= budget // 2]
    if half:
        sized.insert(0, sized.pop(len(half) - 1))
    chosen: list[list[Sample]] = []
    used = 0
    for size, group in sized:
        if chosen and used + size > budget:
            break
        chosen.append([_head(s, budget) for s in group] if size > budget else group)
        used += size
    return chosen


def _head(sample: Sample, length: int) -> Sample:
    """The first tokens of a sample, of which at least one is scored."""
    cut = Sample(
        sample.tokens[:length], sample.mask[:length], sample.weights[:length], part=sample.part, key=sample.key
    )
    if sample.reads:
        cut.reads = [min(read, length - 1) for read in sample.reads]
    if not any(cut.mask[1:]):
        cut.mask, cut.weights = [False] + [True] * (len(cut) - 1), [0.0] + [1.0] * (len(cut) - 1)
    return cut


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
