"""What the first loss of a preference run must be, by arithmetic on plain floats.

Written from the papers, and without a line of `losses/` or `algorithms/`: it recognises an algorithm by the name of its
class and reads its hyper-parameters, so that the two can disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class PairFacts(NamedTuple):
    """What one pair says before the first step: summed log-probabilities of the preferred answer w and the other one l
    under policy and reference, and their trained tokens. For `Reward`, logp_w and logp_l are the two total scores."""

    logp_w: float
    logp_l: float
    ref_w: float = 0.0
    ref_l: float = 0.0
    len_w: float = 1.0
    len_l: float = 1.0


class Expected(NamedTuple):
    """A term's value, divided by its total, and its coefficient in the loss."""

    value: float
    coef: float


def expected_first_loss(
    algorithm: Any,
    pairs: Sequence[tuple[float, float, float, float, float, float]],
    *,
    groups: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
    moving: float = 0.0,
) -> float | None:
    """The loss of one step over `pairs`, each (logp_w, logp_l, ref_w, ref_l, len_w, len_l): see `PairFacts`.

    groups: the group of every pair, if groups have equal weight (`Reward`); None is one pair a group. sizes: the number
    of ranked answers of every group, for plackett_luce at ratios of 0, which costs ln K! there; None is two. moving:
    KTO's reference point and BCO's delta, 0 before the first step.

    For KTO and BCO the w are good answers and the l bad ones; a side of length 0 is left out. Terms on the likelihood
    of preferred answers count every pair's w once: with several pairs a prompt they differ from the run's.

    None if pairs do not determine it: LD-DPO with ratios other than 0, reward models with margins, ties, grades or
    whole orders, and algorithms that have no entry here. Raises ValueError without pairs.

    By hand: one pair (-4, -6, -5, -5, 2, 3). DPO, beta 0.1: margin 0.1 * (1 + 1) = 0.2, loss ln(1 + e^-0.2) = 0.5981.
    SimPO, beta 2, gamma 1: 2 * (-2 + 2) - 1 = -1, loss ln(1 + e) = 1.3133. ORPO, odds_coef 0.1: both means -2, so 0.1
    ln 2 + 4 / 2 = 2.0693. CPO, beta 0.1: ln(1 + e^-0.2) + 2 = 2.5981.
    """
    terms = expected_terms(algorithm, pairs, groups=groups, sizes=sizes, moving=moving)
    return None if terms is None else sum(term.value * term.coef for term in terms.values())


def expected_terms(
    algorithm: Any,
    pairs: Sequence[tuple[float, float, float, float, float, float]],
    *,
    groups: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
    moving: float = 0.0,
) -> dict[str, Expected] | None:
    """The terms of `expected_first_loss` by the names under which a run reports them."""
    facts = [PairFacts(*p) for p in pairs]
    if not facts:
        raise ValueError("got no pairs, expected one or more")
    match type(algorithm).__name__:
        case "DPO":
            return _dpo(algorithm, facts, sizes)
        case "SimPO":
            rewards = [(p.logp_w / p.len_w, p.logp_l / p.len_l) for p in facts]
            x = _mean([_softplus(-(algorithm.beta * (w - l) - algorithm.gamma)) for w, l in rewards])
            return {"simpo": Expected(x, 1.0), **_likelihood(algorithm.sft_coef, facts)}
        case "CPO":
            x = _mean([_softplus(-algorithm.beta * (p.logp_w - p.logp_l)) for p in facts])
            return {"cpo": Expected(x, 1.0), **_likelihood(algorithm.sft_coef, facts)}
        case "ORPO":
            odds = [(_log_odds(p.logp_w / p.len_w), _log_odds(p.logp_l / p.len_l)) for p in facts]
            x = _mean([_softplus(l - w) for w, l in odds])
            return {"odds_ratio": Expected(x, algorithm.odds_coef), **_likelihood(1.0, facts)}
        case "KTO":
            return {"kto": Expected(_kto(algorithm, facts, moving), 1.0)}
        case "BCO":
            return {"bco": Expected(_bco(algorithm, facts, moving), 1.0)}
        case "Reward":
            return _reward(algorithm, facts, groups)
    return None


