"""Rejection sampling: what is kept, and that it is fine-tuning on it."""

import pytest
import torch
from torch import Tensor

from espalier.algorithms.raft import RAFT
from espalier.algorithms.sft import SFT
from espalier.engines.learner import TorchLearner
from espalier.outcomes import Outcome
from espalier.types import Batch, Outputs, Sample, Term
from learners import learner
from samples import Groups, sample


def rolled(*scores: float) -> list[Sample]:
    return [sample(range(5, 25), range(30 + n, 33 + 2 * n), reward=score, key=n) for n, score in enumerate(scores)]


def kept(groups: Groups) -> list[list[bool]]:
    return [[any(s.weights) for s in group] for group in groups]


def test_one_answer_of_each_prompt_is_kept() -> None:
    groups = [rolled(0.0, 1.0, 0.5), rolled(0.0, 0.0)]
    assert RAFT().credit(groups, {"x": 1.0}) == {"x": 1.0}
    assert kept(groups) == [[False, True, False], [False, False]]


def test_the_top_of_a_prompt_and_of_the_step() -> None:
    groups = [rolled(0.0, 1.0, 0.5, 0.9, 0.2), rolled(0.6, 0.1)]
    RAFT(select="top", top_share=0.4).credit(groups, {})
    assert kept(groups) == [[False, True, False, True, False], [True, False]]
    groups = [rolled(0.0, 1.0, 0.5, 0.9, 0.2), rolled(0.6, 0.1)]
    RAFT(select="batch", top_share=0.5, margin=0.4).credit(groups, {})
    assert kept(groups) == [[False, True, False, True, False], [False, False]]


def test_cut_answers_and_those_that_do_not_qualify_are_passed_over() -> None:
    group = rolled(0.9, 0.8, 0.7, 0.0)
    group[0].stop = "length"
    group[1].outcome = Outcome(0.8, invalid="no answer tag")
    RAFT(mask_cut=True).credit([group], {})
    assert kept([group]) == [[False, False, True, False]]


def gradient(made: TorchLearner, algorithm: SFT | RAFT, groups: Groups) -> tuple[float, dict[str, Tensor]]:
    def loss(outputs: Outputs, batch: Batch) -> dict[str, Term]:
        return algorithm.loss(outputs, batch)

    result = made.forward_backward(groups, loss, {}, 0)
    return result.loss, {n: p.grad for n, p in made.optimizer.parameters().items() if p.grad is not None}


@pytest.mark.parametrize("given", [False, True])
def test_it_is_fine_tuning_on_what_is_kept(given: bool) -> None:
    """Value and gradient, with given conversations as a part of its own, too (fine-tuning's replay)."""
    groups, alone = [rolled(0.0, 1.0, 0.5), rolled(1.0, 0.0)], [[rolled(0.0, 1.0)[1]], [rolled(1.0)[0]]]
    RAFT().credit(groups, {})
    if given:
        groups.append([sample([7, 8], [9, 10, 11], part="sft")])
        alone.append([sample([7, 8], [9, 10, 11], part="replay")])
    loss, slopes = gradient(learner(linear=True), RAFT(sft_coef=0.3), groups)
    want, wanted = gradient(learner(linear=True), SFT(replay_coef=0.3), alone)
    assert loss == pytest.approx(want, abs=1e-12)
    assert set(slopes) == set(wanted)
    for name, slope in slopes.items():
        assert torch.allclose(slope, wanted[name], atol=1e-12), name
