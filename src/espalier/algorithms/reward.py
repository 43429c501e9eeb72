"""Reward models."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from espalier.algorithms import combinations
from espalier.algorithms.dimensions import check_grades, total_weights
from espalier.algorithms.traits import Algorithm, Calibration, Grades, Traits
from espalier.config.fields import Names, NotNegative, Number, section
from espalier.types import Batch, Outputs, Term, Wants


@section
class Reward(Algorithm):
    """Scores whole answers, so that preferred ones score higher. With s = sum_k w_k s_k / sum_k |w_k| over dimensions:

        bradley_terry    1/G sum_groups 1/|pairs| sum_pairs -log sigma(s_w - s_l - margin |label_w - label_l|)
        plackett_luce    1/G sum_groups -log P(order of its labels)
        pointwise        1/R sum_answers 1/|known| sum_k (s_k - grade_k)^2, grades mapped to [-1, 1]

    plus centering times (s_w + s_l)^2, weighted as comparisons are, plus pointwise_coef times the pointwise term.
    Ouyang et al., arXiv:2203.02155, section 3.5 (all K answers of a prompt in one element, K = 4..9). With ties, losses
    are those of Rao and Kupper 1967 or Davidson 1970, and a tie counts as a pair does. plackett_luce knows ties by
    itself (losses/lists.py). One epoch at a rate of 1e-5 is common: more epochs overfit.
    """

    objective: Literal["bradley_terry", "plackett_luce", "pointwise"] = "bradley_terry"
    """What the model learns from: pairs, whole orders, or the scores that people gave."""
    weighting: Literal["groups", "pairs"] = "groups"
    """What has equal weight: every prompt, whatever the number of its pairs, or every pair."""
    margin: NotNegative = 0.0
    """Lead of the preferred score per unit of label difference (score points, or ranks without scores); 0 is none."""
    label_smoothing: Annotated[Number, Ge(0), Lt(0.5)] = 0.0
    """Share of preferences taken to be wrong."""
    ties: Literal["none", "rao_kupper", "davidson"] = "none"
    """Model of ties; none leaves them out of bradley_terry."""
    tie_share: Annotated[Number, Gt(0), Lt(1)] = 1 / 3
    """Probability of a tie between answers of equal scores."""
    centering: NotNegative = 0.0
    """Weight of a penalty that keeps the mean of a pair's scores at 0 (arXiv:2312.09244, there 0.01)."""
    pointwise_coef: NotNegative = 0.0
    """Weight of the pointwise term beside comparisons, if answers have grades."""
    grade_low: Number = 1.0
    """The worst grade people could give: -1 on the scale of scores."""
    grade_high: Number = 10.0
    """The best grade people could give: +1 on the scale of scores."""
    dimensions: Names = ()
    """Score dimensions, in the order of the grades, each NAME or NAME=WEIGHT in the total; empty is a single score."""
    calibrate_on: Literal["chosen", "all", "none"] = "chosen"
    """After training, shift scores so that these answers have mean 0: preferred ones, all, or none."""
    calibrate_scale: bool = False
    """After training, scale scores to a standard deviation of 1 over the same answers."""

    def __post_init__(self) -> None:
        combinations.check_reward(self)

    @property
    def learns_grades(self) -> bool:
        """Whether a term reads the scores that people gave."""
        return self.objective == "pointwise" or self.pointwise_coef > 0

    @property
    def traits(self) -> Traits:
        wants: Wants = "pairs"
        if self.objective == "pointwise":
            wants = "grades"
        elif self.ties != "none":
            wants = "comparisons"
        return Traits(
            "ranking",
            wants,
            whole=True,
            orders=self.objective == "plackett_luce",
            says="reads",
            dimensions=total_weights(self.dimensions),
            grades=Grades(self.grade_low, self.grade_high) if self.learns_grades else None,
            calibration=None if self.calibrate_on == "none" else Calibration(self.calibrate_on, self.calibrate_scale),
        )

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """A term for the objective and for each that stands beside it, and metrics over strict pairs.

        Raises ValueError for a sample with other than one read, scores of other dimensions than these, and a margin
        without labels; DataError for grades of other dimensions, or outside [grade_low, grade_high].
        """
        from espalier.losses import lists, scores

        weights = list(total_weights(self.dimensions).values()) or [1.0]
        scores_SK = scores.of_samples(outputs, batch, len(weights))
        terms: dict[str, Term] = {}
        if self.learns_grades:
            check_grades(batch.samples, len(weights), self.grade_low, self.grade_high)
            grades_SK = scores.standard(batch.grades_RK, self.grade_low, self.grade_high)
            terms["pointwise"] = Term(scores.pointwise(scores_SK, grades_SK), "reads", coef=self.pointwise_coef or 1.0)
        if self.objective == "pointwise":
            return terms
        total_S = scores_SK @ scores_SK.new_tensor(weights)
        if self.objective == "plackett_luce":
            terms["plackett_luce"] = Term(lists.plackett_luce(total_S, batch.labels_S, batch.group_S), "groups")
        compared_C2, tied_C = scores.comparisons(batch, ties=self.ties != "none")
        scores_C2 = total_S[compared_C2]
        gap_C = scores_C2[:, 0] - scores_C2[:, 1]
        share_C = scores.shares(batch.group_S[compared_C2[:, 0]], gap_C.dtype) if self.weighting == "groups" else 1.0
        if self.objective == "bradley_terry":
            if self.ties != "none":
                x_C = scores.with_ties(gap_C, tied_C, self.ties, self.tie_share)
            else:
                margin_C = self.margin * scores.label_gaps(batch) if self.margin else 0.0
                x_C = scores.bradley_terry(gap_C, margin_C, self.label_smoothing)
            terms["bradley_terry"] = Term(x_C * share_C, self.weighting)
        if self.centering:
            terms["centering"] = Term(scores.centering(scores_C2) * share_C, self.weighting, coef=self.centering)
        return {**terms, **scores.metrics(total_S, batch)}
