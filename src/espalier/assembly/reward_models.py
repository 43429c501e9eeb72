"""The trained reward models of a run: loaded for the policy's tokens, and what they add to its answers' outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from espalier.assembly.learner import budget, token_layout
from espalier.assembly.model import HeadSpec, Model, build_model
from espalier.assembly.reward_choice import Choice
from espalier.assembly.runs import RunConfig
from espalier.assembly.sizes import frozen_bytes
from espalier.config.sections import ModelConfig
from espalier.data.render.answers import read_drawn
from espalier.data.render.renderer import Renderer
from espalier.data.render.templates import complete
from espalier.engines.learner import LearnerOptions
from espalier.engines.processes import Distributed, OneProcess
from espalier.engines.protocols import Group, samples_of
from espalier.engines.reward_model import RewardModel
from espalier.errors import ConfigError
from espalier.models.load import load_tokenizer
from espalier.outcomes import Graded, Outcome
from espalier.rewards.combine import beside
from espalier.rewards.graders import ErrorShare
from espalier.types import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANY_HEAD = HeadSpec((), "response", trained=False, any=True)
_BY_TEXT = "Give a reward model that was trained on the policy's, or let --reward PATH.py:FUNCTION score the text"
_WAY_OUT = "Look at the reward model: do its weights overflow in this dtype? --dtype float32 does not"


@dataclass(frozen=True, slots=True)
class Member:
    """One reward model: how it was chosen, what was loaded, and what scores. unread: its pad token, at which
    transformers does not read it."""

    choice: Choice
    model: Model
    engine: RewardModel
    unread: int | None

    def parts(self, scores: tuple[float, ...]) -> dict[str, Graded]:
        """What it says of an answer: its score, and beside it, of a head of several dimensions, each of them."""
        choice = self.choice
        total = sum(weight * x for weight, x in zip(choice.dimensions.values(), scores, strict=True))
        parts = {choice.name: Graded(total, choice.weight)}
        if len(scores) > 1:
            for name, x in zip(choice.dimensions, scores, strict=True):
                parts[f"{choice.name}.{name}"] = Graded(x, 0.0)
        return parts


class RewardModels:
    """`Scorers` (engines/protocols.py) by reward models that know the policy's tokens.

    renderer: the policy's, which knows what its template writes behind an answer. max_error_share: see `ErrorShare`.
    """

    def __init__(self, members: Sequence[Member], renderer: Renderer, max_error_share: float):
        self.members = tuple(members)
        self.tail, self.stop_ids = renderer.chats.tail, frozenset(renderer.stop_ids)
        self.errors = ErrorShare(max_error_share, _WAY_OUT)

    def add(self, groups: Sequence[Group]) -> int:
        """See `Scorers`. Raises EspalierError if too many of its scores are not finite."""
        asked = [[s for s in group if _counts(s)] for group in groups]
        samples = samples_of(asked)
        for member in self.members:
            read = [[self.as_read(s, member.unread) for s in group] for group in asked]
            for s, parts in zip(samples, _parts(member, read), strict=True):
                assert s.outcome is not None
                s.outcome = parts if isinstance(parts, Outcome) else beside(s.outcome, parts)
        for s in samples:
            assert s.outcome is not None
            s.reward = None if s.outcome.error else s.outcome.score
            self.errors.count(s.outcome)
        return sum(s.stop != "stop" for s in samples)

    def as_read(self, s: Sample, unread: int | None) -> Sample:
        """An answer as a reward model is given it: the ids as they are, and what the template writes behind them."""
        read = read_drawn(s.tokens, self.tail, self.stop_ids, stopped=s.stop == "stop", unread=unread)
        size = len(read.tokens)
        return Sample(read.tokens, [False] * size, [0.0] * size, reads=[read.place], key=s.key, group=s.group)

    def check_room(self, longest: int) -> None:
        """Raise ConfigError for a model that takes fewer tokens than `longest`, those of the longest prompt with an
        answer."""
        longest += len(self.tail.ids) + 1
        for member in self.members:
            limit = member.model.loaded.limit
            if limit and longest > limit:
                raise ConfigError(
                    f"reward_model: {member.choice.path} takes {limit:,} tokens, and the longest prompt with its "
                    f"answer may have {longest:,}; lower --max-tokens or --max-length, or give another model",
                    key="reward_model",
                )

    def bytes(self, ranks: int) -> int:
        """Bytes of the weights on each rank."""
        return sum(frozen_bytes(member.model, ranks=ranks) for member in self.members)

    def lines(self) -> Iterator[str]:
        """What the start of a run says of each."""
        for member in self.members:
            size, total = member.model.compute.itemsize, member.model.frozen.total
            yield (
                f"reward model {member.choice.line()}: {member.choice.folder}, {total:,} parameters, {size} bytes a "
                f"weight, {total * size / 2**30:.2f} GiB"
            )
            for note in member.model.notes:
                yield f"reward model {member.choice.name}: {note}"


def _counts(s: Sample) -> bool:
    """Whether an answer is scored: not if it could not be graded, or does not qualify."""
    return s.outcome is not None and not s.outcome.error and not s.outcome.invalid


def _parts(member: Member, groups: Sequence[Group]) -> Iterator[dict[str, Graded] | Outcome]:
    """What a model says of every answer, in order; an error for one that has a token which it does not know."""
    rows = member.engine.rows
    known = [[s for s in group if max(s.tokens) < rows] for group in groups]
    scores = iter(member.engine.scores(known))
    for s in samples_of(groups):
        if max(s.tokens) < rows:
            yield member.parts(next(scores))
        else:
            yield Outcome(0.0, error=f"{member.choice.name}: the answer has a token beyond its {rows:,}")


def build_reward_models(
    config: RunConfig,
    choices: Sequence[Choice],
    policy: PreTrainedTokenizerBase,
    renderer: Renderer,
    device: torch.device,
    world: OneProcess | Distributed,
) -> RewardModels | None:
    """Load the chosen reward models; None if there are none. policy: the policy's tokenizer, as it trains.

    Raises ConfigError for one that reads other tokens than the policy writes, ModelError as `build_model`.
    """
    if not choices:
        return None
    own = config.model
    for choice in choices:
        theirs = load_tokenizer(str(choice.folder), trust_remote_code=own.trust_remote_code)
        complete(theirs)
        fault = difference(policy, theirs)
        if fault:
            raise ConfigError(f"reward_model: {choice.path} {fault}. {_BY_TEXT}", key="reward_model")
    members = []
    for choice in choices:
        settings = ModelConfig(
            model=str(choice.folder), dtype=own.dtype, layout=own.layout, trust_remote_code=own.trust_remote_code
        )
        model = build_model(settings, device, head=ANY_HEAD)
        options = LearnerOptions(
            budget=budget(config, device), compute=model.compute, long_from=token_layout(model).long_from
        )
        engine = RewardModel(model.policy, options, world)
        members.append(Member(choice, model, engine, model.loaded.model.config.get_text_config().pad_token_id))
    return RewardModels(members, renderer, config.rewards.max_error_share)


def difference(policy: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> str:
    """What of a reward model's tokenizer and template is not the policy's; empty if both read the same."""
    other = other_tokens(policy, theirs)
    if other:
        return other
    if theirs.chat_template != policy.chat_template:
        return "has another chat template than the policy"
    return ""


def other_tokens(policy: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> str:
    """What of a model's vocabulary is not the policy's; empty if both are the same. A pad token that the model has
    beside, which no answer holds, is none."""
    ours, known = policy.get_vocab(), theirs.get_vocab()
    other = sorted(token for token, number in ours.items() if known.get(token) != number)
    if other:
        return f"numbers {len(other):,} of the policy's {len(ours):,} tokens in another way, such as {other[0]!r}"
    further = sorted(known.keys() - ours.keys() - {theirs.pad_token})
    if further:
        return f"has {len(further):,} tokens that the policy does not have, such as {further[0]!r}"
    return ""
