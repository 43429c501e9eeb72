"""The nouns. An example is text, a sample is tokens, a batch is tensors; nothing else crosses a module boundary.

Shapes: N packed tokens, T scored tokens (one entry for each use of a score by a sample), U distinct scores, S samples,
G groups, V vocabulary, D width. A tensor's name ends in its shape letter unless it is [T].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
Over = Literal["tokens", "sequences", "pairs", "groups", "reads"]
StopReason = Literal["stop", "length", "error"]


# ---------------------------------------------------------------------------------------------------- examples (text)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an example was read: `source` is the data source's name, `line` counts from 1 (a row number in Parquet)."""

    source: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `weight` scales the loss of the turn's tokens: None leaves the choice to the run's `train_on`, 0 never trains the
    turn, any other value trains it with that weight. `tool_calls` are in OpenAI form:
    `{"type": "function", "function": {"name": str, "arguments": dict | str}}`.
    """

    role: Role
    content: str
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation. `tools` are JSON schemas of the functions on offer, in the form the chat template takes."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    origin: Origin = Origin()


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text: every token is trained (replay, mid-training)."""

    text: str
    origin: Origin = Origin()


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and its continuation without chat markup; the completion is trained and ends in the end-of-text
    token."""

    prompt: str
    completion: str
    origin: Origin = Origin()


Example = Chat | Text | Completion


# --------------------------------------------------------------------------------------------------- samples (tokens)


@dataclass(slots=True)
class Sample:
    """One sequence of tokens, with a mask that says which of them may be trained on.

    `mask[i]`, `weights[i]` and every stream's entry `i` are about `tokens[i]` itself: its log-probability, given all
    tokens before it. Siblings (the two sides of a pair, the rollouts of one prompt, the threads of one conversation)
    share `group`; `pack` lays what they have in common down once. `key` identifies the sample inside its data set and,
    with the seed and the step, keys its noise.
    """

    tokens: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    group: int = 0
    part: str = "main"
    key: int = 0
    label: float | None = None
    reward: float | None = None
    stop: StopReason = "stop"
    temperature: float = 1.0
    version: int | None = None
    reads: list[int] = field(default_factory=list)
    streams: dict[str, list[float]] = field(default_factory=dict)

    def append(
        self, tokens: list[int], *, trained: bool, weight: float = 1.0, logprobs: list[float] | None = None
    ) -> None:
        """Grow by `tokens`, moving mask, weights and the `logprobs` stream together.

        >>> s = Sample()
        >>> s.append([5, 6], trained=False); s.append([7], trained=True)
        >>> s.tokens, s.mask, s.weights
        ([5, 6, 7], [False, False, True], [0.0, 0.0, 1.0])

        Raises ValueError when `logprobs` has another length than `tokens`, or when some appended runs carry
        log-probabilities and a trained one does not.
        """
        if logprobs is not None and len(logprobs) != len(tokens):
            raise ValueError(f"append got {len(logprobs)} logprobs for {len(tokens)} tokens; expected one for each")
        had = "logprobs" in self.streams
        if trained and logprobs is None and had:
            raise ValueError("append got trained tokens without logprobs, but earlier ones had them; pass them always")
        if logprobs is not None and not had:
            if any(self.mask):
                raise ValueError("append got logprobs, but earlier trained tokens had none; pass them always or never")
            self.streams["logprobs"] = [0.0] * len(self.tokens)
            had = True
        if had:
            self.streams["logprobs"].extend(logprobs if logprobs is not None else [0.0] * len(tokens))
        self.tokens.extend(tokens)
        self.mask.extend([trained] * len(tokens))
        self.weights.extend([weight if trained else 0.0] * len(tokens))

    def __len__(self) -> int:
        return len(self.tokens)


# -------------------------------------------------------------------------------------------------- batches (tensors)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens laid down once. `parent` is the index of the segment it continues, -1 for a root.

    `start` and `length` place it among the N packed tokens; `depth` is the position of its first token on its path.
    Segments stand in preorder, so the descendants of segment i are those numbered i + 1 up to, not including, `leave`.
    """

    start: int
    length: int
    parent: int
    depth: int
    leave: int


@dataclass(slots=True)
class Batch:
    """The packed forest of one micro-batch, shifted once.

    Forest:   `inputs_N`, `positions_N` (depth in the tree), `segments`.
    Scores:   `sources_U` (which packed token predicts), `targets_U` (which token id), `temperatures_U`.
    Rows:     `score` [T] says which of the U scores a use reads, `rows` [T] which of the S samples uses it; `weights`
              and all `streams` are [T] and about the targets.
    Uses:     `uses_N`, how many samples pass through each packed token; None unless asked for.
    Samples:  `samples` in the order of `rows`; `parts` names each sample's part.
    Totals:   `totals[over, part]` of the WHOLE optimizer step over all ranks: what terms are divided by.
    """

    inputs_N: Tensor
    positions_N: Tensor
    segments: list[Segment]
    sources_U: Tensor
    targets_U: Tensor
    temperatures_U: Tensor
    score: Tensor
    rows: Tensor
    weights: Tensor
    streams: dict[str, Tensor]
    parts: list[str]
    samples: list[Sample]
    totals: dict[tuple[str, str], float]
    state: dict[str, float] = field(default_factory=dict)
    uses_N: Tensor | None = None

    def part(self, name: str) -> Tensor:
        """A bool mask [T] of the uses that belong to part `name`."""
        import torch

        chosen = torch.tensor([p == name for p in self.parts], dtype=torch.bool, device=self.rows.device)
        return chosen[self.rows]


@dataclass(slots=True)
class Outputs:
    """What one forward says about a batch: `logprobs` [T] of the targets, and `entropy` [T] where asked for (nats)."""

    logprobs: Tensor
    entropy: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """A thing to be summed and divided by `totals[over, part]`; `coef` 0 makes it a metric that is not trained on."""

    x: Tensor
    over: Over
    part: str = "main"
    coef: float = 1.0
