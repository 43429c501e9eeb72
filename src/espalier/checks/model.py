"""Checks of the model: its layout against its own forward, the first loss, the first update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from espalier.checks.table import Check
from espalier.forest.pack import pack, totals
from espalier.models.attention.interface import own_attention
from espalier.types import Sample

LAYOUT_LIMIT = {torch.float64: 1e-6, torch.float32: 2e-3, torch.bfloat16: 0.25}


LAYOUT_TOKENS = 1024  # enough for several rows, little beside a step


def layout(policy: Any, groups: Sequence[list[Sample]], dtype: torch.dtype) -> Check:
    """What the layout in use says against the architecture's own forward, one row at a time: log-probabilities of
    trained tokens by its own logits, or, of a model with a scalar head, what the head says of its own hidden states.

    Compares the largest difference over some groups of the first step, a long one among them, and takes the model as it
    stands: call it in the dtype that trains, and before the model is sharded.
    """
    chosen = _few(groups, LAYOUT_TOKENS)
    sums = totals(chosen)
    samples = [s for g in chosen for s in g]
    with torch.no_grad():
        batch = pack(
            chosen, sums, share=policy.shares, targets=not policy.reads, device=next(policy.parameters()).device
        )
        said = policy(batch)
        packed = said["scores_RK"] if policy.reads else said["logprobs"][batch.score]
        alone = one_by_one(policy, samples)
    worst = (packed.double() - alone.double()).abs().max().item() if len(alone) else 0.0
    limit = LAYOUT_LIMIT[dtype]
    ok = worst <= limit
    what, unit = ("reads", "score") if policy.reads else ("tokens", "nats")
    return Check(
        "layout", f"{policy.layout}: {worst:.1e} over {len(alone):,} {what}", f"<= {limit:g} {unit} of one-by-one",
        "pass" if ok else "fail",
        "" if ok else "This architecture is not right in this layout: set --layout padded, and report the model.",
    )  # fmt: skip


def one_by_one(policy: Any, samples: Sequence[Sample]) -> Tensor:
    """Log-probabilities of every trained token, or scores at every read, from the model's own attention and its own
    logits, a sample at a time."""
    model = policy.model
    out: list[Tensor] = []
    with ExitStack() as restored:
        restored.callback(model.train, model.training)
        restored.enter_context(own_attention(model))
        model.eval()  # without the dropout that the layout under test keys by sample and leaves out here
        for s in samples:
            ids = torch.tensor([s.tokens], device=next(model.parameters()).device)
            if policy.reads:
                hidden = policy.backbone(input_ids=ids, use_cache=False).last_hidden_state[0]
                out.append(model.score(hidden[s.reads].to(model.score.weight.dtype)).float())
                continue
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / s.temperature
            said = wide.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            out.append(said[torch.tensor(s.mask[1:], device=said.device)])
    return torch.cat(out) if out else torch.zeros(0)


def _few(groups: Sequence[list[Sample]], budget: int) -> list[list[Sample]]:
    """Groups of at most `budget` tokens together: the longest that takes up half of it, then short ones; at least one,
    cut short where it must be."""
    chosen: list[list[Sample]] = []
    used = 0
    ordered = sorted(islice(groups, 64), key=lambda g: sum(len(s) for s in g))
    half = [g for g in ordered if sum(len(s) for s in g) <= budget // 2]
    for group in [half[-1], *(g for g in ordered if g is not half[-1])] if half else ordered:
        size = sum(len(s) for s in group)
        if chosen and used + size > budget:
            break
        chosen.append([_head(s, budget) for s in group] if size > budget else group)
        used += size
    return chosen


def _head(sample: Sample, length: int) -> Sample:
    cut = Sample(
        sample.tokens[:length], sample.mask[:length], sample.weights[:length], part=sample.part, key=sample.key
    )
    if sample.reads:
        cut.reads = [min(read, length - 1) for read in sample.reads]
    if not any(cut.mask[1:]):
        cut.mask, cut.weights = [False] + [True] * (len(cut) - 1), [0.0] + [1.0] * (len(cut) - 1)
    return cut


def loss(value: float, uniform: float | None) -> Check:
    """The first loss is finite; one that is a likelihood and above twice that of a uniform guess (`uniform` nats a
    token) says that model and tokenizer probably do not belong together."""
    shown, limit = f"{value:.4f} nats a token", f"finite; uniform guess {uniform or 0:.2f}"
    if uniform is None:
        shown, limit = f"{value:.4f}", "finite"
    if not math.isfinite(value):
        return Check(
            "loss", shown, limit, "fail", "The weights or the data hold numbers that overflow: try dtype float32."
        )
    if uniform is not None and value > 2 * uniform:
        way_out = "Worse than guessing: do model and tokenizer belong together?"
        return Check("loss", shown, limit, "warn", way_out)
    return Check("loss", shown, limit, "pass")


def update(shares: dict[str, float]) -> Check:
    """Share of weights with a gradient that one step at the peak rate changes, in the master's and the export's
    dtype."""
    value = ", ".join(f"{share:.1%} in {name}" for name, share in shares.items())
    master = next(iter(shares.values()))
    if master < 0.5:
        return Check("update", value, ">= 50 %", "fail", "Most weights would not move: raise lr.")
    lost = min(shares.values()) < 0.01
    way_out = "One step vanishes in the export's rounding; many steps add up in the masters." if lost else ""
    return Check("update", value, ">= 50 %", "warn" if lost else "pass", way_out)
