"""The table of checks before the first step, and the order in which they run.

Most post-training bugs are silent: the loss falls and the model is wrong. So every run looks at its own model and data
before it trains, and stops with the cause. `--skip-checks NAME` leaves a check out, and the printed table says so.

This module loads without torch, because the help names the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from espalier.checks import (
    adapter,
    calibration,
    controls,
    credit,
    critic,
    data,
    exact,
    export,
    gradients,
    judged,
    judgements,
    losses,
    model,
    optimizer,
    order,
    preference,
    raw_rows,
    reward_model,
    rollouts,
    table,
)
from espalier.checks.table import Outcome, skipped
from espalier.engines.protocols import together
from espalier.errors import CheckError, ConfigError, nearest

if TYPE_CHECKING:
    from espalier.assembly.session import Session
    from espalier.checks.evidence import Evidence

When = Literal["before", "after", "end"]


def before(session: Session) -> When | None:
    """Before there is a learner."""
    return "before"


def after(session: Session) -> When | None:
    """Once there is a learner, of which nothing is updated."""
    return "after"


def unsharded(session: Session) -> When | None:
    """While the model is in one piece. One process checks it after the learner has cast it to the dtype that trains;
    several check it before they shard it."""
    return "after" if session.processes.size == 1 else "before"


def given_rows(session: Session) -> When | None:
    """In runs that learn from rows as they are, before there is a learner."""
    return "before" if session.rollouts is None else None


def given_losses(session: Session) -> When | None:
    """In runs that learn from rows as they are, once there is a learner."""
    return "after" if session.rollouts is None else None


def answering(session: Session) -> When | None:
    """In runs that answer tasks, once there is a learner."""
    return None if session.rollouts is None else "after"


def valued(session: Session) -> When | None:
    """In runs with a critic."""
    return "after" if "values" in session.traits.needs else None


def conversing(session: Session) -> When | None:
    """In runs that train given conversations beside their answers."""
    return None if session.conversations is None else "before"


def scored(session: Session) -> When | None:
    """In runs whose answers reward models score."""
    return "after" if session.rollouts is not None and session.rollouts.scorers is not None else None


def compared(session: Session) -> When | None:
    """In runs that compare the policy with a reference: those that learn from judgements, or answer tasks."""
    if session.rollouts is None:
        return referred(session)
    return "after" if "ref_logprobs" in session.traits.needs else None


def judging(session: Session) -> When | None:
    """In runs that learn from judgements."""
    return "after" if session.traits.consumes == "ranking" else None


def referred(session: Session) -> When | None:
    """In runs that learn from judgements against a reference."""
    return judging(session) if "ref_logprobs" in session.traits.needs else None


def ended(session: Session) -> When | None:
    """At the end of a run, when `model/` is written."""
    return "end"


def continued(session: Session) -> When | None:
    """In runs that continue an adapter, before its weights are cast or sharded."""
    return "before" if session.config.model.adapter else None


def calibrated(session: Session) -> When | None:
    """At the end of runs whose scores are calibrated."""
    return "end" if session.traits.calibration is not None else None


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name, what must hold, the function that finds out, and when it runs (None: not in this run)."""

    name: str
    about: str
    function: Callable[[Evidence], Outcome]
    when: Callable[[Session], When | None]


