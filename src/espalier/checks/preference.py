"""Checks of the reference: it is the policy as it starts, and it stays that while the policy moves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from espalier.checks.first_groups import CHECKED_GROUPS, Groups, without_replay
from espalier.checks.model import LAYOUT_LIMIT
from espalier.checks.rehearsal import first_step
from espalier.checks.table import Outcome, failed, passed, skipped
from espalier.loop.canary import apart, rounding

if TYPE_CHECKING:
    from espalier.checks.evidence import Evidence

REFERENCE_LIMIT = {"float64": 1e-10, "float32": 1e-5}
"""Nats a token by dtype; half precision has no fixed limit."""


def check_reference(evidence: Evidence) -> Outcome:
    """The reference's log-probabilities of the first pairs against the policy's."""
    session, learner = evidence.session, evidence.session.learner
    assert session.reference is not None
    groups = _compared(evidence)

    def logprobs(groups: Groups) -> list[list[float]]:
        return [outputs.logprobs for outputs in learner.say(groups, ["logprobs"])]

    difference = apart(logprobs(groups), session.reference.logprobs(groups))
    other = session.config.reference.reference_model
    if other and math.isfinite(difference):
        return passed(f"{difference:.1e} nats a token from the policy", f"any: it is {other}, as asked")
    single = [[replace(s, beats=[], ties=[]) for s in group] for group in groups]  # scored one by one
    dtype = str(session.model.compute).removeprefix("torch.")
    return reference_equals_policy(difference, dtype, rounding(logprobs, single))


def _compared(evidence: Evidence) -> Groups:
    """Some groups of the first step that the reference is asked about."""
    if evidence.first:
        return evidence.first.groups
    return without_replay(first_step(evidence.session))[:CHECKED_GROUPS]


def reference_equals_policy(difference: float, dtype: str, probe: float = 0.0) -> Outcome:
    """The reference's log-probabilities against those of the policy before its first step, in nats a token.

    The limit is the largest of 1e-5 in float32 (1e-10 in float64; nothing fixed in half precision) and 2 * probe, at
    most `model.LAYOUT_LIMIT`. `probe` is `rounding`, measured on the same model: bfloat16 rounds by 0.01 to 0.1 nats a
    token between two packings, and a long row in float32 by more than 1e-5. A reference that runs in the policy's own
    packing differs by exactly 0.
    """
    cap = LAYOUT_LIMIT.get(dtype, 0.25)
    bound = min(cap, max(REFERENCE_LIMIT.get(dtype, 0.0), 2 * probe))
    why = f"{dtype}; another packing of the policy changes {probe:.1e}" if probe else dtype
    value, limit = f"{difference:.1e} nats a token from the policy", f"<= {bound:.1e} ({why})"
    if difference <= bound:
        return passed(value, limit)
    return failed(
        value,
        limit,
        "The reference is not the policy as it starts: another model, another dtype, dropout that is on, or adapters "
        "that are not switched off. Leave reference_model empty, or name the model that the policy was trained from.",
    )


def check_reference_stays(evidence: Evidence) -> Outcome:
    """What the reference says of the first groups, before and while a weight of the policy is another."""
    session, learner = evidence.session, evidence.session.learner
    assert session.reference is not None
    reference, groups = session.reference, _compared(evidence)[:1]
    before = reference.logprobs(groups)
    said = [outputs.logprobs for outputs in learner.say(groups, ["logprobs"])]
    for name in _reached(learner):
        with nudged(learner.optimizer.named[name]):
            moved = apart([outputs.logprobs for outputs in learner.say(groups, ["logprobs"])], said)
            if moved:
                return reference_stays(apart(reference.logprobs(groups), before), moved)
    return skipped("no trained weight changes what the policy says", "0")


def _reached(learner: Any) -> list[str]:
    """Trained parameters that may change what the policy says, the last ones first, since they need no others to be
    other than 0."""
    return [*reversed(learner.optimizer.named)][:4] + [*learner.optimizer.named][:1]


@contextmanager
def nudged(parameter: Any) -> Iterator[None]:
    """Inside, a parameter's first numbers are larger by 1, in the memory where they stand."""
    import torch

    from espalier.engines import fsdp

    with torch.no_grad():
        flat = fsdp.local(parameter.detach()).view(-1)[:64]
        kept = flat.clone()
        flat += 1
    try:
        yield
    finally:
        with torch.no_grad():
            flat.copy_(kept)


def reference_stays(moved: float, policy: float) -> Outcome:
    """How far the reference moves, in nats a token, while the policy moves by `policy`."""
    value, limit = f"{moved:.1e} nats a token while the policy moves by {policy:.1e}", "0: bit for bit"
    if moved == 0:
        return passed(value, limit)
    return failed(value, limit, "The reference shares memory with the policy: nothing would be learned. Report this.")
