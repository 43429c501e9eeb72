"""The updates of one step: policy and critic, minibatch by minibatch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from espalier.algorithms.traits import Algorithm
from espalier.engines.protocols import Group, Learner, Quantity, Roles, SampleOutputs, StepResult, samples_of
from espalier.errors import EspalierError
from espalier.loop.annotate import says_old
from espalier.loop.updates import updates
from espalier.types import Draw, Sample


class UpdateError(Exception):
    """An update had a gradient that is not finite. `made` updates of its step had been made before it, `loss` is its
    loss, `groups` are those that ran."""

    def __init__(self, error: FloatingPointError, made: int, loss: float, groups: Sequence[Group]):
        super().__init__(str(error))
        self.made, self.loss, self.groups = made, loss, groups

    def explained(self, step: int, saved: str) -> EspalierError:
        """The error for the user; `saved` says what is left of the run."""
        rows = ", ".join(str(g[0].key) for g in self.groups[:4])
        return EspalierError(
            f"step {step}: {self}, so no update was made; {saved}. The loss of this step is {self.loss:g}; its first "
            f"samples have keys {rows}. Lower lr, or look at these rows"
        )


@dataclass(slots=True)
class Made:
    """What the updates of a step came to.

    numbers: `loss` and the terms, the mean over updates (of terms over `max` the largest); empty without an update.
    optimizers: what the optimizers say (`grad_norm`), the mean over updates.
    tokens, packed, scored: sums over the policy's updates, or the critic's in a step that trains it alone.
    updates: how many were made. skipped: how many had nothing that runs. of_policy: how many moved the policy.
    stopped: the number of the update, from 1, at which the algorithm ended those of the policy; 0 if it did not.
    ran: answers of the draw that ran; silent ones and those without weight did not. Given data are not counted.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    optimizers: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    packed: int = 0
    scored: int = 0
    updates: int = 0
    skipped: int = 0
    of_policy: int = 0
    stopped: int = 0
    ran: int = 0

    def notes(self) -> list[str]:
        """Lines for the user about updates that were not made."""
        lines = []
        if self.skipped:
            lines.append(
                f"{self.skipped} of {self.skipped + self.updates} updates had nothing to run and were not made"
            )
        if self.stopped:
            lines.append(
                f"update {self.stopped} of {self.updates} is too far from the old policy: it and those behind it left "
                "the policy as it was"
            )
        return lines


def make_updates(
    roles: Roles,
    algorithm: Algorithm,
    draw: Draw,
    state: dict[str, float],
    *,
    step: int,
    seed: int,
    lr: float,
    critic_lr: float = 0.0,
    train_policy: bool = True,
) -> Made:
    """Make all updates of a step, each of the policy, then of the critic if it is a model of its own.

    A minibatch in which nothing runs makes no update: its gradient is exactly 0, and an optimizer's step on it would
    move weights by momentum and decay alone. Nor does one that has given data and no answers. Both are counted in
    `skipped`. If the algorithm stops at a minibatch, its gradient is dropped, and the policy is not updated again in
    this step; the critic goes on. Without `train_policy` the critic alone is trained.

    Samples of an online step that ran get the streams that the log needs and nobody has filled: `entropy`, and as
    `old_logprobs` what the first forward said (as `policy_logprobs` if the old ones are the sampler's).

    Raises UpdateError for a gradient that is not finite; that update is not made.
    """
    online = algorithm.traits.online
    per_step = online.epochs * online.minibatches if online else 1
    # Two forwards of a sample differ by rounding, so what is in the streams already is not computed again.
    keep: tuple[Quantity, ...] = ("logprobs", "entropy") if online and not says_old(algorithm.traits) else ()
    critic = None if roles.critic is roles.policy else roles.critic
    made = Made()
    results: list[StepResult] = []
    judged: list[StepResult] = []
    from_optimizers: list[dict[str, float]] = []
    first_outputs: list[tuple[Sample, SampleOutputs]] = []
    for update in updates(draw.groups, draw.silent, online, seed=seed, step=step):
        # Given data stand beside answers, if only beside silent ones.
        if not update.groups or (online and not answered([*update.groups, *update.silent])):
            made.skipped += 1
            continue
        kept = keep if update.epoch == 0 else ()
        key = step * per_step + update.number
        said: dict[str, float] = {}
        if train_policy and not made.stopped:
            result = roles.policy.forward_backward(
                update.groups, algorithm.loss, state, key, silent=update.silent, keep=kept
            )
            results.append(result)
            if algorithm.stop(result.terms):
                roles.policy.drop_gradient()
                made.stopped = made.updates + 1
            else:
                said = _optimise(roles.policy, result, update.groups, lr, made.updates)
                made.of_policy += 1
            if kept:
                first_outputs += zip(samples_of(update.groups), result.outputs, strict=True)
        answers = answers_in(update.groups)
        if critic is not None and answers:
            quiet = answers_in(update.silent)
            value = critic.forward_backward(answers, algorithm.value_loss, state, key, silent=quiet, keep=())
            judged.append(value)
            # The policy's update is made by now.
            by_critic = _optimise(critic, value, answers, critic_lr, made.updates + 1)
            said |= {f"{name}_critic": number for name, number in by_critic.items()}
        from_optimizers.append(said)
        made.updates += 1
        if update.epoch == 0:
            made.ran += answered(update.groups)
    for s, outputs in first_outputs:
        name = "policy_logprobs" if "old_logprobs" in s.streams else "old_logprobs"
        s.streams[name], s.streams["entropy"] = outputs.logprobs, outputs.entropy
    made.numbers = _numbers(results, judged)
    names = dict.fromkeys(name for said in from_optimizers for name in said)
    made.optimizers = {name: _mean(said[name] for said in from_optimizers if name in said) for name in names}
    for result in results or judged:
        made.tokens += result.tokens
        made.packed += result.packed
        made.scored += result.scored
    return made


