"""What comes after the last step of a model that scores: calibration, its export, and the workbench."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from espalier import files
from espalier.assembly.model import HeadSpec, build_model
from espalier.assembly.session import Calibrated, Session
from espalier.checks.order import refuse_side
from espalier.config.sections import ModelConfig
from espalier.data.render.answers import read_at
from espalier.data.store.store import Store
from espalier.engines.forwards import Forwards
from espalier.engines.reference import frozen
from espalier.errors import ConfigError
from espalier.loop import checkpoint
from espalier.loop.rundir import RunDir
from espalier.loop.train import Finished
from espalier.models import heads
from espalier.types import NAMELESS, Sample
from espalier.workbench import page, process, reward, steps_page, tables
from espalier.workbench.bootstrap import Resampling
from espalier.workbench.from_groups import Groups, chosen, compared_by_grades, correctness, held_out_group
from espalier.workbench.records import HeldOutGroup
from espalier.workbench.sensitivity import sensitivity
from espalier.workbench.solutions import from_samples

CALIBRATED = 1024  # training groups whose answers are scored for the calibration, evenly spread
PROBED = 16  # held-out groups scored in other orders and alone
CHUNK = 64

Scores = list[tuple[float, ...]]
Report = dict[str, Any]


def finish(session: Session, finished: Finished, run: RunDir) -> None:
    """Calibrate the model that was chosen, write it as `model/`, and judge it on held-out data."""
    if finished.chosen is not None and finished.chosen.name != checkpoint.step_name(finished.state.step):
        session.learner.load(checkpoint.role_folder(finished.chosen, "policy"))
    _calibrate(session)
    session.learner.export(run.model)
    held = held_out(session, session.config.judge.judged)
    refuse_side(session.opened, [group for _, group in held], held=True)
    judge(session, held, run)


def judge(session: Session, groups: Groups, run: RunDir) -> None:
    """Score groups, print what the workbench says of them, and write `workbench.json` and a page beside it."""
    config, console = session.config, session.console
    if not groups:
        console.note("nothing is held out, so the model is not judged: give eval_data or eval_fraction")
        return
    resampling = Resampling(seed=config.loop.seed, resamples=config.judge.resamples)
    steps = session.traits.consumes == "steps"
    report = _judge_steps(session, groups, resampling) if steps else _judge_answers(session, groups, resampling)
    if not session.main:
        return
    name = Path(config.model.model).name
    if steps:
        findings = process.findings(report, report.get("against_outcome"))
        html = steps_page.page(report, f"Process reward model {name}")
    else:
        findings = tables.findings(report)
        html = page.page(report, f"Reward model {name}")
    sections: dict[str, list[tuple[str, str]]] = {}
    for section, what, value in findings:
        if value != tables.NOTHING:
            sections.setdefault(section, []).append((what, value))
    for section, rows in sections.items():
        console.table(section.capitalize(), ("what", "value"), rows)
    run.create(run.workbench, run.workbench_page)
    files.make_dir(run.path)
    files.write_atomic(run.workbench, json.dumps(report, indent=1, allow_nan=False) + "\n")
    files.write_atomic(run.workbench_page, html)
    console.note(f"judged on {len(groups):,} groups: {run.workbench}")


# ---------------------------------------------------------------------------------------------------------- calibration


def _calibrate(session: Session) -> None:
    """Give the head its calibration, if the run asks for one, and print it."""
    calibration = session.traits.calibration
    if calibration is None:
        return
    groups = trained_on(session, CALIBRATED)
    refuse_side(session.opened, [group for _, group in groups], held=False)
    weights = session.traits.weights if session.traits.wants == "grades" else None
    every = calibration.on == "all"
    before = _by_answer(session, groups)
    scores: Scores = []
    for (_, group), of_group in zip(groups, before, strict=True):
        best = chosen(group, weights)
        scores += [of_group[place] for place in range(len(group)) if every or place in best]
    if not scores:
        session.console.note(
            "not calibrated: no answer of the data is better than another to its prompt; use --calibrate-on all"
        )
        return
    model = session.learner.policy.model
    try:
        heads.recalibrate(model, torch.tensor(scores, dtype=torch.float64), calibration.scale)
    except ValueError as error:
        raise ConfigError(f"calibrate_scale: {error}", key="calibrate_scale") from error
    # Packed as before, so that what differs is the calibration alone.
    after = _by_answer(session, groups[:CHUNK])
    samples = [group for _, group in groups]
    session.calibrated = Calibrated(samples, before, after, every, calibration.scale, weights)
    stored = heads.calibration_of(model)
    numbers = [f"scale {s:.4g} bias {b:+.4g}" for s, b in zip(stored.scale, stored.bias, strict=True)]
    session.console.note(
        f"calibrated on {len(scores):,} answers ({calibration.on}) of the training data: {', '.join(numbers)}"
    )


def _by_answer(session: Session, groups: Groups) -> list[Scores]:
    """The score of every answer of every group."""
    scores: list[Scores] = []
    for chunk in _chunks(groups):
        reads = iter(_scores(session, [group for _, group in chunk]))
        scores += [[next(reads)[0] for _ in group] for _, group in chunk]
    return scores


def trained_on(session: Session, count: int) -> Groups:
    """At most `count` groups of the training data, evenly spread over each source."""
    return _spread(list(zip(session.opened.main, session.opened.chosen, strict=True)), count)


def held_out(session: Session, count: int) -> Groups:
    """At most `count` held-out groups, evenly spread over each source."""
    return _spread(list(zip(session.opened.held_out, session.opened.kept_back, strict=True)), count)


def _spread(stores: Sequence[tuple[Store, Any]], count: int) -> Groups:
    """Groups of stores, of each the numbers that are given, or all."""
    numbers = [list(range(len(store))) if kept is None else kept.tolist() for store, kept in stores]
    total = sum(map(len, numbers))
    groups: Groups = []
    for (store, _), mine in zip(stores, numbers, strict=True):
        if not mine:
            continue
        take = len(mine) if total <= count else max(1, len(mine) * count // total)
        for i in range(take):
            groups.append((store.source, store.group(mine[i * len(mine) // take])))
    return groups


def _scores(session: Session, groups: Sequence[list[Sample]]) -> list[Scores]:
    """For every sample, in order, what the head says after each of its reads."""
    return [outputs.scores for outputs in session.learner.say(groups, ["scores"])]


def _chunks(groups: Groups) -> Iterator[Groups]:
    for low in range(0, len(groups), CHUNK):
        yield groups[low : low + CHUNK]


# ------------------------------------------------------------------------------------------------------------- answers


def _judge_answers(session: Session, groups: Groups, resampling: Resampling) -> Report:
    tokenizer, traits = session.model.loaded.tokenizer, session.traits
    labelled = correctness(groups)
    compared_by = _comparison_weights(session)

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids))

    records: list[HeldOutGroup] = []
    for chunk in _chunks(groups):
        reads = iter(_scores(session, [group for _, group in chunk]))
        for source, group in chunk:
            scores = [next(reads)[0] for _ in group]
            known = source in labelled
            record = held_out_group(
                decode, source, group, scores, traits.weights, compared_by, labels_are_correctness=known
            )
            records.append(compared_by_grades(record, traits.weights) if traits.wants == "grades" else record)
    alone = [_unjudged(group) for _, group in groups[:PROBED]]  # in any order, one by one
    probe = sensitivity(partial(_scores, session), alone, seed=session.config.loop.seed)
    people = {"" if name == NAMELESS else name: weight for name, weight in _people_weights(session).items()}
    return reward.judge(records, resampling, probe, people)


def _unjudged(group: Sequence[Sample]) -> list[Sample]:
    return [replace(s, beats=[], ties=[]) for s in group]


def _comparison_weights(session: Session) -> list[float]:
    """What each dimension of the data's grades weighs in comparisons that are made of them."""
    weights = session.config.preference.weights
    return [weights.get(name, 0.0) if weights else 1.0 for name in session.opened.dimensions]


