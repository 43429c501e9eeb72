"""The nouns. An example is text, a sample is tokens, a batch is tensors; nothing else crosses a module boundary.

Shapes: N packed tokens, T scored tokens (one entry for each use of a score by a sample), U distinct scores, S samples,
G groups, P pairs, Q ties, R reads, K dimensions of a scalar head, V vocabulary, D width. A tensor's name ends in its
shape letters unless it is [T].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from espalier.outcomes import Outcome

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
Over = Literal["tokens", "sequences", "pairs", "groups", "reads", "max"]
"""What a term is summed over; `max` takes the largest entry instead, and is for metrics alone."""
StopReason = Literal["stop", "length", "error"]
Consumes = Literal["chat", "ranking", "steps", "task"]
"""The form of examples that a run learns from: conversations and texts, judged responses, solutions cut into steps,
prompts that the policy answers itself."""
Says = Literal["tokens", "reads", "values"]
"""What a model says: log-probabilities of tokens, the numbers of a scalar head at `Sample.reads`, or (a critic) the
number of a scalar head before each scored token."""
Wants = Literal["pairs", "comparisons", "labels", "grades"]
"""What a ranking must offer, or its row is refused: a strict preference, a strict preference or a tie, a good-or-bad
label of every response, a score."""
TrainOn = Literal["assistant", "last", "all"]
"""Which turns of a conversation are trained: all of the assistant's, its last one, every token."""
NAMELESS = "score"
"""What the only dimension of scores is called if the data gives it no name."""
Aggregate = Literal["product", "min", "last", "mean"]
"""How the probabilities of its steps become the number of a whole solution."""


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
    `{"type": "function", "function": {"name": str, "arguments": dict | str}}`, with the `id` that they may have.
    `tool_call_id` says which call a tool message answers.
    """

    role: Role
    content: str
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None
    weight: float | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation. `tools` are JSON schemas of the functions on offer, in the form the chat template takes;
    `template_args` are names that the row gives to the chat template (`{"enable_thinking": False}`)."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    origin: Origin = Origin()
    template_args: dict[str, Any] = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True)
class Response:
    """One answer to a prompt and its judgements.

    `rank`: 0 is the best, equal ranks are ties. `scores`: one for each of the ranking's dimensions, higher is better.
    `good`: a label of its own (KTO), or whether the answer is correct. None is "not judged so". `author` wrote it.
    """

    message: Message
    rank: int | None = None
    scores: tuple[float | None, ...] = ()
    good: bool | None = None
    author: str = ""


@dataclass(frozen=True, slots=True)
class Ranking:
    """A prompt and K >= 1 responses with ranks, scores or labels. Pairs, K-way lists, pointwise scores and unpaired
    labels are all this.

    `prompt` ends where an assistant turn may begin. `dimensions` name the scores ("helpful", "harmless"); a single one
    may be nameless. `template_args` are as in `Chat`.
    """

    prompt: tuple[Message, ...]
    responses: tuple[Response, ...]
    dimensions: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    origin: Origin = Origin()
    template_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Steps:
    """A prompt and a solution cut into steps (process supervision).

    `labels`: 1 good, 0 bad, 0.5 neutral, None not labelled; one a step. `solved`: whether the solution as a whole is
    right, None if unknown. The solution is the steps joined with `separator`; several solutions of one problem
    are several examples with the same prompt. `template_args` are as in `Chat`. `soft` says that labels are chances
    that a step is good, from 0 to 1, which are trained as they are: 0.5 is not neutral.
    """

    prompt: tuple[Message, ...]
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]
    solved: bool | None = None
    separator: str = "\n"
    origin: Origin = Origin()
    template_args: dict[str, Any] = field(default_factory=dict)
    soft: bool = False


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A message of a conversation tree. `parent` is the index of the message it answers, -1 for a root; `rank` among
    its siblings, 0 the best."""

    message: Message
    parent: int
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Tree:
    """A conversation that branches: nodes in preorder. Trained as chat, every message is computed once and trained
    once; as rankings, every group of ranked siblings is one `Ranking`."""

    nodes: tuple[TreeNode, ...]
    origin: Origin = Origin()


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt that the policy answers, with what its verifier needs.

    `answer` is the right one in the data's own words, empty if there is none. `verifier` names the reward that grades
    the task; empty leaves that to the run's rewards. `facts` are what a verifier needs beside the answer (constraints,
    choices, tests), as JSON; `columns` are the row's columns that no format reads, by name. `prompt` ends where an
    assistant turn may begin, or in an assistant message that the policy goes on with.
    """

    prompt: tuple[Message, ...]
    answer: str = ""
    verifier: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()
    origin: Origin = Origin()
    template_args: dict[str, Any] = field(default_factory=dict)


Example = Chat | Text | Completion | Ranking | Steps | Tree | Task


# --------------------------------------------------------------------------------------------------- samples (tokens)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A task as the policy sees it: `tokens` are its prompt. `row` is the number of the task in the run's data, all
    sources together; draws are keyed by it, so that two equal prompts get different samples."""

    row: int
    tokens: list[int]
    task: Task


