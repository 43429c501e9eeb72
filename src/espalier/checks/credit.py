"""The check of what becomes of grades: each answer has its own reward, and the loss pulls by it.

Siblings that exchange their rewards, advantages one place off, a loss with its sign flipped or another denominator: all
of them train, and the loss says nothing. So answers of known lengths go through the run's own path (answers, graders,
annotate, credit, packing, loss) under the reward `length`, whose scores are a division, and the gradient that comes out
is compared with arithmetic that shares no code with the path. There is no model in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from espalier.checks.first_groups import Groups, scored
from espalier.checks.firstloss import (
    AnswerFacts,
    Rolled,
    expected_advantages,
    expected_first_gradient,
    expected_returns,
    expected_scores,
)
from espalier.checks.invented import Said, policy_logprobs
from espalier.checks.table import Outcome, failed, passed
from espalier.types import Sample

if TYPE_CHECKING:
    from torch import Tensor

    from espalier.algorithms.traits import Algorithm
    from espalier.assembly.session import Session
    from espalier.checks.evidence import Evidence
    from espalier.engines.protocols import Drawn, Request
    from espalier.outcomes import Key
    from espalier.outcomes import Outcome as Grade
    from espalier.rewards.graders import WorkerGraders
    from espalier.types import Prompt

PROMPTS = 2
WORDS = (3, 1, 4, 2)
"""Tokens of each answer to a prompt, its stop token aside; the reward is their share of the most."""
LONGEST = 4096
"""`max_tokens` of the made-up step, far above the answers, so that no length is punished."""
RATIO = 0.3
"""By how much the policy says more of each answer than the reference, in nats."""
SLACK = 1e-4
"""Relative, of gradients in float32."""
_REPORT = "Rewards, credit or loss are not those of the answers: what is learned is something else. Report this."


def check_credit(evidence: Evidence) -> Outcome:
    """Answers of 1 to 4 tokens get their own rewards, more advantage for more reward, and arithmetic's gradient."""
    session = evidence.session
    groups = graded(session)
    value = f"{sum(map(len, groups))} made-up answers"
    limit = "rewards, their order and the gradient as by hand"
    for fault in faults(session.config.algorithm, groups):
        return failed(fault, limit, _REPORT)
    return passed(value, limit)


def faults(algorithm: Algorithm, groups: Groups) -> Iterator[str]:
    """What is wrong with rewards, advantages and gradients of these groups, the first cause first."""
    from espalier.engines.protocols import Roles
    from espalier.loop.annotate import annotate

    for s in (s for group in groups for s in group):
        right = (len(scored(s)) - 1) / max(WORDS)
        if s.reward is None or not math.isclose(s.reward, right, rel_tol=SLACK):
            yield f"an answer of {len(scored(s))} tokens has the reward {s.reward}, by hand {right:g}"
    policy: Any = _Policy(lambda s: RATIO)
    critic: Any = _Policy(lambda s: RATIO)
    state = annotate(groups, algorithm, Roles(policy, critic, policy), {"max_tokens": float(LONGEST)})
    yield from _advantages(algorithm, groups)
    yield from _scores(algorithm, groups)
    gradient, of_kl = gradients(algorithm, groups, state)
    for number, (got, right) in enumerate(zip(gradient, expected(algorithm, groups) or gradient, strict=True)):
        if not math.isclose(got, right, rel_tol=SLACK, abs_tol=SLACK / LONGEST):
            yield f"the gradient at scored token {number} is {got:.4g}, by hand {right:.4g}"
    for number, got in enumerate(of_kl):
        if not got > 0:
            where = f"at scored token {number}, of which the policy says more than the reference"
            yield f"the KL's gradient is {got:.4g} {where}, expected more than 0"


def _advantages(algorithm: Algorithm, groups: Groups) -> Iterator[str]:
    """Which advantages are not those by hand; of algorithms that arithmetic does not know token by token, what of
    `_order` is wrong."""
    rolled = [[Rolled(s.reward or 0.0, _log_ratios(s), _values(s)) for s in group] for group in groups]
    by_hand = expected_advantages(algorithm, rolled)
    if by_hand is None:
        yield from _order(groups)
        return
    yield from _stream(groups, "advantages", by_hand)
    of_critic = expected_returns(algorithm, rolled)
    if of_critic is not None:
        yield from _stream(groups, "returns", of_critic)
        yield from _value_gradient(algorithm, groups, of_critic)


def _stream(groups: Groups, name: str, by_hand: Sequence[Sequence[float]]) -> Iterator[str]:
    """Which numbers of a stream are not those by hand."""
    for s, right_ones in zip((s for group in groups for s in group), by_hand, strict=True):
        for t, right in zip(scored(s), right_ones, strict=True):
            got = s.streams[name][t]
            if not math.isclose(got, right, rel_tol=SLACK, abs_tol=SLACK):
                at = t - scored(s)[0]
                yield f"an answer of reward {s.reward:g} has {name} {got:.4g} at token {at}, by hand {right:.4g}"


