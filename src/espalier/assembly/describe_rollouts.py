"""What a run that answers tasks resolved to: tasks, graders, sampler, steps."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from espalier.config.critic_section import OWN
from espalier.forest.microbatches import Packing

if TYPE_CHECKING:
    from espalier.assembly.session import Session


def on_processes(ranks: int) -> str:
    """How many processes train together, in words."""
    return "1 process" if ranks == 1 else f"{ranks} processes"


def answered_steps(session: Session, limit: int, layout: Packing) -> tuple[list[str], int]:
    """Lines about the rollouts of a run, and the most tokens of a forward: `limit`, or one group or answer of the
    largest size that runs alone."""
    rollouts, rollout, traits = session.rollouts, session.config.rollout, session.traits
    assert rollouts is not None and traits.online is not None
    tasks, graders = session.tasks, rollouts.graders
    online, ranks = traits.online, session.processes.size
    counts: Counter[str] = Counter()
    for store in session.opened.all:
        counts.update(store.stats.graded_by)
    lines = [f"graded by {names}: {count:,} tasks" for names, count in sorted(counts.items())]
    lines += rollouts.plan.lines(graders.pool.notes)
    if rollouts.scorers is not None:
        lines += rollouts.scorers.lines()
    lines.append(rollouts.sampling.note)
    if ranks > 1:
        lines.append(
            "weights are gathered on every process while answers are drawn; each draws its share of the prompts"
        )
    prompts = rollout.prompts_per_step or len(tasks.prompts(0))
    answers = prompts * rollout.group_size
    updates = online.epochs * online.minibatches
    lines.append(
        f"{tasks.steps:,} steps, {tasks.epoch_of(tasks.steps):.2f} epochs; a step draws {prompts:,} prompts x "
        f"{rollout.group_size} answers of at most {rollout.max_tokens:,} tokens ({answers:,} answers) and makes "
        f"{updates} {'update' if updates == 1 else 'updates'} of {math.ceil(answers / online.minibatches):,} answers, "
        "in "
        f"micro-batches of at most {limit:,} tokens on {on_processes(ranks)}"
    )
    lines += _critic(session)
    beside = session.conversations
    if beside is not None and beside.share:
        lines.append(
            f"beside them given texts, {100 * beside.share:g} % of the trained tokens of a step, from "
            f"{sum(map(len, beside.opened.main)):,} groups; their loss is divided by their own tokens"
        )
    elif beside is not None:
        lines.append(
            f"beside them {beside.per_step:,} given conversations a step, {beside.rows.epoch_of(tasks.steps):.2f} "
            f"epochs of {sum(map(len, beside.opened.main)):,}; their loss is divided by their own tokens"
        )
    held = len(tasks.held_out())
    if held:
        how = f"{rollout.eval_samples} drawn answers each" if rollout.eval_samples else "greedy answers"
        lines.append(f"held out: {held:,} tasks, evaluated by {how}")
    longest = max((int(store.lengths.max()) for store in session.opened.main if len(store)), default=0)
    largest = longest + rollout.max_tokens * (rollout.group_size if layout.whole else 1)
    return lines, max(limit, largest, beside.longest if beside is not None else 0)


def _critic(session: Session) -> list[str]:
    """Lines about the critic; none without one."""
    if "values" not in session.traits.needs:
        return []
    section, model = session.config.critic, session.critic_model
    if model is None:
        return ["critic: a head on the policy, which starts at 0"]
    start = "a copy of the policy with a head that starts at 0" if section.critic == OWN else section.critic
    line = f"critic: {start}; trains {model.frozen.trainable:,} of {model.frozen.total:,} parameters"
    if section.critic_pretrain:
        line += f", {section.critic_pretrain} passes over the first answers before anything else"
    if section.critic_warmup:
        line += f", alone in the first {section.critic_warmup:,} steps"
    return [line, *(f"critic: {note}" for note in model.notes if note not in session.model.notes)]