def _dpo(algorithm: Any, facts: Sequence[PairFacts], sizes: Sequence[int] | None) -> dict[str, Expected] | None:
    """Every variant of DPO. With all ratios 0: ln 2; ipo (1 / (2 beta))^2; hinge, apo_zero and apo_down 1;
    plackett_luce the mean of ln K!."""
    beta, e = algorithm.strength, algorithm.label_smoothing
    ratios = [_ratios(p) for p in facts]
    still = all(w == 0 == l for w, l in ratios)
    if algorithm.ld_alpha != 1 and not still:
        return None
    bent = [(_bend(algorithm, w), _bend(algorithm, l)) for w, l in ratios]
    margins = [beta * (w - l) for w, l in bent]
    means = [w / p.len_w - l / p.len_l for (w, l), p in zip(bent, facts, strict=True)]
    gaps = means if algorithm.ipo_average else [m / beta for m in margins]
    terms: dict[str, Expected] = {}
    for name, weight in algorithm.weights.items():
        if name in ("sigmoid", "sigmoid_norm"):
            m = margins if name == "sigmoid" else [beta * x for x in means]
            x = _mean([(1 - e) * _softplus(-y) + e * _softplus(y) for y in m])
        elif name == "robust":
            x = _mean([((1 - e) * _softplus(-y) - e * _softplus(y)) / (1 - 2 * e) for y in margins])
        elif name == "ipo":
            x = _mean([(y - 1 / (2 * beta)) ** 2 for y in gaps])
        elif name == "hinge":
            x = _mean([max(0.0, 1 - y) for y in margins])
        elif name == "apo_zero":
            x = _mean([1 - _sigma(beta * w) + _sigma(beta * l) for w, l in ratios])
        elif name == "apo_down":
            x = _mean([1 + _sigma(beta * w) - _sigma(beta * (w - l)) for w, l in ratios])
        elif name == "plackett_luce" and (sizes is None or still):
            x = _mean([_softplus(-y) for y in margins] if sizes is None else [math.lgamma(k + 1) for k in sizes])
        else:
            return None
        terms[name] = Expected(x, weight)
    return {**terms, **_likelihood(algorithm.sft_coef, facts)}


def _kto(algorithm: Any, facts: Sequence[PairFacts], kl: float) -> float:
    """Mean over answers of lambda (1 - sigma(+-beta (r - kl))): at r = kl = 0 half of the mean weight."""
    terms = []
    for ratio, good in _answers(facts):
        lead = algorithm.beta * (ratio - kl)
        terms.append(
            algorithm.desirable_weight * (1 - _sigma(lead)) if good else algorithm.undesirable_weight * _sigma(lead)
        )
    return _mean(terms)


def _bco(algorithm: Any, facts: Sequence[PairFacts], delta: float) -> float:
    """Mean over answers of the cross-entropy of the logit beta r - delta: ln 2 at r = delta = 0."""
    leads = [(algorithm.beta * ratio - delta, good) for ratio, good in _answers(facts)]
    return _mean([_softplus(-lead if good else lead) for lead, good in leads])


def _answers(facts: Sequence[PairFacts]) -> list[tuple[float, bool]]:
    """Log-ratio of every answer and whether it is good, without the sides of length 0."""
    sides = [((p.logp_w - p.ref_w, True, p.len_w), (p.logp_l - p.ref_l, False, p.len_l)) for p in facts]
    return [(ratio, good) for pair in sides for ratio, good, length in pair if length]


def _reward(algorithm: Any, facts: Sequence[PairFacts], groups: Sequence[int] | None) -> dict[str, Expected] | None:
    """Bradley-Terry over groups (each the mean of its pairs) or over pairs, and the pull to a mean of 0."""
    other = algorithm.margin or algorithm.pointwise_coef or algorithm.ties != "none"
    if algorithm.objective != "bradley_terry" or other:
        return None
    e = algorithm.label_smoothing
    group_of = list(range(len(facts))) if groups is None or algorithm.weighting == "pairs" else list(groups)

    def over(values: Sequence[float]) -> float:
        return _mean(
            [_mean([v for v, at in zip(values, group_of, strict=True) if at == g]) for g in sorted(set(group_of))]
        )

    gaps = [p.logp_w - p.logp_l for p in facts]
    terms = {"bradley_terry": Expected(over([(1 - e) * _softplus(-d) + e * _softplus(d) for d in gaps]), 1.0)}
    if algorithm.centering:
        terms["centering"] = Expected(over([(p.logp_w + p.logp_l) ** 2 for p in facts]), algorithm.centering)
    return terms


def _likelihood(coef: float, facts: Sequence[PairFacts]) -> dict[str, Expected]:
    """The mean negative log-likelihood of a token of the preferred answers, if it has a weight."""
    if not coef:
        return {}
    return {"nll": Expected(-sum(p.logp_w for p in facts) / sum(p.len_w for p in facts), coef)}


def _ratios(p: PairFacts) -> tuple[float, float]:
    return p.logp_w - p.ref_w, p.logp_l - p.ref_l


def _bend(algorithm: Any, ratio: float) -> float:
    """f'(u) at u = exp(ratio): arXiv:2309.16240, up to a constant."""
    bends: dict[str, Callable[[float], float]] = {
        "reverse_kl": lambda r: r,
        "js": lambda r: math.log(2) + r - _softplus(r),
        "alpha": lambda r: (1 - math.exp(-algorithm.divergence_alpha * r)) / algorithm.divergence_alpha,
    }
    return bends[algorithm.f_divergence](ratio)


def _log_odds(mean: float) -> float:
    """log(p / (1 - p)) of p = exp(mean)."""
    return mean - math.log(-math.expm1(mean))


def _softplus(x: float) -> float:
    """log(1 + exp(x)), which is -log sigma(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _sigma(x: float) -> float:
    return math.exp(-_softplus(-x))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
