"""Checks of runs that learn from their own answers: sampler and learner say the same, and the largest step fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from espalier.checks import rewards
from espalier.checks.rehearsal import first_step
from espalier.checks.table import Outcome, failed, passed
from espalier.loop.canary import Canary, allowed, apart, by_prefix, rounding, sampled
from espalier.types import Sample, Task

if TYPE_CHECKING:
    from espalier.assembly.session import Session
    from espalier.checks.evidence import Evidence

Groups = list[list[Sample]]
SPREAD = 512
"""Tasks among which those that the graders are tried on are chosen."""
_OTHER = (
    "Sampler and learner compute different things: what is learned is not about what was drawn. Draw with "
    "--sampler generate, and report this."
)


def check_known(evidence: Evidence) -> Outcome:
    """Every built-in reward of the run on its known answers."""
    assert evidence.session.rollouts is not None
    return rewards.check_known_answers(evidence.session.rollouts.plan)


def check_golds(evidence: Evidence) -> Outcome:
    """The data's own answers."""
    assert evidence.session.rollouts is not None
    return rewards.check_golds(evidence.session.rollouts.graders, some_tasks(evidence.session))


def check_empty(evidence: Evidence) -> Outcome:
    """Answers that say nothing."""
    session = evidence.session
    assert session.rollouts is not None
    tokenizer, stop = session.model.loaded.tokenizer, session.rollouts.params.stop[:1]

    def encode(text: str) -> list[int]:
        return [*tokenizer.encode(text, add_special_tokens=False), *stop]

    return rewards.check_empty_answers(session.rollouts.graders, some_tasks(session), encode)


