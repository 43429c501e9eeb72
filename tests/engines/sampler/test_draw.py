"""Tokens from logits: what is kept, which token a uniform number gives, and its log-probability."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from drawing import at
from espalier.engines.protocols import SamplingParams
from espalier.engines.sampler.draw import counter_uniform, draw, inverse_cdf, keep, penalise

ALMOST_ONE = torch.tensor([1 - 2.0**-24, 1 - 2.0**-41, 0.0], dtype=torch.float64)


def plain(logits: torch.Tensor, params: SamplingParams) -> tuple[list[float], float]:
    """The kept distribution of one row and its mass, token by token from the definition."""
    p = (logits.double() / params.temperature).softmax(-1).tolist()
    order = sorted(range(len(p)), key=lambda v: -p[v])
    if params.top_k:
        order = order[: params.top_k]
    whole, total, kept = sum(p[v] for v in order), 0.0, []
    for v in order:
        if kept and total >= params.top_p * whole:
            break
        kept.append(v)
        total += p[v]
    kept = [v for v in kept if p[v] >= params.min_p * p[order[0]]]
    mass = sum(p[v] for v in kept)
    return [p[v] / mass if v in kept else 0.0 for v in range(len(p))], mass


def test_inverse_cdf_by_hand() -> None:
    e = torch.tensor([[0.2, 0.3, 0.0, 0.5]] * 5)
    u = torch.tensor([0.0, 0.19, 0.21, 0.51, 1 - 2.0**-41], dtype=torch.float64)
    tokens, total = inverse_cdf(e, u)
    assert tokens.tolist() == [0, 0, 1, 3, 3] and total.tolist() == pytest.approx([1.0] * 5)


@pytest.mark.parametrize("size", [4, 128, 300, 1024])
def test_inverse_cdf_is_the_plain_one_over_any_number_of_blocks(size: int) -> None:
    e = torch.rand(64, size, generator=torch.Generator().manual_seed(size)) ** 8
    e[:, ::3] = 0
    u = torch.from_numpy(counter_uniform(5, np.arange(64)))
    tokens, total = inverse_cdf(e, u)
    cumulative = e.double().cumsum(-1)
    assert total.tolist() == pytest.approx(cumulative[:, -1].tolist(), rel=1e-6)
    expected = torch.searchsorted(cumulative, (u * cumulative[:, -1])[:, None], right=True)[:, 0]
    assert tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 0.999}])
@pytest.mark.parametrize("place", [0, 127, 128, 500, 899])
def test_a_token_that_is_left_out_is_never_drawn_whatever_u_is(fields: dict[str, float], place: int) -> None:
    logits = torch.randn(3, 900, generator=torch.Generator().manual_seed(place))
    logits[:, place] = 9.0
    tokens, logprobs, mass = draw(logits.clone(), at(1.0, **fields), ALMOST_ONE)
    assert tokens.tolist() == [place] * 3 and logprobs.tolist() == [0.0] * 3
    assert mass is not None and mass.tolist() == pytest.approx(logits.double().softmax(-1)[:, place].tolist())


def test_a_token_of_probability_0_is_never_drawn_whatever_u_is() -> None:
    """Zeros at both ends and whole blocks of them, sums that float32 rounds."""
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(1)) * 3
    logits[:, :200] = logits[:, 640:] = -torch.inf
    logits[:, 400:420] = -200.0
    tokens, logprobs, _ = draw(logits.clone(), at(1.0), ALMOST_ONE)
    assert tokens.tolist() == [639, 639, 200]
    assert logprobs.tolist() == pytest.approx(
        [float(x[t]) for x, t in zip(logits.log_softmax(-1), tokens, strict=True)]
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.1},
        {"top_k": 20, "top_p": 0.8},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.2},
        {"top_k": 5000},
        {"top_p": 0.999},
    ],
)
def test_what_is_kept_is_what_the_definition_keeps(fields: dict[str, float]) -> None:
    params = at(0.7, **fields)
    logits = torch.randn(16, 700, generator=torch.Generator().manual_seed(2))
    u = torch.from_numpy(counter_uniform(1, np.arange(16)))
    tokens, logprobs, mass = draw(logits.clone(), params, u)
    for i in range(16):
        p, kept = plain(logits[i], params)
        expected = torch.tensor(p).double()
        cumulative = expected.cumsum(-1)
        assert int(tokens[i]) == int(torch.searchsorted(cumulative, u[i] * cumulative[-1], right=True))
        assert float(logprobs[i]) == pytest.approx(np.log(p[tokens[i]]), abs=1e-5)
        if fields:
            assert mass is not None and float(mass[i]) == pytest.approx(kept, rel=1e-5)
            # With the mass it is the log-probability of the whole distribution.
            whole = (logits[i] / 0.7).log_softmax(-1)[tokens[i]]
            assert float(logprobs[i]) + np.log(float(mass[i])) == pytest.approx(float(whole), abs=1e-5)


def test_a_flat_distribution_needs_more_than_the_first_candidates() -> None:
    e = torch.full((2, 4096), 0.5)
    e[:, 7] = 1.0
    e += torch.linspace(0, 1e-3, 4096)
    keep(e, at(1.0, top_p=0.5))
    assert ((e > 0).sum(-1) - 2048).abs().max() < 8 and e[0, 7] > 0


def test_penalties_are_transformers_own() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 2, 3, 2], [4, 4, 4, 4], [49, 0, 1, 7]])
    expected = RepetitionPenaltyLogitsProcessor(1.7)(ids, logits.clone())
    seen = torch.zeros(3, 50, dtype=torch.bool).scatter_(1, ids, True)
    penalise(logits, seen, 1.7)
    assert torch.equal(logits, expected)


def test_tokens_follow_the_distribution() -> None:
    logits = torch.randn(1, 128, generator=torch.Generator().manual_seed(3)).expand(4000, -1)
    u = torch.from_numpy(counter_uniform(7, np.arange(4000)))
    tokens, _, _ = draw(logits.clone(), at(0.8), u)
    counts = torch.bincount(tokens, minlength=128)
    p = (logits[0] / 0.8).softmax(-1)
    chi2 = float(((counts - 4000 * p) ** 2 / (4000 * p)).sum())
    assert 70 < chi2 < 200  # 127 degrees of freedom: mean 127, standard deviation 16


def test_counter_uniform_is_uniform_and_keyed_by_every_counter() -> None:
    u = counter_uniform(0, np.arange(100_000), 0, 0)
    assert u.min() > 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.004 and abs(u.var() - 1 / 12) < 0.002  # 4 standard errors
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.013
    keys = [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2), (3, 1, 2, 0), (0, 1, -2, 3)]
    values = sorted(float(counter_uniform(*key)) for key in keys)
    assert all(b - a > 1e-6 for a, b in pairwise(values))
    assert float(counter_uniform(*keys[0])) == float(counter_uniform(*keys[0]))
