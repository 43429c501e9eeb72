"""Direct preference optimisation and the variants that keep a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from espalier.algorithms import combinations
from espalier.algorithms.traits import Algorithm, Traits
from espalier.config.fields import CountOrZero, Fraction, Known, Names, NotNegative, Number, named_weights, section
from espalier.losses.variants import VARIANTS
from espalier.types import Batch, Outputs, Term

if TYPE_CHECKING:
    from torch import Tensor


@section
class DPO(Algorithm):
    """Raises the probability of preferred answers over that of the others, relative to a reference policy:

        L = sum_v weight_v sum_pairs loss_v(m) / pairs  +  sft_coef * sum_chosen -log pi(y_t) / |chosen tokens|

        m = beta (s_w - s_l)      s = log pi(y|x) - log ref(y|x), a sum over tokens, or f'(pi / ref) (f_divergence)

    with the losses of `losses.variants.VARIANTS`, over groups in place of pairs for plackett_luce.

    sigmoid at m = 0 is ln 2. With sft_coef it is RPO (arXiv:2404.19733, where it is 1, of each answer's mean per token
    in place of one mean over the step's chosen tokens), with label_smoothing conservative DPO. beta 0.1 to 0.5: less
    moves the policy further. Rates that work are small: 5e-7 for whole models of 7 billion weights, 5e-6 for LoRA, 1e-5
    and more for models of some millions.
    """

    variant: Annotated[Names, MinLen(1), Known({name: f"{v.formula} ({v.paper})" for name, v in VARIANTS.items()})] = (
        "sigmoid",
    )
    """One or several losses, each NAME or NAME=WEIGHT, added up."""
    beta: NotNegative = 0.0
    """Strength of the KL to the reference, IPO's tau; 0 takes 0.1, and of sigmoid_norm alone the 5 of its paper."""
    label_smoothing: Annotated[Number, Ge(0), Lt(0.5)] = 0.0
    """Share of labels taken to be wrong; of sigmoid, sigmoid_norm and robust."""
    sft_coef: NotNegative = 0.0
    """Weight of the mean negative log-likelihood of preferred answers (RPO)."""
    ipo_average: bool = False
    """Average IPO's scores over tokens, so that its target is a margin a token; off sums them, as its formula reads."""
    ld_alpha: Fraction = 1.0
    """Weight of the tokens beyond the pair's shorter answer (LD-DPO, arXiv:2409.06411); 1 is off."""
    f_divergence: Literal["reverse_kl", "js", "alpha"] = "reverse_kl"
    """What holds the policy to the reference (f-DPO, arXiv:2309.16240)."""
    divergence_alpha: Annotated[Number, Gt(0), Le(1)] = 0.5
    """Alpha of f_divergence alpha: towards 0 the reverse KL, 1 the forward KL."""
    sync_every: CountOrZero = 0
    """Steps between moves of the reference to the policy (TR-DPO, arXiv:2404.09656, where 512 replace it); 0 never."""
    sync_alpha: Annotated[Number, Gt(0), Le(1)] = 0.6
    """Share of the policy in the moved reference; 1 replaces it."""

    def __post_init__(self) -> None:
        combinations.check_dpo(self)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each variant."""
        return named_weights(self.variant, "variant", VARIANTS, positive=True)

    @property
    def strength(self) -> float:
        """The beta that the losses take."""
        return self.beta or (5.0 if self.weights.keys() == {"sigmoid_norm"} else 0.1)

    @property
    def traits(self) -> Traits:
        return Traits(
            "ranking",
            needs=("ref_logprobs",),
            whole=True,
            orders="plackett_luce" in self.weights,
            sync_every=self.sync_every,
            sync_alpha=self.sync_alpha if self.sync_every else 0.0,
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        if self.beta:
            return ()
        note = f"beta {self.strength:g}"
        if "sigmoid_norm" in self.weights and len(self.weights) > 1:
            note += " for all variants; sigmoid_norm alone would have 5"
        return (note,)

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """A term for each variant, `nll` if it is on, and metrics, whose rewards are beta times the ratio."""
        from espalier.losses import lists, pairs
        from espalier.losses.ops import by_sample

        def scores(ratios: Tensor) -> Tensor:
            return pairs.divergence(ratios, self.f_divergence, self.divergence_alpha)

        rows, lengths_S, wins_P2, e = batch.rows, batch.lengths_S, batch.wins_P2, self.label_smoothing
        beta, ratio = self.strength, outputs.logprobs - batch.streams["ref_logprobs"]
        ratios_P2 = pairs.sums(ratio, rows, lengths_S, wins_P2, self.ld_alpha)
        terms = {}
        for name, weight in self.weights.items():
            if VARIANTS[name].over == "groups":
                scores_S = beta * scores(by_sample(ratio, rows, len(lengths_S)))
                terms[name] = Term(lists.plackett_luce(scores_S, batch.labels_S, batch.group_S), "groups", coef=weight)
            else:
                x_P = pairs.loss(name, scores(ratios_P2), lengths_S[wins_P2], beta, e, self.ipo_average)
                terms[name] = Term(x_P, "pairs", coef=weight)
        if self.sft_coef:
            terms["nll"] = pairs.chosen_nll(outputs.logprobs, batch, self.sft_coef)
        return {**terms, **pairs.metrics(beta * ratios_P2, outputs.logprobs, batch)}