def some_tasks(session: Session) -> list[Task]:
    """At most 512 tasks of the run, spread evenly over each source."""
    tasks = []
    for store in session.opened.main:
        count = min(len(store), SPREAD // len(session.opened.main))
        tasks += [store.task(i * len(store) // count) for i in range(count)]
    return tasks


def canary_of(session: Session) -> Canary:
    """The canary of a session: its first task's prompt."""
    assert session.rollouts is not None
    (prompt, _), *_ = session.tasks.prompts(0)
    return Canary(session.rollouts.sampler, session.learner, prompt.tokens, session.rollouts.params)


def check_sampler(evidence: Evidence) -> Outcome:
    """What sampler and learner say of a prompt and the continuation that the sampler draws."""
    session = evidence.session
    canary = canary_of(session)
    measured = canary.start()
    session.canary = canary
    value = f"{measured.difference:.1e} nats a token between sampler and learner"
    limit = f"<= {canary.bound:.1e} (other forwards change {measured.rounding:.1e})"
    return passed(value, limit) if measured.difference <= canary.bound else failed(value, limit, _OTHER)


def check_ratio(evidence: Evidence) -> Outcome:
    """exp(learner - sampler) on answers to the first tasks, drawn as the run draws."""
    session = evidence.session
    groups = [group for group in first_step(session) if group[0].part == "main"]
    return ratio(groups, [outputs.logprobs for outputs in session.learner.say(bare(groups), ["logprobs"])], session)


def ratio(groups: Groups, logprobs: list[list[float]], session: Session) -> Outcome:
    """The largest |learner - sampler| in nats a token; at most what `allowed` makes of what other forwards
    change: another packing and, if that is not enough, one that ends with the token."""
    difference = apart([sampled(s) for g in groups for s in g], logprobs)

    def say(groups: Sequence[list[Sample]]) -> list[list[float]]:
        return [outputs.logprobs for outputs in session.learner.say(groups, ["logprobs"])]

    seen = rounding(say, bare(groups))
    if difference > allowed(seen):
        for group in groups[:2]:
            seen = max(seen, by_prefix(say, group[0]))
    bound = allowed(seen)
    value, limit = f"{difference:.1e} nats a token on {sum(map(len, groups))} answers", f"<= {bound:.1e}"
    return passed(value, limit) if difference <= bound else failed(value, limit, _OTHER)


def bare(groups: Groups) -> Groups:
    """Copies without streams."""
    return [[replace(s, streams={}) for s in group] for group in groups]


# -------------------------------------------------------------------------------------------------------------- memory


def check_fits(evidence: Evidence) -> Outcome:
    """A made-up forward and backward pass of the largest size that a step can have (its longest answers, and its
    longest given conversation), with the sampler's keys and values allocated: what does not fit in memory fails now,
    and not after a day."""
    import torch

    from espalier.loop.annotate import annotate
    from espalier.loop.progress import peak_memory

    session = evidence.session
    answers, beside = largest(session), longest_conversation(session)
    groups = [*answers, *beside]
    learner, algorithm = session.learner, session.config.algorithm
    critic = session.critic if session.critic_model is not None else None
    value = f"{_tokens(answers):,} tokens of {sum(map(len, answers))} answers"
    if beside:
        value += f" and {_tokens(beside):,} of a conversation"
    limit = "one forward and backward pass fits in memory"
    states = torch.get_rng_state()
    rollout, prompt = session.config.rollout, longest_prompt(session)
    most = rollout.max_tokens
    try:
        assert session.rollouts is not None
        session.rollouts.sampler.allocate(rollout.prompts_per_step or len(session.tasks.prompts(0)), prompt, most)
        state = annotate(groups, algorithm, session.roles, session.given)
        learner.forward_backward(groups, algorithm.loss, state, 0)
        if critic is not None:
            critic.forward_backward(answers, algorithm.value_loss, state, 0)
    except torch.OutOfMemoryError as error:
        lengths = "--max-tokens, --max-length" if beside else "--max-tokens"
        way_out = f"Lower --tokens-per-microbatch, {lengths} or --sampler-tokens, or give --grad-checkpointing."
        return failed(f"{value}: {str(error).splitlines()[0]}", limit, way_out)
    finally:
        for one in (learner, critic):
            if one is not None:
                one.drop_gradient()
        torch.set_rng_state(states)
    return passed(f"{value}; peak {peak_memory() / 2**30:.2f} GiB", limit)


def longest_prompt(session: Session) -> int:
    """Tokens of the longest prompt that is trained on."""
    return max(int(store.lengths.max()) for store in session.opened.main if len(store))


def largest(session: Session) -> Groups:
    """One group: as many answers of the full length to the longest prompt as fit into a micro-batch, at least the
    fewest that the algorithm compares, at most a whole group. The ids are made up."""
    rollout, online = session.config.rollout, session.traits.online
    vocabulary = session.model.loaded.model.config.get_text_config().vocab_size
    longest = longest_prompt(session)
    least = online.least_group if online is not None else 1
    budget = session.learner.options.budget
    count = min(rollout.group_size, max(least, (budget - longest) // rollout.max_tokens))
    group = []
    for k in range(count):
        s = Sample(key=k, reward=float(k % 2), stop="length")
        s.append([i % vocabulary for i in range(longest)], trained=False)
        ids = [(7919 * (k + 1) + 31 * i) % vocabulary for i in range(rollout.max_tokens)]
        s.append(ids, trained=True, logprobs=[-1.0] * len(ids))
        group.append(s)
    return [group]


def longest_conversation(session: Session) -> Groups:
    """A made-up conversation with as many tokens as the longest given one, all trained; none if none is given."""
    if session.conversations is None:
        return []
    vocabulary = session.model.loaded.model.config.get_text_config().vocab_size
    # In the part that the run's are in: another one would meet another loss.
    s = Sample(group=1, key=-1, part=session.conversations.opened.main[0].part)
    s.append([(104729 + 17 * i) % vocabulary for i in range(session.conversations.longest)], trained=True)
    return [[s]]


def _tokens(groups: Groups) -> int:
    return sum(len(s) for group in groups for s in group)