def _value_gradient(algorithm: Algorithm, groups: Groups, returns: Sequence[Sequence[float]]) -> Iterator[str]:
    """Where the derivative of the critic's loss in a value that has not moved is not (V - R) / tokens."""
    import torch

    from espalier.forest.pack import pack, totals
    from espalier.losses.ops import normalise
    from espalier.types import Outputs

    numbers = [V for group in groups for s in group for V in _values(s)]
    values = torch.tensor(numbers, requires_grad=True)
    sums = totals(groups)
    terms = algorithm.value_loss(Outputs(values.new_zeros(0), values=values), pack(groups, sums))
    (gradient,) = torch.autograd.grad(normalise(terms, sums)[0], values)
    right_ones = [R for of_answer in returns for R in of_answer]
    for number, (got, V, R) in enumerate(zip(gradient.tolist(), numbers, right_ones, strict=True)):
        right = (V - R) / len(numbers)
        if not math.isclose(got, right, rel_tol=SLACK, abs_tol=SLACK / len(numbers)):
            yield f"the critic's gradient at scored token {number} is {got:.4g}, by hand {right:.4g}"


def _values(s: Sample) -> list[float]:
    """What the stand-in for a critic says before each scored token of a sample."""
    return [critic_values(s)[t] for t in scored(s)]


def critic_values(s: Sample) -> list[float]:
    """Values between -0.25 and 0.5, 0 for tokens that are not scored."""
    stream = [0.0] * len(s.tokens)
    for n, t in enumerate(scored(s)):
        stream[t] = 0.25 * ((n + s.key) % 4) - 0.25
    return stream


def _log_ratios(s: Sample) -> list[float]:
    """What the policy says more than the reference of each scored token, nats; 0 without a reference."""
    reference = s.streams.get("ref_logprobs")
    return [policy_logprobs(s)[t] - reference[t] if reference else 0.0 for t in scored(s)]


def _order(groups: Groups) -> Iterator[str]:
    """What of the advantages does not rise with the rewards, or what is kept beside better answers that are not."""
    for group in groups:
        ranked = sorted(group, key=lambda s: s.reward or 0.0)
        if all("advantages" in s.streams for s in group):
            advantages = [_mean(s, s.streams["advantages"]) for s in ranked]
            if advantages != sorted(advantages) or not advantages[0] < 0 < advantages[-1]:
                yield f"rewards in rising order have the advantages {', '.join(f'{x:.3g}' for x in advantages)}"
            continue
        kept = [_kept(s) for s in ranked]
        if kept != sorted(kept):
            yield f"of answers in rising order of reward, {', '.join('kept' if x else 'left' for x in kept)}"


def _scores(algorithm: Any, groups: Groups) -> Iterator[str]:
    """Which scores are not the reward less beta times what the policy says more than the reference."""
    for group in groups:
        rewards = [s.reward or 0.0 for s in group]
        right_ones = expected_scores(algorithm, rewards, RATIO)
        if right_ones is None:
            return
        (scores,) = algorithm.scores([group])
        for reward, score, right in zip(rewards, scores, right_ones, strict=True):
            if not math.isclose(score, right, rel_tol=SLACK, abs_tol=SLACK):
                yield f"an answer of reward {reward:g} has the score {score:.4g} beside the KL, by hand {right:.4g}"


def graded(session: Session) -> list[list[Sample]]:
    """Answers of known lengths to the run's first tasks, drawn by a stand-in, graded in a worker by `length`."""
    from espalier.config.rollout_sections import RewardsConfig
    from espalier.loop.answers import Answers
    from espalier.rewards import build

    assert session.rollouts is not None
    params = session.rollouts.params
    # A task that names a verifier would be graded by that one.
    posed = [
        (replace(prompt, task=replace(prompt.task, verifier="")), epoch)
        for prompt, epoch in session.tasks.prompts(0)[:PROMPTS]
    ]
    settings = (f"length.target={max(WORDS)}",)
    config = RewardsConfig(reward=("length",), reward_args=settings, reward_workers=1, max_error_share=1.0)
    plan = build.plan(config)
    graders = plan.start(lambda ids: "", stop=params.stop)
    sampler: Any = _Scripted(params.stop[:1] or (0,))
    backwards: Any = _Backwards(graders)
    try:
        answers = Answers(sampler, backwards, session.processes, None, lambda: False)
        groups, _ = answers.answer(0, posed, params, len(WORDS))
    finally:
        graders.close()
    for number, group in enumerate(groups):
        for k, s in enumerate(group):
            s.group, s.key = number, number * len(WORDS) + k
            # Also the sampler's, for algorithms that take them as the old ones.
            s.streams["logprobs"] = policy_logprobs(s)
    return groups


