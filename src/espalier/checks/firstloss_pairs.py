"""First losses of algorithms over pairs and orders of log-probabilities, by arithmetic on plain floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from espalier.checks.plainmath import Expected, Facts, PairFacts, mean, ordered, sigma, softplus


def dpo(algorithm: Any, facts: Facts) -> dict[str, Expected] | None:
    """Every variant of DPO. With all ratios 0: ln 2; ipo (1 / (2 beta))^2; hinge, apo_zero and apo_down 1;
    plackett_luce the mean of ln K!. None for LD-DPO if what lies beyond the shorter answer is not known."""
    beta, e = algorithm.strength, algorithm.label_smoothing
    ratios: list[tuple[float, float]] = []
    for p in facts.pairs:
        pair = _ratios(algorithm, p)
        if pair is None:
            return None
        ratios.append(pair)
    bent = [(_bend(algorithm, w), _bend(algorithm, l)) for w, l in ratios]
    margins = [beta * (w - l) for w, l in bent]
    means = [w / p.len_w - l / p.len_l for (w, l), p in zip(bent, facts.pairs, strict=True)]
    gaps = means if algorithm.ipo_average else [m / beta for m in margins]
    terms: dict[str, Expected] = {}
    for name, weight in algorithm.weights.items():
        if name in ("sigmoid", "sigmoid_norm"):
            m = margins if name == "sigmoid" else [beta * x for x in means]
            x = mean([(1 - e) * softplus(-y) + e * softplus(y) for y in m])
        elif name == "robust":
            x = mean([((1 - e) * softplus(-y) - e * softplus(y)) / (1 - 2 * e) for y in margins])
        elif name == "ipo":
            x = mean([(y - 1 / (2 * beta)) ** 2 for y in gaps])
        elif name == "hinge":
            x = mean([max(0.0, 1 - y) for y in margins])
        elif name == "apo_zero":
            x = mean([1 - sigma(beta * w) + sigma(beta * l) for w, l in ratios])
        elif name == "apo_down":
            x = mean([1 + sigma(beta * w) - sigma(beta * (w - l)) for w, l in ratios])
        elif name == "plackett_luce":
            x = _orders(algorithm, facts, margins)
        else:
            return None
        terms[name] = Expected(x, weight)
    return {**terms, **_likelihood(algorithm.sft_coef, facts)}


def simpo(algorithm: Any, facts: Facts) -> dict[str, Expected]:
    """-log sigma(beta (mean_w - mean_l) - gamma)."""
    rewards = [(p.logp_w / p.len_w, p.logp_l / p.len_l) for p in facts.pairs]
    x = mean([softplus(-(algorithm.beta * (w - l) - algorithm.gamma)) for w, l in rewards])
    return {"simpo": Expected(x, 1.0), **_likelihood(algorithm.sft_coef, facts)}


def cpo(algorithm: Any, facts: Facts) -> dict[str, Expected]:
    """-log sigma(beta (logp_w - logp_l)), and the likelihood of the preferred answers."""
    x = mean([softplus(-algorithm.beta * (p.logp_w - p.logp_l)) for p in facts.pairs])
    return {"cpo": Expected(x, 1.0), **_likelihood(algorithm.sft_coef, facts)}


def orpo(algorithm: Any, facts: Facts) -> dict[str, Expected]:
    """-log sigma(log odds_w - log odds_l), and the likelihood of the preferred answers."""
    odds = [(_log_odds(p.logp_w / p.len_w), _log_odds(p.logp_l / p.len_l)) for p in facts.pairs]
    x = mean([softplus(l - w) for w, l in odds])
    return {"odds_ratio": Expected(x, algorithm.odds_coef), **_likelihood(1.0, facts)}


def _orders(algorithm: Any, facts: Facts, margins: Sequence[float]) -> float:
    """The mean over groups of what an order costs; an order of each pair if none are given."""
    if facts.orders is None:
        return mean([softplus(-y) for y in margins])
    costs = []
    for order in facts.orders:
        costs.append(ordered([(algorithm.strength * _bend(algorithm, ratio), label) for ratio, label in order]))
    return mean(costs)


def _likelihood(coef: float, facts: Facts) -> dict[str, Expected]:
    """The mean negative log-likelihood of a token of the preferred answers, if it has a weight."""
    if not coef:
        return {}
    chosen = facts.chosen
    if chosen is None:
        chosen = [(p.logp_w, p.len_w) for p in facts.pairs]
    return {"nll": Expected(-sum(logp for logp, _ in chosen) / sum(length for _, length in chosen), coef)}


def _ratios(algorithm: Any, p: PairFacts) -> tuple[float, float] | None:
    """The log-ratios of both answers, what is beyond the shorter one weighed by `ld_alpha`; None if it is unknown."""
    w, l = p.logp_w - p.ref_w, p.logp_l - p.ref_l
    alpha = algorithm.ld_alpha
    if alpha == 1 or w == 0 == l:
        return w, l
    if p.shared_w is None or p.shared_l is None:
        return None
    return p.shared_w + alpha * (w - p.shared_w), p.shared_l + alpha * (l - p.shared_l)


def _bend(algorithm: Any, ratio: float) -> float:
    """f'(u) at u = exp(ratio): arXiv:2309.16240, up to a constant."""
    bends: dict[str, Callable[[float], float]] = {
        "reverse_kl": lambda r: r,
        "js": lambda r: math.log(2) + r - softplus(r),
        "alpha": lambda r: (1 - math.exp(-algorithm.divergence_alpha * r)) / algorithm.divergence_alpha,
    }
    return bends[algorithm.f_divergence](ratio)


def _log_odds(mean_logp: float) -> float:
    """log(p / (1 - p)) of p = exp(mean_logp)."""
    return mean_logp - math.log(-math.expm1(mean_logp))
