"""The rehearsal of a step: a few short answers that give every algorithm a gradient."""

from types import SimpleNamespace
from typing import Any

from espalier.algorithms.dapo import DAPO
from espalier.checks.rehearsal import ANSWERS, EPOCH, PROMPTS, TOKENS, rehearse
from espalier.engines.protocols import SamplingParams
from rollouts import FakeSampler, prompt


def session(sampler: FakeSampler) -> Any:
    rollouts = SimpleNamespace(params=SamplingParams(max_tokens=500, temperature=0.7), sampler=sampler)
    tasks = SimpleNamespace(prompts=lambda step: [(prompt(row), 0) for row in range(20)])
    return SimpleNamespace(rollouts=rollouts, tasks=tasks, traits=DAPO().traits, conversations=None)


def test_answers_that_the_rehearsal_cuts_have_a_gradient_where_cut_ones_are_masked() -> None:
    """dapo gives answers that the length limit ended no weight, and here it is the rehearsal's own limit."""
    sampler = FakeSampler(lambda request, k: ([5 + k, 6], "length"))
    groups = rehearse(session(sampler))
    DAPO().credit(groups, {"max_tokens": 500.0})
    assert [[s.weights[-1] for s in group] for group in groups] == [[1.0, 1.0]] * PROMPTS
    request = sampler.requests[0]
    assert (request.epoch, request.ks, request.params.max_tokens) == (EPOCH, tuple(range(ANSWERS)), TOKENS)
    assert request.params.temperature == 0.7
