"""The variants of DPO, in one table: what computes them, what the help says, what is watched. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.types import Over


@dataclass(frozen=True, slots=True)
class Variant:
    """One loss of `algorithms.dpo.DPO`.

    formula: with the margin m and the scores s of that class. paper: where it is from. loss: the function of
    `losses.pairs` that computes it, and `takes` what that function is given, as `losses.pairs.PairScores` names it; a
    loss over groups takes the scores of all samples. over: what its term is divided by.
    """

    formula: str
    paper: str
    loss: str
    takes: tuple[str, ...] = ()
    over: Over = "pairs"

    @property
    def smoothed(self) -> bool:
        """Whether the share of wrong labels changes it."""
        return "smoothing" in self.takes

    @property
    def one_sided(self) -> bool:
        """Whether it reads each side's reward by itself, so that a constant in the rewards does not cancel."""
        return "rewards_P2" in self.takes


VARIANTS: dict[str, Variant] = {
    "sigmoid": Variant("-log sigma(m)", "arXiv:2305.18290", "sigmoid", ("margin_P", "smoothing")),
    "sigmoid_norm": Variant(
        "-log sigma(m) of scores averaged over tokens; beta 5",
        "arXiv:2411.15124",
        "sigmoid",
        ("mean_margin_P", "smoothing"),
    ),
    "robust": Variant(
        "sigmoid, unbiased if a share label_smoothing of the labels is flipped",
        "arXiv:2403.00409",
        "robust",
        ("margin_P", "smoothing"),
    ),
    "ipo": Variant(
        "(m / beta - 1 / (2 beta))^2; of averages over tokens with ipo_average",
        "arXiv:2310.12036",
        "ipo",
        ("difference_P", "beta"),
    ),
    "hinge": Variant("max(0, 1 - m)", "arXiv:2309.06657", "hinge", ("margin_P",)),
    "apo_zero": Variant(
        "1 - sigma(beta s_w) + sigma(beta s_l): w up, l down", "arXiv:2408.06266", "apo_zero", ("rewards_P2",)
    ),
    "apo_down": Variant(
        "sigma(beta s_w) + 1 - sigma(m): both down, l more", "arXiv:2408.06266", "apo_down", ("rewards_P2",)
    ),
    "plackett_luce": Variant(
        "-log P(whole order) of strengths beta s, over groups in place of pairs",
        "arXiv:2305.18290, A.3",
        "plackett_luce",
        over="groups",
    ),
}
