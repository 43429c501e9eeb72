"""The updates of a step: numbers of several, an update that fails, whose streams are filled. No model runs here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from drawn import answers
from espalier.algorithms.online import Online
from espalier.algorithms.traits import Algorithm, Traits
from espalier.engines.protocols import Group, Roles, SampleOutputs, StepResult, samples_of
from espalier.loop.step import Made, UpdateError, make_updates, mean_entropy
from espalier.types import Draw
from samples import sample


@dataclass
class Learner:
    """Returns results in turn; `bad` is the optimizer step (from 0) whose gradient is not finite."""

    terms: list[dict[str, float]]
    bad: int = -1
    calls: list[tuple[int, int, int, tuple[str, ...]]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def forward_backward(
        self, groups: Sequence[Group], loss: Any, state: Any, step: int, *, silent: Any, keep: Any
    ) -> StepResult:
        terms = self.terms[len(self.calls)]
        self.calls.append((step, sum(map(len, groups)), sum(map(len, silent)), tuple(keep)))
        outputs = [SampleOutputs([-1.0] * len(s), [2.0] * len(s)) for s in samples_of(groups)] if keep else []
        return StepResult(terms["a"], dict(terms), 100, 50, 10, ("peak",) if "peak" in terms else (), outputs)

    def optim_step(self, lr: float) -> dict[str, float]:
        if len(self.rates) == self.bad:
            raise FloatingPointError("gradient norm is nan")
        self.rates.append(lr)
        return {"grad_norm": float(len(self.rates))}


@dataclass(frozen=True)
class Toy(Algorithm):
    online: Online | None
    needs: tuple[Any, ...] = ()

    @property
    def traits(self) -> Traits:
        return Traits("task", needs=self.needs, online=self.online)


def made_of(learner: Any, algorithm: Algorithm, draw: Draw, *, critic: Any = None, step: int = 3) -> Made:
    return make_updates(Roles(learner, critic), algorithm, draw, {}, step=step, seed=0, lr=0.5, critic_lr=0.25)


FOUR = [{"a": 1.0, "peak": 5.0}, {"a": 2.0, "peak": 9.0, "rare": 4.0}, {"a": 4.0}, {"a": 5.0, "peak": -1.0}]


def test_numbers_are_means_over_updates_and_largest_entries() -> None:
    learner = Learner(FOUR)
    made = made_of(learner, Toy(Online(epochs=2, minibatches=2)), Draw(answers(4, 3, seed=0)))
    assert made.numbers == {"loss": 3.0, "a": 3.0, "peak": 9.0, "rare": 4.0}
    assert made.optimizers == {"grad_norm": 2.5} and learner.rates == [0.5] * 4
    assert (made.updates, made.skipped, made.ran) == (4, 0, 12)
    assert (made.tokens, made.packed, made.scored) == (400, 200, 40)
    # Step 3 makes updates number 12 to 15; what the forward says is kept in the first epoch.
    both = ("logprobs", "entropy")
    assert learner.calls == [(12, 6, 0, both), (13, 6, 0, both), (14, 6, 0, ()), (15, 6, 0, ())]


def test_one_number_stays_as_it_is_bit_for_bit() -> None:
    made = made_of(Learner([{"a": -0.0}]), Toy(None), Draw(answers(2, 1, seed=0)))
    assert str(made.numbers["a"]) == "-0.0" and made.optimizers == {"grad_norm": 1.0}


def test_streams_for_the_log_are_filled_where_nobody_did() -> None:
    groups = answers(2, 2, seed=0)
    made_of(Learner(FOUR), Toy(Online()), Draw(groups))
    assert groups[0][0].streams["old_logprobs"] == [-1.0] * len(groups[0][0]) and mean_entropy(groups) == 2.0
    groups = answers(2, 2, seed=0)
    for s in samples_of(groups):
        s.streams["old_logprobs"] = [-3.0] * len(s)
    made_of(Learner(FOUR), Toy(Online(old="sampler"), needs=("old_logprobs",)), Draw(groups))
    assert groups[0][0].streams["old_logprobs"][0] == -3.0 and groups[0][0].streams["policy_logprobs"][0] == -1.0
    said = Learner(FOUR)
    made_of(said, Toy(Online(), needs=("old_logprobs",)), Draw(answers(2, 2, seed=0)))
    assert said.calls[0][3] == (), "annotate has said it"
    offline = Learner(FOUR)
    made_of(offline, Toy(None), Draw(answers(2, 2, seed=0)))
    assert offline.calls == [(3, 4, 0, ())] and mean_entropy(answers(1, 1, seed=0)) is None


def test_a_minibatch_of_silent_groups_makes_no_update() -> None:
    learner = Learner(FOUR)
    made = made_of(
        learner, Toy(Online(minibatches=2, siblings=True)), Draw(answers(1, 2, seed=0), answers(3, 2, seed=1))
    )
    assert (made.updates, made.skipped, made.ran) == (1, 1, 2)
    assert learner.calls == [(6, 2, 2, ("logprobs", "entropy"))]
    nothing = made_of(Learner(FOUR), Toy(Online()), Draw([], answers(3, 2, seed=1)))
    assert (nothing.numbers, nothing.optimizers, nothing.skipped) == ({}, {}, 1)


@pytest.mark.parametrize("bad", [0, 2])
def test_an_update_that_fails_says_how_many_were_made(bad: int) -> None:
    with pytest.raises(UpdateError, match="gradient norm is nan") as raised:
        made_of(Learner(FOUR, bad=bad), Toy(Online(minibatches=4)), Draw(answers(4, 1, seed=0)))
    assert raised.value.made == bad and raised.value.loss == FOUR[bad]["a"] and len(raised.value.groups) == 1


def test_a_critic_has_its_own_rate_and_names() -> None:
    learner, critic = Learner([{"a": 1.0}] * 2), Learner([{"a": 3.0}] * 2)
    with pytest.raises(ValueError, match="loss and value_loss both have a term a; expected names of their own"):
        made_of(learner, Toy(Online(minibatches=2)), Draw([[sample([5], [6])], [sample([7], [8])]]), critic=critic)
    assert learner.rates == [0.5, 0.5] and critic.rates == [0.25, 0.25]


def test_a_critic_that_fails_comes_after_an_update() -> None:
    learner, critic = Learner([{"a": 1.0}]), Learner([{"b": 3.0, "a": 0.0}], bad=0)
    with pytest.raises(UpdateError) as raised:
        made_of(learner, Toy(Online()), Draw([[sample([5], [6])]]), critic=critic)
    assert raised.value.made == 1