def fit_critic(roles: Roles, algorithm: Algorithm, draw: Draw, state: dict[str, float], passes: int, lr: float) -> int:
    """Let the critic learn the returns of a draw in so many passes over its answers, an update each; returns how many.

    Raises UpdateError for a gradient that is not finite, ValueError without a critic of its own.
    """
    critic = roles.critic
    if critic is None or critic is roles.policy:
        raise ValueError("the critic is to learn first, and there is none of its own; give the loop one")
    answers = answers_in(draw.groups)
    for number in range(passes if answers else 0):
        # Keys of noise that no step has.
        value = critic.forward_backward(answers, algorithm.value_loss, state, -1 - number)
        _optimise(critic, value, answers, lr, number)
    return passes if answers else 0


def _optimise(learner: Learner, result: StepResult, groups: Sequence[Group], lr: float, made: int) -> dict[str, float]:
    """One optimizer step of one learner; what the optimizer says."""
    try:
        return learner.optim_step(lr)
    except FloatingPointError as error:
        raise UpdateError(error, made, result.loss, groups) from error


def answers_in(groups: Sequence[Group]) -> list[Group]:
    """The groups without what is no answer to a task."""
    kept = [[s for s in g if s.part == "main"] for g in groups]
    return [g for g in kept if g]


def _numbers(results: Sequence[StepResult], judged: Sequence[StepResult]) -> dict[str, float]:
    numbers = {"loss": _mean(result.loss for result in results), **_terms(results)} if results else {}
    if judged:
        of_critic = {"value_loss": _mean(value.loss for value in judged), **_terms(judged)}
        both = sorted(numbers.keys() & of_critic.keys())
        if both:
            raise ValueError(f"loss and value_loss both have a term {both[0]}; expected names of their own")
        numbers |= of_critic
    return numbers


def _terms(results: Sequence[StepResult]) -> dict[str, float]:
    """Each term's mean over updates, of those over `max` the largest; updates without a term are left out."""
    names = dict.fromkeys(name for result in results for name in result.terms)
    peaks = {name for result in results for name in result.peaks}
    numbers = {}
    for name in names:
        values = [result.terms[name] for result in results if name in result.terms]
        numbers[name] = max(values) if name in peaks else _mean(values)
    return numbers


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    # One number stays as it is, bit for bit: a sum would lose the sign of -0.
    return numbers[0] if len(numbers) == 1 else math.fsum(numbers) / len(numbers)


def answered(groups: Sequence[Group]) -> int:
    """How many samples are answers to tasks: those of part main."""
    return sum(s.part == "main" for s in samples_of(groups))


def mean_entropy(groups: Sequence[Group]) -> float | None:
    """The mean of the streams `entropy` over scored tokens of answers, in nats; None if no answer has one."""
    total, count = 0.0, 0
    for s in samples_of(groups):
        for t, entropy in enumerate(s.streams.get("entropy", [])):
            if t and s.mask[t] and s.part == "main":
                total += entropy
                count += 1
    return total / count if count else None