CHECKS = (
    Check("rows", "Every row read is kept or rejected; at most 10 % lose their tail.", data.check_rows, before),
    Check("trained", "Some tokens are trained.", data.check_trained, given_rows),
    Check("stop", "Answers that are not cut train a stop token.", data.check_stop, given_rows),
    Check("bos", "Each sample has one begin-of-text token, if the tokenizer has one.", data.check_bos, before),
    Check("mask", "Trained tokens decode to what should be trained, nothing else does.", exact.check_mask, before),
    Check(
        "conversations",
        "Given conversations train each answer and its stop token, and nothing else.",
        exact.check_conversations,
        conversing,
    ),
    Check(
        "controls",
        "Strings that look like control tokens are not in what is trained, added tokens are used.",
        controls.check_controls,
        given_rows,
    ),
    Check("template", "Rows render to the tokens that are stored, twice the same.", data.check_template, before),
    Check("judgements", "Stored comparisons, labels, grades follow their rows.", judged.check_judgements, given_rows),
    Check("raw_rows", "Samples say what the columns of their raw rows say.", raw_rows.check_raw_rows, given_rows),
    Check("held_out", "No row and no prompt is both trained on and held out.", order.check_held_out, before),
    Check("order", "Each epoch draws every row once; shares and steps are as asked.", order.check_order, before),
    Check("layout", "The layout in use says what one-by-one forwards say.", model.check_layout, unsharded),
    Check(
        "gradients",
        "The layout in use gives the gradients of one-by-one forwards.",
        gradients.check_gradients,
        unsharded,
    ),
    Check("adapter", "An adapter that is continued starts from its file.", adapter.check_adapter, continued),
    Check("loss", "The first loss is finite and better than twice a uniform guess.", model.check_loss, after),
    Check("update", "One step changes most weights that have a gradient.", model.check_update, after),
    Check("optimizer", "The update is AdamW's, and moves and decays what it should.", optimizer.check_optimizer, after),
    Check("preferences", "The judgements offer what the loss learns from.", judgements.check_preferences, judging),
    Check("reference", "The reference is the policy as it starts.", preference.check_reference, compared),
    Check(
        "reference_stays",
        "The reference stays as it is while the policy moves.",
        preference.check_reference_stays,
        compared,
    ),
    Check("first_loss", "The first loss is the one that arithmetic gives.", losses.check_first_loss, given_losses),
    Check("evaluation", "An evaluation in batches gives the loss of all.", losses.check_evaluation, given_losses),
    Check(
        "accumulation",
        "Loss and gradient are the same in one forward and in three.",
        gradients.check_accumulation,
        after,
    ),
    Check("known_answers", "Built-in rewards grade known answers as declared.", rollouts.check_known, answering),
    Check("golds", "The data's own answers get the best score.", rollouts.check_golds, answering),
    Check("empty_answers", "Answers that say nothing get less.", rollouts.check_empty, answering),
    Check(
        "reward_model",
        "Reward models score an answer alone as among others, and as transformers does.",
        reward_model.check_reward_models,
        scored,
    ),
    Check("credit", "Answers get their own rewards, and the loss pulls by them.", credit.check_credit, answering),
    Check("critic", "A critic's first values are 0, or a reward model's scores.", critic.check_critic, valued),
    Check("sampler", "Sampler and learner say the same of a prompt and its answer.", rollouts.check_sampler, answering),
    Check("ratio", "exp(learner - sampler) is 1 on answers to the first tasks.", rollouts.check_ratio, answering),
    Check("fits", "The largest step fits in memory, beside the sampler.", rollouts.check_fits, answering),
    Check(
        "calibration",
        "Reference answers have mean 0 (and deviation 1 if asked) after training.",
        calibration.check_calibration,
        calibrated,
    ),
    Check("export", "`model/`, loaded by transformers alone, is the trained model.", export.check_export, ended),
)
LATER = {
    "length": "Not more than half of the first rollout ends at max_tokens.",
    "handover": "After every update the sampler says what the learner says, and not what it said before.",
}
"""Checks that the loop of a run that answers tasks makes, `stop` beside them."""
NAMES = (*(check.name for check in CHECKS), *LATER)


def run_checks(session: Session) -> dict[str, Outcome]:
    """Build the session's learner and reference, and run every check that applies; nothing is updated.

    Raises ConfigError for a name in `skip_checks` that no check has.
    """
    from espalier.assembly.critic import build_critic
    from espalier.assembly.learner import build_learner
    from espalier.assembly.reference import build_reference
    from espalier.checks.evidence import Evidence

    skip = session.config.loop.skip_checks
    refuse_unknown(skip)
    evidence = Evidence(session)
    outcomes: dict[str, Outcome] = {}
    _run("before", evidence, skip, outcomes)
    evidence.keep_loaded()
    build_learner(session)
    build_reference(session)
    build_critic(session)
    _run("after", evidence, skip, outcomes)
    return {name: outcomes[name] for name in NAMES if name in outcomes}


def check_end(session: Session, chosen: Path) -> None:
    """Run the checks of what a run wrote from the checkpoint `chosen`, whose weights the learner holds, and print what
    they found. Raises CheckError, on every rank, if one failed."""
    from espalier.checks.evidence import Evidence

    outcomes: dict[str, Outcome] = {}
    evidence, skip = Evidence(session, chosen), session.config.loop.skip_checks
    together(lambda: _run("end", evidence, skip, outcomes), "the export was not checked", session.processes, CheckError)
    for name, o in outcomes.items():
        if session.main and name not in skip:
            session.console.note(f"{name}: {o.verdict}: {o.value}")
    together(lambda: table.settle(outcomes, None), "the export is wrong", session.processes, CheckError)


def refuse_unknown(names: Sequence[str]) -> None:
    """Raise ConfigError for a name that no check has."""
    for name in names:
        if name not in NAMES:
            way_out = nearest(name, NAMES)
            raise ConfigError(
                f"skip_checks: got {name}, expected some of {', '.join(NAMES)}.{way_out}", key="skip_checks"
            )


def _run(when: When, evidence: Evidence, skip: Sequence[str], outcomes: dict[str, Outcome]) -> None:
    """Run the checks of one moment in the order of the table."""
    for check in CHECKS:
        if check.when(evidence.session) == when:
            outcomes[check.name] = skipped() if check.name in skip else check.function(evidence)


def settle(session: Session, outcomes: dict[str, Outcome], path: Path | None) -> None:
    """Print what the checks found, write it to `path`, and raise CheckError if one failed."""
    rows = [(name, o.value, o.limit, o.verdict) for name, o in outcomes.items()]
    session.console.table("Checks", ("check", "value", "limit", "verdict"), rows)
    for name, outcome in outcomes.items():
        if outcome.verdict == "warn":
            session.console.note(f"{name}: {outcome.way_out}")
    table.settle(outcomes, path)
