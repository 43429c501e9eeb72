"""Sums, denominators and losses by hand."""

import pytest
import torch

from espalier.losses.ops import normalise, peaks
from espalier.types import Term


def test_each_term_is_divided_by_its_own_total() -> None:
    terms = {
        "nll": Term(torch.tensor([1.0, 3.0]), "tokens"),
        "replay": Term(torch.tensor([5.0]), "tokens", "replay", 0.1),
        "count": Term(torch.tensor([7.0]), "sequences", "main", 0.0),
    }
    totals = {("tokens", "main"): 8.0, ("tokens", "replay"): 2.0, ("sequences", "main"): 2.0}
    loss, shares = normalise(terms, totals)
    assert loss.item() == pytest.approx(4 / 8 + 0.1 * 5 / 2)
    assert {name: share.item() for name, share in shares.items()} == {"nll": 0.5, "replay": 2.5, "count": 3.5}


def test_shares_of_microbatches_add_up_to_the_step() -> None:
    x = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    totals = {("tokens", "main"): 3.0}
    whole, _ = normalise({"a": Term(x, "tokens")}, totals)
    first, _ = normalise({"a": Term(x[:1], "tokens")}, totals)
    rest, _ = normalise({"a": Term(x[1:], "tokens")}, totals)
    assert (first + rest).item() == pytest.approx(whole.item()) == pytest.approx(7 / 3)


def test_a_metric_carries_no_gradient() -> None:
    x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    loss, _ = normalise({"a": Term(x, "tokens"), "b": Term(y, "tokens", coef=0.0)}, {("tokens", "main"): 4.0})
    loss.backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.25, 0.25]
    assert y.grad is None


def test_a_part_without_weight_is_zero_and_an_unknown_one_is_refused() -> None:
    x = torch.zeros(1, requires_grad=True)
    loss, shares = normalise({"a": Term(x, "tokens")}, {("tokens", "main"): 0.0})
    loss.backward()
    assert (loss.item(), shares["a"].item(), x.grad) == (0.0, 0.0, torch.zeros(1))
    terms = {"a": Term(x, "tokens"), "right": Term(x, "tokens", coef=0.0)}
    assert normalise(terms, {("tokens", "main"): 0.0})[1].keys() == {"a"}, "there is no share of nothing"
    with pytest.raises(KeyError, match="tokens/replay; expected one of tokens/main"):
        normalise({"a": Term(x, "tokens", "replay")}, {("tokens", "main"): 1.0})
    loss, _ = normalise({"a": Term(x + 3, "tokens", coef=0.0)}, {("tokens", "main"): 1.0})
    loss.backward()  # a step of metrics alone trains nothing
    assert (loss.item(), x.grad) == (0.0, torch.zeros(1))


def test_metrics_are_divided_by_what_ran_and_trained_terms_by_all() -> None:
    x = torch.tensor([1.0, 3.0])
    terms = {"policy": Term(x, "tokens"), "ratio": Term(x, "tokens", coef=0.0), "none": Term(x, "pairs", coef=0.0)}
    totals = {("tokens", "main"): 8.0, ("pairs", "main"): 2.0}
    loss, shares = normalise(terms, totals, {("tokens", "main"): 2.0})
    assert loss.item() == 0.5
    assert {name: share.item() for name, share in shares.items()} == {"policy": 0.5, "ratio": 2.0}


def test_a_term_over_max_is_no_sum_and_has_no_gradient() -> None:
    x = torch.tensor([0.5, 3.0, 1.0], requires_grad=True)
    terms = {
        "a": Term(x, "tokens"),
        "ratio_max": Term(x, "max", coef=0.0),
        "none": Term(x[:0], "max", coef=0.0),
    }
    loss, shares = normalise(terms, {("tokens", "main"): 3.0})
    assert set(shares) == {"a"} and loss.item() == pytest.approx(1.5)
    assert {name: peak.item() for name, peak in peaks(terms).items()} == {"ratio_max": 3.0}
    with pytest.raises(ValueError, match="'a' is over max and has coef 1; expected 0"):
        normalise({"a": Term(x, "max")}, {})
