"""What an algorithm says about itself, so that others can load, fill and lay out what it needs.

Nobody outside this room asks for an algorithm's class or its fields: what must be known stands in `Traits`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from espalier.algorithms.online import Online
from espalier.algorithms.scales import Calibration, Grades
from espalier.types import Consumes, TrainOn, Wants

if TYPE_CHECKING:
    from espalier.outcomes import Fate
    from espalier.types import Batch, Outputs, Sample, Says, Term

__all__ = ["Algorithm", "Calibration", "Grades", "Stream", "Traits"]

Stream = Literal["ref_logprobs", "old_logprobs", "values"]


@dataclass(frozen=True, slots=True)
class Traits:
    """What others must know of an algorithm.

    consumes: the form in which examples are read.
    wants: what a ranking must offer, or its row is refused; see `types.Wants`.
    train_on: which turns of a conversation are trained.
    needs: streams filled before `credit`: `ref_logprobs` by the reference, `old_logprobs` by the policy as it is before
        the step (on mates they are filled in any case; see also `Online.old`), `values` by the critic. A loss with
        ratios whose step makes one update needs no `old_logprobs`: they are its own, detached.
    mates: it builds further samples across the groups of a step; see `Algorithm.mates`.
    linear: the loss is linear in the log-probabilities, with coefficients that do not depend on the outputs.
    whole: the loss needs a group in one forward.
    orders: a loss reads whole orders, from labels, and not which comparisons of a ranking are kept.
    says: what the loss reads: log-probabilities of `tokens`, or what a scalar head says at `Sample.reads`.
    dimensions: names of the scalar head's dimensions, each with its weight in the total; empty is a single, nameless
        one.
    grades: the scale of the grades that the loss learns from; None if it learns from none.
    calibration: how scores are shifted and scaled after training; None if they are not.
    likelihood: held-out data is measured by likelihood (loss a token, perplexity); otherwise by the loss and its terms.
    noise: strength of uniform noise on input embeddings (NEFTune); 0 is none.
    sync_every, sync_alpha: after every so many steps the reference becomes alpha * policy + (1 - alpha) * reference;
        0 never.
    notes: lines for the user about what its settings come to.
    online: of an algorithm that learns from the policy's own answers; None of others.
    """

    consumes: Consumes = "chat"
    wants: Wants = "pairs"
    train_on: TrainOn = "assistant"
    needs: tuple[Stream, ...] = ()
    mates: bool = False
    linear: bool = False
    whole: bool = False
    orders: bool = False
    says: Says = "tokens"
    dimensions: Mapping[str, float] = field(default_factory=dict)
    grades: Grades | None = None
    calibration: Calibration | None = None
    likelihood: bool = False
    noise: float = 0.0
    sync_every: int = 0
    sync_alpha: float = 0.0
    notes: tuple[str, ...] = ()
    online: Online | None = None

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each of the head's dimensions in the total."""
        return tuple(self.dimensions.values()) or (1.0,)


class Algorithm(Protocol):
    """What every algorithm inherits from: hyper-parameters, traits, a loss; for some also `mates` and `credit`."""

    @property
    def traits(self) -> Traits: ...

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """Terms of the policy by name."""
        ...

    def mates(self, groups: Sequence[list[Sample]]) -> list[list[Sample]]:
        """Further samples built across the groups of a step. They are in no loss; `credit` sees them."""
        return []

    def credit(self, groups: Sequence[list[Sample]], state: dict[str, float]) -> dict[str, float]:
        """Fill streams; returns the moving numbers that `Batch.state` shows to the loss and the next step's `credit`.

        `groups` are the whole step's (all ranks see all of them), mates behind them.
        """
        return state

    def keep(self, group: list[Sample]) -> Fate:
        """What becomes of a group of graded rollouts, from their `reward` and `outcome` alone."""
        return "keep"

    def value_loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """Terms of the critic by name; none without one."""
        return {}

    def stop(self, terms: Mapping[str, float]) -> bool:
        """Whether, with these terms of a minibatch, its policy update and the step's further ones are left out."""
        return False

    def remarks(self, state: Mapping[str, float]) -> list[str]:
        """Lines for the user about the moving numbers after a step."""
        return []

    def ends(self, state: Mapping[str, float]) -> str:
        """Why the run should end after a step with these moving numbers; empty if it should not."""
        return ""
