"""The seams where engines meet the rest: verbs only, tokens and numbers in, tokens and numbers out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from espalier.errors import EspalierError
from espalier.outcomes import Key, Outcome
from espalier.types import Batch, Outputs, Prompt, Sample, Task, Term

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Group = list[Sample]
LossFn = Callable[[Outputs, Batch], dict[str, Term]]
Quantity = Literal["logprobs", "entropy", "correct", "scores", "values"]
"""What a model says of a sample: see `SampleOutputs`."""


def samples_of(groups: Sequence[Sequence[Sample]]) -> list[Sample]:
    """The samples of all groups, in order."""
    return [s for group in groups for s in group]


# ---------------------------------------------------------------------------------------------------------- processes


class World(Protocol):
    """The processes that train together. Every rank sees the same plan and calls the same verbs in the same order."""

    rank: int
    size: int

    @overload
    def sum(self, values: list[float]) -> list[float]: ...
    @overload
    def sum(self, values: Tensor) -> Tensor: ...
    def sum(self, values: Any) -> Any:
        """Elementwise sums over all ranks: numbers in float64, or a tensor of this world's device, in place."""
        ...

    def gather(self, data: bytes) -> list[bytes]:
        """The bytes of every rank, in the order of the ranks, on every rank. Their lengths may differ."""
        ...

    def barrier(self) -> None:
        """Return when every rank is here."""
        ...


def together(part: Callable[[], T], outcome: str, world: World | None, error: type[EspalierError]) -> T:
    """Run `part` on all ranks and return what it returned here. If it failed on one, raise on all of them: its own
    error there, `error` with `outcome` elsewhere. None is a world of one.

    Without it, a rank that fails alone leaves the others in a collective that it never joins.
    """
    if world is None or world.size == 1:
        return part()
    results: list[T] = []
    failure: Exception | None = None
    try:
        results.append(part())
    except Exception as caught:
        failure = caught
    flags = world.gather(b"failed" if failure is not None else b"")
    if failure is not None:
        raise failure
    failed = [str(rank) for rank, flag in enumerate(flags) if flag]
    if failed:
        raise error(f"{outcome}: rank {', '.join(failed)} failed and says why")
    return results[0]


def from_first(value: Any, world: World | None) -> Any:
    """Rank 0's value, on every rank; a JSON value (a tuple arrives as a list). None is a world of one."""
    if world is None or world.size == 1:
        return value
    text = json.dumps(value).encode() if world.rank == 0 else b""
    return json.loads(world.gather(text)[0])


# ------------------------------------------------------------------------------------------------------------- models