@dataclass(slots=True)
class Sample:
    """One sequence of tokens, with a mask that says which of them may be trained on.

    `mask[i]`, `weights[i]` and every stream's entry `i` are about `tokens[i]` itself: its log-probability, given all
    tokens before it. Siblings (the two sides of a pair, the rollouts of one prompt, the threads of one conversation)
    share `group`; `pack` lays what they have in common down once. `key` identifies the sample inside its data set and,
    with the seed and the step, keys its noise.

    Judgements: `label` says how good the sample is among its siblings (higher is better; 1 good and 0 bad for unpaired
    labels). `beats` and `ties` are the places in its group (counted from 0) of the siblings that it is strictly
    preferred to, and of those after it that it equals. `reads` are the tokens after which a scalar head is read, in
    order; `grades` has, for each of them, what the head should say in every dimension (nan if unknown).
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
    beats: list[int] = field(default_factory=list)
    ties: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    grades: list[tuple[float, ...]] = field(default_factory=list)
    outcome: Outcome | None = None
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
    Samples:  `samples` in the order of `rows`; `parts` names each sample's part, `group_S` numbers its group (from 0),
              `labels_S` are the samples' labels (nan if there is none), `lengths_S` their scored tokens.
    Pairs:    `wins_P2` [P, 2] are the rows of preferred and other sample of every pair, `ties_Q2` of every tie.
    Reads:    `reads_R` (packed tokens after which a scalar head is read), `read_rows_R` (of which sample), `grades_RK`.
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
    group_S: Tensor
    labels_S: Tensor
    lengths_S: Tensor
    wins_P2: Tensor
    ties_Q2: Tensor
    reads_R: Tensor
    read_rows_R: Tensor
    grades_RK: Tensor
    totals: dict[tuple[str, str], float]
    state: dict[str, float] = field(default_factory=dict)
    uses_N: Tensor | None = None

    def part(self, name: str) -> Tensor:
        """A bool mask [T] of the uses that belong to part `name`; for "chosen", of the samples in `chosen_S`."""
        import torch

        if name == "chosen":
            return self.chosen_S[self.rows]
        chosen = torch.tensor([p == name for p in self.parts], dtype=torch.bool, device=self.rows.device)
        return chosen[self.rows]

    @property
    def chosen_S(self) -> Tensor:
        """A bool mask [S] of the samples that beat a sibling and that none beats: the part `chosen`, which overlaps the
        samples' own parts."""
        import torch

        wins, losses = (
            torch.zeros_like(self.group_S).index_add_(0, side_P, torch.ones_like(side_P))
            for side_P in self.wins_P2.unbind(1)
        )
        return (wins > 0) & (losses == 0)


@dataclass(slots=True)
class Outputs:
    """What one forward says about a batch: `logprobs` [T] of the targets, `entropy` [T] if asked for (nats), `values`
    [T] of a critic, read at the sources, before the target; and `scores_RK`, what a scalar head says after the tokens
    in `reads_R` (of a model that has one; it has no logprobs)."""

    logprobs: Tensor
    entropy: Tensor | None = None
    scores_RK: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """A thing to be summed and divided by `totals[over, part]`; `coef` 0 makes it a metric that is not trained on.

    Trained terms are divided by the totals of the whole minibatch, metrics by those of the groups that ran (silent
    ones do not). A term over `max` is the largest entry of `x` among them, of whatever part, and must be a metric.
    """

    x: Tensor
    over: Over
    part: str = "main"
    coef: float = 1.0


@dataclass(slots=True)
class Draw:
    """What a step trains on.

    groups: run and counted. silent: counted in the totals of the step and not run, because their gradient is exactly 0.
    numbers: about the draw (reward, length, ...), for metrics.jsonl. notes: lines for the user.
    """

    groups: list[list[Sample]]
    silent: list[list[Sample]] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