def _people_weights(session: Session) -> dict[str, float]:
    """What each dimension of the data's grades weighs in people's total: as comparisons were made of them if
    `score_weights` says so, else as in the model's total, else alike."""
    weights = session.config.preference.weights or session.traits.dimensions
    return {name: weights.get(name, 0.0) if weights else 1.0 for name in session.opened.dimensions}


# --------------------------------------------------------------------------------------------------------------- steps


def _judge_steps(session: Session, groups: Groups, resampling: Resampling) -> Report:
    samples = [group for _, group in groups]
    reads: list[Scores] = []
    for chunk in _chunks(groups):
        reads += _scores(session, [group for _, group in chunk])
    solutions = from_samples(samples, reads)
    report = process.process(solutions, resampling)
    path = session.config.judge.outcome_model
    if path:
        score = _outcome_scorer(session, path)
        whole = [[replace(s, grades=[]) for s in group] for group in samples]
        scores: list[float] = []
        for low in range(0, len(whole), CHUNK):
            scores += [of_solution[0] for of_solution in score(whole[low : low + CHUNK])]
        report["against_outcome"] = process.against_outcome(solutions, scores, resampling)
    return report


def _outcome_scorer(session: Session, path: str) -> Callable[[Sequence[list[Sample]]], Scores]:
    """Scores of an outcome reward model for whole solutions. Raises ConfigError for one with another tokenizer."""
    own, learner = session.config.model, session.learner
    settings = ModelConfig(model=path, dtype=own.dtype, layout=own.layout, template=own.template)
    model = build_model(settings, learner.device, head=HeadSpec((), "response", trained=False))
    if model.loaded.tokenizer.get_vocab() != session.model.loaded.tokenizer.get_vocab():
        raise ConfigError(f"outcome_model {path} has another tokenizer; expected the model's", key="outcome_model")
    forwards: Forwards = frozen(model.policy, learner.options, learner.world)

    # Where transformers reads that model: behind what the template writes after the solution.
    unread = model.loaded.model.config.get_text_config().pad_token_id
    left_open = session.renderer.chats.tail.left_open

    def read(s: Sample) -> Sample:
        written = len(s) - (left_open and s.stop == "stop")
        return replace(s, reads=[read_at(s.tokens[:written], unread)])

    def score(groups: Sequence[list[Sample]]) -> Scores:
        groups = [[read(s) for s in group] for group in groups]
        return [outputs.scores[0] for outputs in forwards.say(groups, ["scores"], calibrated=True)]

    return score
