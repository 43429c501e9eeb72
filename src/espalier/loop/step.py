"""The updates of one step: policy and critic, minibatch by minibatch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from espalier.algorithms.traits import Algorithm
from espalier.engines.protocols import Group, Learner, LossFn, Quantity, Roles, SampleOutputs, StepResult, samples_of
from espalier.loop.annotate import says_old
from espalier.loop.updates import Update, updates
from espalier.types import Draw, Sample


class UpdateError(Exception):
    """An update had a gradient that is not finite. `made` updates of its step had been made before it, `loss` is its
    loss, `groups` are those that ran."""

    def __init__(self, error: FloatingPointError, made: int, loss: float, groups: Sequence[Group]):
        super().__init__(str(error))
        self.made, self.loss, self.groups = made, loss, groups


@dataclass(slots=True)
class Made:
    """What the updates of a step came to.

    numbers: `loss` and the terms, the mean over updates (of terms over `max` the largest); empty without an update.
    optimizers: what the optimizers say (`grad_norm`), the mean over updates.
    tokens, packed, scored: sums over updates.
    updates: how many were made. skipped: how many had nothing that runs.
    ran: answers of the draw that ran; silent ones and those without weight did not. Given data are not counted.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    optimizers: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    packed: int = 0
    scored: int = 0
    updates: int = 0
    skipped: int = 0
    ran: int = 0


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
) -> Made:
    """Make all updates of a step, each of the policy, then of the critic if there is one.

    A minibatch in which nothing runs makes no update: its gradient is exactly 0, and an optimizer's step on it would
    move weights by momentum and decay alone. It is counted in `skipped`.

    Samples of an online step that ran get the streams that the log needs and nobody has filled: `entropy`, and as
    `old_logprobs` what the first forward said (as `policy_logprobs` if the old ones are the sampler's).

    Raises UpdateError for a gradient that is not finite; that update is not made.
    """
    online = algorithm.traits.online
    per_step = online.epochs * online.minibatches if online else 1
    # Two forwards of a sample differ by rounding, so what is in the streams already is not computed again.
    keep: tuple[Quantity, ...] = ("logprobs", "entropy") if online and not says_old(algorithm.traits) else ()
    made = Made()
    results: list[StepResult] = []
    judged: list[StepResult] = []
    from_optimizers: list[dict[str, float]] = []
    first_outputs: list[tuple[Sample, SampleOutputs]] = []
    for update in updates(draw.groups, draw.silent, online, seed=seed, step=step):
        if not update.groups:
            made.skipped += 1
            continue
        kept = keep if update.epoch == 0 else ()
        key = step * per_step + update.number
        result, said = _update(roles.policy, algorithm.loss, update, state, key, lr, made.updates, kept)
        results.append(result)
        if roles.critic is not None:
            # The policy's update is made by now.
            done = made.updates + 1
            value, by_critic = _update(roles.critic, algorithm.value_loss, update, state, key, critic_lr, done)
            judged.append(value)
            said |= {f"{name}_critic": number for name, number in by_critic.items()}
        from_optimizers.append(said)
        made.updates += 1
        if update.epoch == 0:
            made.ran += answered(update.groups)
        if kept:
            first_outputs += zip(samples_of(update.groups), result.outputs, strict=True)
    for s, outputs in first_outputs:
        name = "policy_logprobs" if "old_logprobs" in s.streams else "old_logprobs"
        s.streams[name], s.streams["entropy"] = outputs.logprobs, outputs.entropy
    made.numbers = _numbers(results, judged)
    made.optimizers = {name: _mean(said[name] for said in from_optimizers) for name in (from_optimizers or [{}])[0]}
    for result in results:
        made.tokens += result.tokens
        made.packed += result.packed
        made.scored += result.scored
    return made


def _update(
    learner: Learner,
    loss: LossFn,
    update: Update,
    state: dict[str, float],
    key: int,
    lr: float,
    made: int,
    keep: Sequence[Quantity] = (),
) -> tuple[StepResult, dict[str, float]]:
    """One optimizer step of one learner; what it came to, and what the optimizer says."""
    result = learner.forward_backward(update.groups, loss, state, key, silent=update.silent, keep=keep)
    try:
        return result, learner.optim_step(lr)
    except FloatingPointError as error:
        raise UpdateError(error, made, result.loss, update.groups) from error


def _numbers(results: Sequence[StepResult], judged: Sequence[StepResult]) -> dict[str, float]:
    if not results:
        return {}
    numbers = {"loss": _mean(result.loss for result in results), **_terms(results)}
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
