"""The seams where engines meet the rest: verbs only, tokens and numbers in, tokens and numbers out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from espalier.types import Batch, Outputs, Sample, Term

if TYPE_CHECKING:
    from torch import Tensor

Group = list[Sample]
LossFn = Callable[[Outputs, Batch], dict[str, Term]]


class World(Protocol):
    """The processes that train together. Every rank sees the same plan and calls the same verbs in the same order."""

    rank: int
    size: int

    def sum(self, values: list[float]) -> list[float]:
        """Elementwise sums over all ranks, in float64."""
        ...

    def barrier(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StepResult:
    """`terms[name]` is the normalised sum of the loss's term of that name over the whole step; `loss` is their
    weighted sum."""

    loss: float
    terms: dict[str, float]
    tokens: int  # tokens of all samples, shared prefixes counted once per sample
    packed: int  # tokens that went through the model
    scored: int


@dataclass(frozen=True, slots=True)
class Measured:
    """A term summed over groups, what it is divided by (0 where its part has no weight), and its coefficient."""

    sum: float
    total: float
    coef: float


class Learner(Protocol):
    """Holds the weights that are trained. Takes the whole optimizer step: global in, global out."""

    @property
    def world(self) -> World: ...

    def forward(
        self, groups: Sequence[Group], *, entropy: bool = False, correct: bool = False
    ) -> list[dict[str, list[float]]]:
        """For every sample, in order, one entry a token and 0 where not scored: `logprobs` of the tokens and, where
        asked for, `entropy` of the distributions and `correct` (1 where the token is the most probable one)."""
        ...

    def score(self, groups: Sequence[Group]) -> list[list[tuple[float, ...]]]:
        """For every sample, in order, what the scalar head says after each of its `reads`: one number a dimension, the
        stored bias and scale applied. Of a model that has such a head."""
        ...

    def measure(self, groups: Sequence[Group], loss: LossFn, state: dict[str, float]) -> dict[str, Measured]:
        """The terms of `loss` over all groups, without gradients."""
        ...

    def forward_backward(self, groups: Sequence[Group], loss: LossFn, state: dict[str, float], step: int) -> StepResult:
        """Accumulate the gradient of `loss` over all groups, split into micro-batches and over ranks."""
        ...

    def optim_step(self, lr: float) -> dict[str, float]:
        """Clip, update, clear gradients. Returns `grad_norm` (before clipping)."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full weights by Hugging Face name, in the dtype they are exported in, adapters merged."""
        ...

    def save(self, folder: Path) -> None:
        """Write everything `load` needs to go on bit for bit: trained weights, optimizer, counters."""
        ...

    def load(self, folder: Path) -> None: ...

    def export(self, folder: Path) -> None:
        """Write a plain Hugging Face directory."""
        ...


class Reference(Protocol):
    """Who the policy is held against."""

    def logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """For every sample, in order, the reference's log-probabilities: one entry a token, 0 where not scored."""
        ...

    def move(self, alpha: float) -> None:
        """Make the reference alpha * policy + (1 - alpha) * reference, weight by weight."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load` needs to go on bit for bit; nothing for a reference that never moves."""
        ...

    def load(self, folder: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a sampler draws. `temperature` 0 is greedy; `stop` are the token ids that end a response and belong to it."""

    max_tokens: int = 256
    temperature: float = 0.0
    stop: tuple[int, ...] = ()
    seed: int = 0


class Sampler(Protocol):
    """Tokens in, tokens out."""

    def generate(self, prompts: Sequence[list[int]], n: int, params: SamplingParams) -> list[list[Sample]]:
        """`n` samples for each prompt: the prompt untrained, the response (its stop token included) trained."""
        ...

    def load(self, weights: Any, version: int) -> None: ...
