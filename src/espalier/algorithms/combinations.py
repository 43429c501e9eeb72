"""Settings that cannot be had together: each is refused with the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from espalier.algorithms.dimensions import total_weights
from espalier.errors import ConfigError
from espalier.losses.variants import VARIANTS

if TYPE_CHECKING:
    from espalier.algorithms.dpo import DPO
    from espalier.algorithms.reward import Reward


def check_dpo(dpo: DPO) -> None:
    """Raise ConfigError if one of its settings changes nothing beside the others, or has no meaning there."""
    names = dpo.weights.keys()
    smoothed = [name for name, variant in VARIANTS.items() if variant.smoothed]
    one_sided = [name for name, variant in VARIANTS.items() if variant.one_sided]
    if dpo.label_smoothing and not names & set(smoothed):
        raise ConfigError(f"label_smoothing is for {', '.join(smoothed)} only; drop it")
    if "robust" in names and not dpo.label_smoothing:
        raise ConfigError("robust needs label_smoothing, the share of flipped labels; give it")
    if dpo.ipo_average and "ipo" not in names:
        raise ConfigError("ipo_average is on, but ipo is not among the variants; drop it")
    if dpo.f_divergence != "reverse_kl" and names & set(one_sided):
        raise ConfigError(
            f"f_divergence cannot be combined with {' or '.join(one_sided)}: they read the reward of each side, and "
            "under an f-divergence rewards are known up to a constant that cancels in a pair only; drop one"
        )
    if dpo.divergence_alpha != 0.5 and dpo.f_divergence != "alpha":
        raise ConfigError(
            f"divergence_alpha is given, but f_divergence is {dpo.f_divergence}; set f_divergence to alpha, or drop "
            "divergence_alpha"
        )
    if dpo.ld_alpha != 1 and "plackett_luce" in names:
        raise ConfigError(
            "ld_alpha cuts at the length that two answers share, and plackett_luce compares more; drop one"
        )
    if dpo.sync_alpha != 0.6 and not dpo.sync_every:
        raise ConfigError("sync_alpha is given, but sync_every is 0; give both or none")


def check_reward(reward: Reward) -> None:
    """Raise ConfigError if one of its settings changes nothing beside the others, or has no meaning there."""
    total_weights(reward.dimensions)
    ties = reward.ties != "none"
    if reward.objective != "bradley_terry":
        for name, given in (
            ("margin", reward.margin > 0),
            ("label_smoothing", reward.label_smoothing > 0),
            ("ties", ties),
            ("weighting pairs", reward.weighting == "pairs"),
        ):
            if given:
                raise ConfigError(f"{name} is for bradley_terry; drop it")
    if reward.tie_share != 1 / 3 and not ties:
        raise ConfigError("tie_share is given, but ties is none; give ties, or drop it")
    if ties and reward.margin:
        raise ConfigError("margin and ties are both given, and a tie has no margin; drop one")
    if ties and reward.label_smoothing:
        raise ConfigError("label_smoothing and ties are both given, and only wins flip; drop one")
    if ties and reward.weighting == "pairs":
        raise ConfigError("weighting pairs counts no ties; keep weighting groups, or drop ties")
    if reward.objective == "pointwise" and reward.centering:
        raise ConfigError("centering is about pairs, and pointwise compares none; drop it")
    if reward.objective == "pointwise" and reward.pointwise_coef:
        raise ConfigError("pointwise_coef weighs the pointwise term beside comparisons, and there are none; drop it")
    if reward.grade_low >= reward.grade_high:
        raise ConfigError("grade_low is not below grade_high; give the ends of the scale that people used")
    if (reward.grade_low, reward.grade_high) != (1, 10) and not reward.learns_grades:
        raise ConfigError(
            "grade_low and grade_high are the ends of a scale that nothing learns from; give objective pointwise or "
            "pointwise_coef, or drop them"
        )
    if reward.calibrate_scale and reward.calibrate_on == "none":
        raise ConfigError("calibrate_scale is given, but calibrate_on is none; set calibrate_on, too")