def gradients(algorithm: Algorithm, groups: Groups, state: dict[str, float]) -> tuple[list[float], list[float]]:
    """The derivatives of the loss without KL and entropy bonus, and of the KL (empty without one), in the
    log-probability of each scored token."""
    import torch

    from espalier.forest.pack import pack, totals
    from espalier.losses.ops import normalise
    from espalier.types import Outputs

    sums = totals(groups)
    batch = pack(groups, sums, state={**state, "max_tokens": float(LONGEST)})
    numbers = [policy_logprobs(s)[t] for group in groups for s in group for t in scored(s)]
    logprobs = torch.tensor(numbers, requires_grad=True)
    terms = algorithm.loss(Outputs(logprobs, entropy=torch.zeros(len(numbers))), batch)
    beside = {"kl_loss", "entropy_bonus"}

    def derivative(names: set[str]) -> list[float]:
        loss: Tensor = normalise({name: term for name, term in terms.items() if name in names}, sums)[0]
        (gradient,) = torch.autograd.grad(loss, logprobs, retain_graph=True, allow_unused=True)
        return [] if gradient is None else [float(x) for x in gradient]

    of_kl = derivative({"kl_loss"}) if "kl_loss" in terms else []
    return derivative({name for name, term in terms.items() if term.coef} - beside), of_kl


def expected(algorithm: Algorithm, groups: Groups) -> list[float] | None:
    """What the first derivative of `gradients` is by hand; None if arithmetic does not know."""
    samples = [s for group in groups for s in group]
    by_place = []
    for n in range(max(len(scored(s)) for s in samples)):
        # Every formula is of the advantage of the token itself, which may differ from that of its neighbours.
        answers = [AnswerFacts(len(scored(s)), _advantage(s, n), _kept(s)) for s in samples]
        of_answers = expected_first_gradient(algorithm, answers, LONGEST)
        if of_answers is None:
            return None
        by_place.append(of_answers)
    return [by_place[n][number] for number, s in enumerate(samples) for n in range(len(scored(s)))]


def _advantage(s: Sample, place: int) -> float:
    """The advantage of scored token number `place`, of the last one beyond the end; 0 without the stream."""
    places = scored(s)
    return s.streams["advantages"][places[min(place, len(places) - 1)]] if "advantages" in s.streams else 0.0


def _kept(s: Sample) -> bool:
    return any(s.weights[t] for t in scored(s))


def _mean(s: Sample, stream: Sequence[float]) -> float:
    return math.fsum(stream[t] for t in scored(s)) / len(scored(s))


class _Policy(Said):
    """A stand-in for learner, critic and reference that also says entropies and values."""

    def say(self, groups: Groups, what: Sequence[str]) -> list[Any]:
        from espalier.engines.protocols import SampleOutputs

        samples = [s for group in groups for s in group]
        zeros = [[0.0] * len(s.tokens) for s in samples]
        return [
            SampleOutputs(logprobs=policy_logprobs(s), entropy=zero, values=critic_values(s))
            for s, zero in zip(samples, zeros, strict=True)
        ]


class _Scripted:
    """A sampler whose answer k has WORDS[k] tokens and a stop token; the last one that was requested ends first."""

    def __init__(self, stop: Sequence[int]) -> None:
        self.stop = list(stop)
        self.open: list[tuple[Request, int]] = []
        self.interrupted = lambda: False

    def submit(self, requests: Sequence[Request]) -> None:
        self.open += [(request, k) for request in requests for k in request.ks]

    @property
    def busy(self) -> bool:
        return bool(self.open)

    def finished(self) -> list[Drawn]:
        from espalier.engines.protocols import Drawn

        request, k = self.open.pop()
        s = Sample(group=request.group, stop="stop", version=0)
        s.append(request.prompt, trained=False)
        ids = [*request.prompt[:1] * WORDS[k], *self.stop]
        s.append(ids, trained=True, logprobs=[-1.0] * len(ids))
        return [Drawn(request, k, s)]

    def drawing(self) -> Any:
        return nullcontext()


class _Backwards:
    """Graders whose outcomes come all at once, the last one first."""

    def __init__(self, graders: WorkerGraders) -> None:
        self.graders = graders
        self.outcomes: list[tuple[Key, Grade]] = []

    def submit(self, key: Key, prompt: Prompt, sample: Sample) -> None:
        self.graders.submit(key, prompt, sample)

    def finished(self, *, wait: bool) -> list[tuple[Key, Grade]]:
        self.outcomes += self.graders.finished(wait=wait)
        if not wait or self.graders.busy:
            return []
        outcomes, self.outcomes = self.outcomes[::-1], []
        return outcomes
