"""Process reward models: which step of a solution is the bad one."""

from __future__ import annotations

from typing import ClassVar, Literal

from espalier.algorithms.traits import Algorithm, Traits
from espalier.config.fields import Positive, section
from espalier.types import Batch, Outputs, Term


@section
class PRM(Algorithm):
    """Step-end classification: a scalar head is read after each step and says the logit s of "this step is good".

        L = sum_r [ -y_r log sigma(s_r) - bad_weight (1 - y_r) log(1 - sigma(s_r)) ] / |labelled steps|

    y_r is 1 for a good step and 0 for a bad one. What a neutral step, a step behind a mistake and an outcome count as
    is settled when examples become samples (`neutral`, `after_mistake`, `outcome`, `supervision`), not here: a step
    that is left out then has no part in the denominator, which is fixed before the first forward. A step without a
    label (nan) is in neither sum.

    Lightman et al., arXiv:2305.20050: neutral good, what follows a mistake ignored, product. Wang et al.
    (Math-Shepherd), arXiv:2312.08935: `after_mistake: keep`, `aggregate: min`. Uesato et al., arXiv:2211.14275: a step
    is good while all up to it are, `after_mistake: bad`; their outcome model is `supervision: outcome`.

    Rates: the head is new and the rest is not, so 1e-6 to 1e-5 for whole models of some billions of weights, 1e-5 to
    1e-4 under LoRA, 1e-4 and more for models of some millions. One epoch: a second one learns solutions by heart. If
    `accuracy` stays at max(bad, 1 - bad), bad steps are not told apart: raise the rate, then `bad_weight`.

    Metrics: `accuracy` (share of labelled steps on the right side of 1/2; a target of 1/2 counts half), `bad` and
    `bad_found` (shares that are bad, and that are bad and called so: `bad_found / bad` is the recall), `solution` (mean
    over solutions of the aggregated probability) and `solution_accuracy` (whether its side of 1/2 is the outcome; an
    unknown outcome counts half).
    """

    aggregate: Literal["product", "min", "last", "mean"] = "product"
    """How step probabilities combine into the score of a solution."""
    bad_weight: Positive = 1.0
    """Weight of bad steps; above 1 if they are few and must be found."""

    traits: ClassVar[Traits] = Traits(consumes="steps", says="reads")

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """Cross-entropy over reads. Raises ValueError for a head of more than one dimension."""
        import torch

        from espalier.losses.steps import aggregate, cross_entropy, right_side

        scores_RK, grades_RK = outputs.scores_RK, batch.grades_RK
        if scores_RK is None or scores_RK.shape[1] != 1 or grades_RK.shape[1] != 1:
            got = None if scores_RK is None else tuple(scores_RK.shape)
            raise ValueError(f"scores {got} for grades {tuple(grades_RK.shape)}; expected a head of one dimension")
        scores_R, grades_R = scores_RK[:, 0], grades_RK[:, 0]
        s_R, known_R, bad_R = scores_R.detach(), ~grades_R.isnan(), grades_R < 0.5
        lengths_S = torch.bincount(batch.read_rows_R, minlength=len(batch.samples))
        whole_S = aggregate(s_R, lengths_S, self.aggregate).nan_to_num(0.5)
        return {
            "cross_entropy": Term(cross_entropy(scores_R, grades_R, self.bad_weight), "reads"),
            "accuracy": Term(right_side(s_R, grades_R) * known_R, "reads", coef=0.0),
            "bad": Term(bad_R.float(), "reads", coef=0.0),
            "bad_found": Term((bad_R & (s_R < 0)).float(), "reads", coef=0.0),
            "solution": Term(whole_S, "sequences", coef=0.0),
            "solution_accuracy": Term(right_side(whole_S - 0.5, batch.labels_S), "sequences", coef=0.0),
        }
