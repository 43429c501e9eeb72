"""What an algorithm says about itself, so that the loop can load, fill and lay out what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from espalier.types import Consumes, Wants

if TYPE_CHECKING:
    from espalier.types import Batch, Outputs, Sample, Term

Stream = Literal["ref_logprobs", "old_logprobs"]


@dataclass(frozen=True, slots=True)
class Traits:
    """What the loop must do for an algorithm.

    consumes: the form in which examples are read.
    wants: what a ranking must offer, or its row is refused: a strict preference (`pairs`), a strict preference or a tie
        (`comparisons`), a good-or-bad label for every response (`labels`), or a score (`grades`).
    needs: streams filled before the loss: `ref_logprobs` by the reference, `old_logprobs` by the policy as it is before
        the step (on mates they are filled in any case).
    linear: the loss is linear in the log-probabilities, with coefficients that do not depend on the outputs.
    whole: the loss needs a group in one forward.
    orders: a loss reads whole orders, from labels, and not which comparisons of a ranking are kept.
    reads: the model is read by a scalar head at `Sample.reads` and its token probabilities are not computed.
    likelihood: held-out data is measured by likelihood (loss a token, perplexity); otherwise by the loss and its terms.
    sync_every, sync_alpha: after every so many steps the reference becomes alpha * policy + (1 - alpha) * reference;
        0 never.
    """

    consumes: Consumes = "chat"
    wants: Wants = "pairs"
    needs: tuple[Stream, ...] = ()
    linear: bool = False
    whole: bool = False
    orders: bool = False
    reads: bool = False
    likelihood: bool = False
    sync_every: int = 0
    sync_alpha: float = 0.0


class Algorithm(Protocol):
    """What every algorithm has. `Mates` and `Credits` are for those that need them."""

    @property
    def traits(self) -> Traits: ...

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, dict[str, Term]]:
        """Terms by name for each trainable model."""
        ...


@runtime_checkable
class Mates(Protocol):
    """Builds further samples across the groups of a step. They are in no loss; `credit` sees them."""

    def mates(self, groups: Sequence[list[Sample]]) -> list[list[Sample]]: ...


@runtime_checkable
class Credits(Protocol):
    """Fills streams and returns the moving numbers that `Batch.state` shows to the loss and the next step's `credit`.

    `groups` are the whole step's (all ranks see all of them), mates behind them.
    """

    def credit(self, groups: Sequence[list[Sample]], state: dict[str, float]) -> dict[str, float]: ...
