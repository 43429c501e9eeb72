"""Group sequence policy optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Gt, Lt

from espalier.algorithms.onpolicy import OnPolicy
from espalier.config.fields import Number, Positive, section
from espalier.credit import advantages, rollouts, shaping
from espalier.types import Batch, Outputs, Sample, Term


@section
class GSPO(OnPolicy):
    """GRPO whose ratio, and so whose clip, is that of a whole answer:

        L = 1/S sum_S -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)  +  beta 1/S sum_S 1/|y| sum_t KL_t

        s = ( pi(y) / old(y) )^(1/|y|)        A = (score - mean) / (std + 1e-4) over a prompt's answers, std over G - 1

    Zheng et al., arXiv:2507.18071, eq. 5 to 7. token_form takes s_t = sg(s) pi(y_t) / sg(pi(y_t)) with an advantage a
    token (eq. 13 and 14), averaged over the answer: the same gradient if the advantages of an answer are equal, and the
    form for process rewards; without it their mean counts. With length_normalised off, s is the plain product of
    ratios, which needs a far wider clip; KL and entropy, and policy in its token form, are sums over the answer.

    |y| counts tokens with weight, S all answers of the minibatch. A token without weight leaves s and |y|; a cut answer
    without weight (mask_cut) and a silent group add 0; S stays, and so do mean and std.
    """

    clip_low: Annotated[Number, Gt(0), Lt(1)] = 3e-4
    clip_high: Positive = 4e-4
    token_form: bool = False
    """Give every token the ratio of its answer with its own gradient, and its own advantage."""
    length_normalised: bool = True
    """The exponent 1/|y| in the ratio; off takes the product of all token ratios."""

    def credit(self, groups: Sequence[list[Sample]], state: dict[str, float]) -> dict[str, float]:
        drawn = rollouts.drawn(groups)
        rollouts.fill(drawn, [advantages.normalised(x) for x in self.scores(drawn)])
        if self.mask_cut:
            shaping.mask_cut(drawn)
        return state

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """`policy` over sequences, `kl_loss` and `entropy_bonus` if they are on, and metrics."""
        from espalier.losses import policy

        log_ratio = policy.to_old(outputs, batch)
        ratio_S = policy.sequence_ratios(log_ratio, batch, length_normalised=self.length_normalised)
        mean = policy.means(batch, log_ratio.dtype)
        # Of the product, the gradient in each token's log-probability is s, not s / |y|.
        tokens = mean if self.length_normalised else batch.weights
        ratio = policy.token_form(ratio_S, log_ratio, batch.rows) if self.token_form else ratio_S[batch.rows]
        x = policy.clipped(ratio, batch.streams["advantages"], self.clip())
        return {
            "policy": Term(x * (tokens if self.token_form else mean), "sequences"),
            **self.beside(log_ratio, tokens, "sequences", outputs, batch),
            **policy.metrics(ratio, self.clip(), outputs, batch),
        }
