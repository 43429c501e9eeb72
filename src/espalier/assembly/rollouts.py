"""From a session to its rollouts: who grades its tasks, how answers are drawn, and the source of the loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from espalier.assembly.reward_models import RewardModels
from espalier.assembly.sampling import Sampling, build_sampler
from espalier.config.sampling import SamplingConfig
from espalier.engines.protocols import Sampler, SamplingParams
from espalier.loop.answers import Report
from espalier.loop.journal import Journal, journal_path
from espalier.loop.offline import OfflineSource
from espalier.loop.rollout import RolloutSource
from espalier.loop.source import Source
from espalier.rewards import build
from espalier.rewards.builtin import BUILTIN
from espalier.rewards.graders import WorkerGraders

if TYPE_CHECKING:
    from espalier.assembly.session import Session


@dataclass(slots=True)
class Rollouts:
    """What draws and grades the answers to a session's tasks.

    plan: the rewards that were asked for, and the verifiers that tasks name. params: how answers are drawn.
    scorers: the reward models; None without any.
    """

    plan: build.Plan
    graders: WorkerGraders
    sampling: Sampling
    params: SamplingParams
    scorers: RewardModels | None = None

    @property
    def sampler(self) -> Sampler:
        return self.sampling.sampler


def build_rollouts(
    session: Session, bounds: Mapping[str, int] | None = None, scorers: RewardModels | None = None
) -> Rollouts:
    """The sampler and the graders of a session, whose policy is the one that trains (sharded already, if it will be).

    bounds: the sampler's rows and tokens, in place of defaults that depend on the memory that is free now. scorers: the
    run's reward models.

    Raises ConfigError and EspalierError for rewards that cannot run, and for a sampler that the model does not have.
    """
    config, loaded = session.config, session.model.loaded
    rollout, bounds = config.rollout, bounds or {}
    params = params_of(rollout, session.renderer.stop_ids, config.loop.seed)
    longest = max((int(store.lengths.max()) for store in session.opened.all if len(store)), default=0)
    if scorers is not None:
        scorers.check_room(longest + rollout.max_tokens)
    sampling = build_sampler(
        loaded,
        session.model.policy,
        kind=rollout.sampler,
        rows=rollout.sampler_rows or bounds.get("rows", 0),
        tokens=rollout.sampler_tokens or bounds.get("tokens", 0),
        longest=longest + rollout.max_tokens,
        most=most_answers(session),
    )
    plan = build.plan(config.rewards, BUILTIN, verifiers=verifiers_of(session))
    graders = plan.start(decoder(session), stop=params.stop)
    return Rollouts(plan, graders, sampling, params, scorers)


def most_answers(session: Session) -> int:
    """The most answers that a rank draws at the same time, in a step or in an evaluation: no more rows are of use."""
    rollout, ranks = session.config.rollout, session.processes.size
    prompts = rollout.prompts_per_step or len(session.tasks.prompts(0))
    held_out = sum(session.opened.sizes_held)
    return max(-(-prompts // ranks) * rollout.group_size, -(-held_out // ranks) * max(1, rollout.eval_samples))


def params_of(config: SamplingConfig, stop_ids: Sequence[int], seed: int) -> SamplingParams:
    """How answers are drawn that end at these stop ids, at those strings, or after `max_tokens`."""
    return SamplingParams(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        stop=tuple(sorted(stop_ids)),
        stop_strings=config.stop_strings,
        seed=seed,
    )


def decoder(session: Session) -> Callable[[Sequence[int]], str]:
    """Text of token ids, special tokens kept, nothing tidied up."""
    tokenizer = session.model.loaded.tokenizer

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return decode


def verifiers_of(session: Session) -> list[str]:
    """The built-in rewards that grade some of the session's tasks, in a fixed order."""
    names = {name for store in session.opened.all for key in store.stats.graded_by for name in key.split(" + ")}
    return sorted(names & BUILTIN.keys())


def build_source(session: Session, folder: Path, report: Report) -> Source:
    """The source of the loop: rows as they are, or answers to tasks, with a journal of their outcomes in `folder`.

    report: see `Answers`.
    """
    config, rollouts, world = session.config, session.rollouts, session.processes
    if rollouts is None:
        return OfflineSource(session.rows)
    fingerprint = json.dumps(rollouts.plan.pins(), sort_keys=True)
    return RolloutSource(
        session.tasks,
        rollouts.sampler,
        rollouts.graders,
        config.algorithm,
        config.rollout,
        rollouts.params,
        world,
        Journal(journal_path(folder, world.rank), fingerprint),
        decoder(session),
        skip_checks=config.loop.skip_checks,
        report=report,
        max_error_share=config.rewards.max_error_share,
        given=session.conversations.given(_minibatches(session)) if session.conversations else None,
        scorers=rollouts.scorers,
    )


def _minibatches(session: Session) -> int:
    online = session.traits.online
    return online.minibatches if online is not None else 1
