"""KTO and BCO over a policy of four answers, every label enumerated: gradients without autograd, and their optima."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from espalier.algorithms.bco import BCO
from espalier.algorithms.kto import KTO
from espalier.forest.pack import pack, totals
from espalier.losses import unpaired
from espalier.losses.ops import normalise
from espalier.types import Batch, Outputs, Sample
from samples import sample

WIDE = torch.float64
LABELS = [(8, 2), (5, 5), (2, 6), (1, 3)]  # how often each answer is called good and bad
REFERENCE = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=WIDE)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def every_label(state: dict[str, float]) -> tuple[Batch, Tensor]:
    """A batch with a sample for every label of every answer (one token each), and which answer each entry is."""
    group: list[Sample] = []
    for answer, (good, bad) in enumerate(LABELS):
        for label in [1.0] * good + [0.0] * bad:
            s = sample([1, 2], [10 + answer], label=label)
            s.streams["ref_logprobs"] = [0.0, 0.0, 0.0]
            group.append(s)
    batch = pack([group], totals([group]), state=state)
    answers = batch.targets_U[batch.score] - 10
    batch.streams["ref_logprobs"] = REFERENCE.log()[answers]
    return batch, answers


def value(algorithm: Any, logits: Tensor, batch: Batch, answers: Tensor) -> Tensor:
    terms = algorithm.loss(Outputs(logits.log_softmax(0)[answers]), batch)
    return normalise(terms, batch.totals)[0]


def by_hand(slopes: list[tuple[float, float]], policy: list[float]) -> list[float]:
    """d L / d logit_a = sum_y (n_good slope_good + n_bad slope_bad)_y ([a = y] - pi_a) / S."""
    count = sum(good + bad for good, bad in LABELS)
    pull = [(good * up + bad * down) / count for (good, bad), (up, down) in zip(LABELS, slopes, strict=True)]
    return [pull[a] - sum(pull) * policy[a] for a in range(len(LABELS))]


@pytest.mark.parametrize("z", [0.0, 0.8])
def test_kto_gradient_without_autograd(z: float) -> None:
    logits = torch.tensor([0.3, -0.7, 1.1, 0.2], dtype=WIDE, requires_grad=True)
    beta, good, bad = 0.7, 1.3, 0.6
    value(KTO(beta=beta, desirable_weight=good, undesirable_weight=bad), logits, *every_label({"kl": z})).backward()
    policy = logits.detach().softmax(0)
    leads = [sigma(beta * (x - z)) for x in (policy / REFERENCE).log().tolist()]
    expected = by_hand([(-good * beta * p * (1 - p), bad * beta * p * (1 - p)) for p in leads], policy.tolist())
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("delta", [0.0, -0.4])
def test_bco_gradient_without_autograd(delta: float) -> None:
    logits, beta = torch.tensor([0.3, -0.7, 1.1, 0.2], dtype=WIDE, requires_grad=True), 0.7
    value(BCO(beta=beta), logits, *every_label({"delta": delta})).backward()
    policy = logits.detach().softmax(0)
    leads = [sigma(beta * x - delta) for x in (policy / REFERENCE).log().tolist()]
    expected = by_hand([(beta * (p - 1), beta * p) for p in leads], policy.tolist())
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx(expected, abs=1e-10)


def test_bco_ends_where_the_logit_is_that_of_the_labels() -> None:
    """beta r - delta = logit(share of good labels), so pi* ~ pi_ref exp(logit / beta), at the delta that norms it."""
    beta = 2.0
    tilt = REFERENCE * torch.tensor([good / bad for good, bad in LABELS], dtype=WIDE) ** (1 / beta)
    target, delta = tilt / tilt.sum(), -beta * math.log(tilt.sum().item())
    batch, answers = every_label({"delta": delta})

    at_rest = target.log().requires_grad_()
    value(BCO(beta=beta), at_rest, batch, answers).backward()
    assert at_rest.grad is not None
    assert at_rest.grad.abs().max().item() <= 1e-10

    logits = REFERENCE.log().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = value(BCO(beta=beta), logits, batch, answers)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    optimizer.step(closure)
    assert 0.5 * (logits.detach().softmax(0) - target).abs().sum().item() <= 0.005


def test_metrics_are_sums_over_a_side_divided_by_all_answers() -> None:
    """Four answers with labels 1, 0, 0, 1: mean log-probabilities (-2 - 3) / 2 of good, (-4 - 6) / 2 of bad ones."""
    said, good = torch.tensor([-2.0, -4.0, -6.0, -3.0]), torch.tensor([True, False, False, True])
    terms = unpaired.metrics(torch.tensor([1.0, 0.5, -1.0, 2.0]), said, good)
    found = {name: term.x.sum().item() / 4 for name, term in terms.items()}
    assert found["logprobs_good"] / found["good"] == -2.5 and found["logprobs_bad"] / (1 - found["good"]) == -5
    assert (found["rewards_good"], found["rewards_bad"], found["accuracy"]) == (0.75, -0.125, 0.75)


def test_kto_raises_an_answer_exactly_where_good_outweighs_bad() -> None:
    """The slope of an answer's log-ratio is beta p (1 - p) (lambda_U n_bad - lambda_D n_good) / S: 0 where both sides
    weigh alike, as for 5 and 5 at equal weights, and for 8 and 2 where a bad one weighs four times as much."""
    for weights, still in (((1.0, 1.0), 1), ((1.0, 4.0), 0)):
        batch, answers = every_label({"kl": 0.2})
        algorithm = KTO(desirable_weight=weights[0], undesirable_weight=weights[1])
        logprobs = REFERENCE.log()[answers].requires_grad_()
        normalise(algorithm.loss(Outputs(logprobs), batch), batch.totals)[0].backward()
        assert logprobs.grad is not None
        slopes = [logprobs.grad[answers == a].sum().item() for a in range(4)]
        assert slopes[still] == pytest.approx(0.0, abs=1e-15)
        for a, (good, bad) in enumerate(LABELS):
            if a != still:
                assert math.copysign(1, slopes[a]) == math.copysign(1, weights[1] * bad - weights[0] * good)
