"""Supervised fine-tuning."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge

from espalier.algorithms.traits import Algorithm, Traits
from espalier.config.fields import section
from espalier.types import Batch, Outputs, Term, TrainOn


@section
class SFT(Algorithm):
    """Maximum likelihood of the trained tokens, each part with its own denominator:

        L = sum_main w_t nll_t / sum_main w_t  +  replay_coef * sum_replay nll_t / |replay|

        nll_t = -log p(y_t | y_<t)

    w_t are per-message weights (1 if none is given). Ouyang et al., arXiv:2203.02155, section 3.5, step 1; replay is
    their pretraining mix.
    """

    train_on: TrainOn = "assistant"
    """Which tokens are trained: every assistant turn, the last one, or everything."""
    replay_coef: Annotated[float, Ge(0)] = 0.1
    """Weight of the replay text's own mean loss."""
    neftune_alpha: Annotated[float, Ge(0)] = 0.0
    """Strength of uniform noise on input embeddings (NEFTune); 0 is none. Prefixes are not shared while it is on."""

    @property
    def traits(self) -> Traits:
        return Traits(train_on=self.train_on, linear=True, likelihood=True, noise=self.neftune_alpha)

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """One term for each part of the step, over tokens; in a batch without that part it is 0."""
        from espalier.losses.tokens import nll

        x = nll(outputs.logprobs, batch.weights)
        terms = {}
        for part in sorted({part for _, part in batch.totals}):
            coef = self.replay_coef if part == "replay" else 1.0
            terms["nll" if part == "main" else f"nll_{part}"] = Term(x * batch.part(part), "tokens", part, coef)
        return terms