@dataclass(slots=True)
class SampleOutputs:
    """What a model says about one sample; quantities that were not requested are empty.

    logprobs, entropy, correct: one number per token, 0 if the token is not scored: its log-probability (nats), the
        entropy of the distribution it stands in (nats), and 1 if it is that distribution's most probable token.
    scores: what a scalar head says after each of the sample's `reads`, one number per dimension.
    values: what a critic says before each token, one number per token, 0 if the token is not scored.
    """

    logprobs: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    correct: list[float] = field(default_factory=list)
    scores: list[tuple[float, ...]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StepResult:
    """`terms[name]` is the normalised sum of the loss's term of that name over the whole update; `loss` is the weighted
    sum of those that are trained. `peaks` are the names of terms over `max`. `outputs` is what the forward said of each
    sample that ran, in order, if it was to be kept."""

    loss: float
    terms: dict[str, float]
    tokens: int  # tokens of all samples, shared prefixes counted once per sample
    packed: int  # tokens that went through the model
    scored: int
    peaks: tuple[str, ...] = ()
    outputs: list[SampleOutputs] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Measured:
    """A term summed over groups, what it is divided by (0 if its part has no weight), and its coefficient."""

    sum: float
    total: float
    coef: float


class Learner(Protocol):
    """Holds the weights that are trained. Takes the whole optimizer step: global in, global out."""

    @property
    def world(self) -> World: ...

    def say(self, groups: Sequence[Group], what: Sequence[Quantity]) -> list[SampleOutputs]:
        """What the model says about every sample, in order, without gradients. Scores have the stored bias and scale
        applied.

        Raises ValueError for a quantity that the model's head does not give: a reward model gives scores and nothing
        else, a critic values, a token head everything else.
        """
        ...

    def measure(self, groups: Sequence[Group], loss: LossFn, state: dict[str, float]) -> dict[str, Measured]:
        """The terms of `loss` over all groups, without gradients; those over `max` are left out."""
        ...

    def forward_backward(
        self,
        groups: Sequence[Group],
        loss: LossFn,
        state: dict[str, float],
        step: int,
        *,
        silent: Sequence[Group] = (),
        keep: Sequence[Quantity] = (),
    ) -> StepResult:
        """Accumulate the gradient of `loss` over all groups, split into micro-batches and over ranks.

        step: keys the noise, if there is any. silent: groups that count in the totals of trained terms and are not run.
        keep: quantities of the training forward (`logprobs`, `entropy`) that `StepResult.outputs` returns.
        """
        ...

    def optim_step(self, lr: float) -> dict[str, float]:
        """Clip, update, clear gradients. Returns `grad_norm` (before clipping)."""
        ...

    def drop_gradient(self) -> None:
        """Clear what `forward_backward` accumulated, so that no update is made from it."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full weights by Hugging Face name, adapters merged, with the values of master precision: float32 if they are
        trained, merged or rounded by the compute dtype, else in the dtype that the model computes in."""
        ...

    def save(self, folder: Path) -> None:
        """Write everything `load` needs to go on bit for bit: trained weights, optimizer, counters."""
        ...

    def load(self, folder: Path) -> None:
        """Take what `save` wrote."""
        ...

    def export(self, folder: Path) -> None:
        """Write a plain Hugging Face directory."""
        ...


class Reference(Protocol):
    """The model that the policy is compared with."""

    def logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """For every sample, in order, the reference's log-probabilities: one per token, 0 if it is not scored."""
        ...

    def move(self, alpha: float) -> None:
        """Make the reference alpha * policy + (1 - alpha) * reference, weight by weight."""
        ...

    def moved(self) -> Iterator[tuple[str, Tensor]]:
        """The float32 weights that `move` changes, this rank's part of them; nothing for one that never moves."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load` needs to go on bit for bit; nothing for a reference that never moves."""
        ...

    def load(self, folder: Path) -> None:
        """Take what `save` wrote."""
        ...


@dataclass(frozen=True, slots=True)
class Roles:
    """Who takes part in a step: the policy, the critic (the policy itself if they share a backbone; None without one)
    and the reference (None if the algorithm compares with none)."""

    policy: Learner
    critic: Learner | None = None
    reference: Reference | None = None


# ----------------------------------------------------------------------------------------------------------- samplers


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a sampler draws.

    max_tokens: the most tokens of a response, its stop token included.
    temperature: logits are divided by it; 0 is greedy.
    top_k, top_p, min_p: what is kept of the distribution at the temperature, in this order: the k most probable tokens
        (0 all), the fewest of them that hold this probability (1 all), those with at least this share of the most
        probable one's (0 all). The most probable token always stays.
    repetition_penalty: before all of that, logits of tokens that prompt or response have are divided by it if positive,
        multiplied if negative (arXiv:1909.05858); 1 changes nothing.
    stop: token ids that end a response and belong to it.
    stop_strings: texts that end a response as soon as its decoded text contains one; the response keeps the tokens that
        hold it.
    seed: of the uniform numbers, with the task's row, the epoch, which of its samples, and the position.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """Responses to draw to one prompt. `row` is the task's number and `epoch` the pass over the tasks (negative for
    refills), which key the draws; `ks` are which of its samples to draw; `group` is the caller's name for it, unique
    among the requests in flight."""

    prompt: list[int]
    row: int
    group: int
    params: SamplingParams
    epoch: int = 0
    ks: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One response: sample number `k` of its request. The sample's prompt is untrained, its response (the stop token
    included) trained, with the stream `logprobs` (nats, of the distribution drawn from), and `mass` (the probability
    that top-k, top-p and min-p kept) if the params filter. `group` is the request's; `temperature` 1 if greedy."""

    request: Request
    k: int
    sample: Sample


class Sampler(Protocol):
    """Tokens in, tokens out. `interrupted()` is asked after every forward: whether a stop was requested."""

    interrupted: Callable[[], bool]

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests. They are admitted in this order as room allows: a function of requests and lengths, never of
        time.

        Raises ConfigError for an empty prompt, and one that leaves no room for `max_tokens` below the model's limit, or
        that would cross a switch of its RoPE.
        """
        ...

    def finished(self) -> list[Drawn]:
        """Work until at least one sample ends, and return those that have, in a fixed order; empty if not `busy`, and
        if the run was interrupted meanwhile."""
        ...

    @property
    def busy(self) -> bool:
        """Whether something that was submitted has not been returned."""
        ...

    def cancel(self, groups: Sequence[int]) -> None:
        """Forget all requests of these groups, whether admitted or waiting."""
        ...

    def load(self, weights: Any, version: int) -> None:
        """Take over weights by Hugging Face name; None if the sampler draws from the trained model itself. Samples
        drawn from now on carry `version`."""
        ...

    def drawing(self) -> AbstractContextManager[None]:
        """Hold the model ready to be drawn from. Several processes enter and leave together, which gathers and frees
        sharded weights; inside, each takes its own number of steps. `finished` outside of it enters by itself."""
        ...

    def allocate(self, prompts: int, longest: int, max_tokens: int) -> int:
        """Take the memory that a rollout of so many prompts, each of at most `longest` tokens, needs at most, as far as
        the sampler holds keys and values itself, so that missing memory is missing now. Returns its bytes."""
        ...


# ------------------------------------------------------------------------------------------------------------ graders


class Graders(Protocol):
    """Rewards of responses: text in, outcomes out. Responses are graded while others are drawn."""

    @property
    def best(self) -> float | None:
        """The highest score that the rewards declare; None if one of them declares none."""
        ...

    def grades(self, task: Task) -> tuple[str, ...]:
        """The names of the rewards that grade a task; empty if none does."""
        ...

    def submit(self, key: Key, prompt: Prompt, sample: Sample) -> None:
        """Grade one response; `sample` holds its ids behind the prompt's."""
        ...

    def finished(self, *, wait: bool) -> list[tuple[Key, Outcome]]:
        """Outcomes that are there, in any order; with `wait`, after at least one came in, or after a moment without
        one, so that a signal is heeded (empty if not `busy`)."""
        ...

    @property
    def busy(self) -> bool:
        """Whether something that was submitted has not been returned."""
        ...

    def close(self) -> None:
        """End all worker processes."""
        ...


class Scorers(Protocol):
    """Trained reward models, which score answers beside the graders or in their place. A function of tokens and weights
    alone, so that nothing of it is kept for a resumed run."""

    def add(self, groups: Sequence[Group]) -> int:
        """Add their scores to `outcome` and `reward` of every answer that could be graded and qualifies. All ranks call
        it with all groups. Returns how many answers were scored without an end, because the length limit cut them."""
        ...
