"""What the first step looks like: its groups, or, of a run that answers tasks, a few short answers of the policy."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from espalier.engines.protocols import Request

if TYPE_CHECKING:
    from espalier.assembly.session import Session
    from espalier.types import Sample

PROMPTS, ANSWERS, TOKENS = 8, 2, 48
EPOCH = -(2**30)
"""An epoch that no run reaches, so that a rehearsal draws other numbers than the first step."""


def first_step(session: Session) -> list[list[Sample]]:
    """The groups of the first step, or a rehearsal of it."""
    if session.rollouts is None:
        return session.rows.groups(0)
    if session.rehearsed is None:
        session.rehearsed = rehearse(session)
    return [[replace(s, streams=dict(s.streams), weights=list(s.weights)) for s in g] for g in session.rehearsed]


def rehearse(session: Session) -> list[list[Sample]]:
    """Answers of at most 48 tokens to the first 8 tasks, two or as many as the algorithm compares, by the sampler that
    the run uses. Nothing grades them: their rewards are 0, 1, 0, ..., and all count as ended, so that each group has
    something to learn. Given conversations of the first step stand behind them."""
    rollouts = session.rollouts
    assert rollouts is not None
    online = session.traits.online
    count = max(ANSWERS, online.least_group if online is not None else 1)
    most = min(TOKENS, rollouts.params.max_tokens)
    requests = []
    for number, (prompt, _) in enumerate(session.tasks.prompts(0)[:PROMPTS]):
        # Every other task has half as many, and the last one comes later: rows of different length, as in a rollout.
        params = replace(rollouts.params, max_tokens=-(-most // (1 + number % 2)))
        requests.append(Request(prompt.tokens, prompt.row, number, params, EPOCH, tuple(range(count))))
    groups: list[list[Sample]] = [[] for _ in requests]
    sampler = rollouts.sampler
    with sampler.drawing():
        sampler.submit(requests[:-1])
        drawn = sampler.finished()
        sampler.submit(requests[-1:])
        while sampler.busy:
            drawn += sampler.finished()
    for one in sorted(drawn, key=lambda one: (one.request.group, one.k)):
        s = one.sample
        s.group, s.key, s.reward = one.request.group, one.request.group * count + one.k, float(one.k % 2)
        # The rehearsal's own limit cut it: an algorithm that gives cut answers no weight would have no gradient.
        s.stop = "stop"
        groups[one.request.group].append(s)
    return [*groups, *_beside(session, len(groups))]


def _beside(session: Session, number: int) -> list[list[Sample]]:
    """The given conversations of the first step, numbered from `number`; none if there are none."""
    if session.conversations is None:
        return []
    groups = session.conversations.rows.groups(0)
    for place, group in enumerate(groups):
        for k, s in enumerate(group):
            s.group, s.key = number + place, -1 - (place << 16) - k
    return groups
