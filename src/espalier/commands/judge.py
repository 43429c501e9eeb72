"""What comes after the last step of a model that scores: calibration, its export, and the workbench."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from espalier import files
from espalier.algorithms.dimensions import NAMELESS, total_weights
from espalier.assembly.model import Head, build_model, kind_of
from espalier.assembly.parts import Parts
from espalier.assembly.runs import RunConfig, judge_of, preference_of
from espalier.config.sections import ModelConfig
from espalier.data.render.rankings import score_weights
from espalier.data.store.store import Store
from espalier.engines.forwards import Forwards
from espalier.engines.learner import TorchLearner
from espalier.engines.reference import frozen
from espalier.errors import ConfigError
from espalier.loop import checkpoint
from espalier.loop.rundir import RunDir
from espalier.loop.train import Finished
from espalier.models import heads
from espalier.types import Sample
from espalier.workbench import page, process, reward, steps_page, tables
from espalier.workbench.bootstrap import Resampling
from espalier.workbench.from_groups import Groups, chosen, compared_by_grades, correctness, held_out_group
from espalier.workbench.records import HeldOutGroup
from espalier.workbench.sensitivity import sensitivity
from espalier.workbench.solutions import from_samples

CALIBRATED = 1024  # training groups whose answers are scored for the calibration, evenly spread
PROBED = 16  # held-out groups scored in other orders and alone
CHUNK = 64


def finish(config: RunConfig, p: Parts, learner: TorchLearner, finished: Finished, run: RunDir) -> None:
    """Calibrate the model that was chosen, write it as `model/`, and judge it on held-out data."""
    if finished.chosen is not None and finished.chosen.name != checkpoint.step_name(finished.state.step):
        learner.load(finished.chosen)
    if note := _calibrate(config, p, learner):
        p.say.note(note)
    learner.export(run.model)
    judge(config, p, learner, held_out(p, judge_of(config).judged), run.path)


def judge(config: RunConfig, p: Parts, learner: TorchLearner, groups: Groups, out: Path) -> None:
    """Score groups, print what the workbench says of them, and write `workbench.json` and a page beside it."""
    if not groups:
        p.say.note("nothing is held out, so the model is not judged: give eval_data or eval_fraction")
        return
    how = Resampling(seed=config.loop.seed, resamples=judge_of(config).resamples)
    steps = kind_of(config) == "steps"
    report = _steps(config, p, learner, groups, how) if steps else _answers(config, p, learner, groups, how)
    if p.world.rank:
        return
    sections: dict[str, list[tuple[str, str]]] = {}
    for section, what, value in (
        process.findings(report, report.get("against_outcome")) if steps else tables.findings(report)
    ):
        if value != tables.NOTHING:
            sections.setdefault(section, []).append((what, value))
    for section, rows in sections.items():
        p.say.table(section.capitalize(), ("what", "found"), rows)
    files.make_dir(out)
    files.write_atomic(out / "workbench.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    name = Path(config.model.model).name
    shown = (
        steps_page.page(report, f"Process reward model {name}") if steps else page.page(report, f"Reward model {name}")
    )
    files.write_atomic(out / "workbench.html", shown)
    p.say.note(f"judged on {len(groups):,} groups: {out / 'workbench.json'}")


# ---------------------------------------------------------------------------------------------------------- calibration


def _calibrate(config: RunConfig, p: Parts, learner: TorchLearner) -> str:
    """Give the head its calibration; returns what to say of it."""
    on, scale = getattr(config.algorithm, "calibrate_on", "none"), getattr(config.algorithm, "calibrate_scale", False)
    model = learner.policy.model
    if on == "none":
        return ""
    import torch

    weights, graded = _weights(config), config.algorithm.traits.wants == "grades"
    found: list[tuple[float, ...]] = []
    for groups in _chunks(trained_on(p, CALIBRATED)):
        said = iter(learner.score([g for _, g in groups]))
        for _, group in groups:
            taken = range(len(group)) if on == "all" else chosen(group, weights if graded else None)
            for place, reads in enumerate([next(said) for _ in group]):
                found += reads if place in taken else []
    if not found:
        return "not calibrated: no answer of the data is better than another to its prompt; use --calibrate-on all"
    scores_SK = torch.tensor(found, dtype=torch.float64)
    try:
        heads.recalibrate(model, scores_SK, scale)
    except ValueError as error:
        raise ConfigError(f"calibrate_scale: {error}", key="calibrate_scale") from error
    made = heads.calibration_of(model)
    numbers = ", ".join(f"scale {s:.4g} bias {b:+.4g}" for s, b in zip(made.scale, made.bias, strict=True))
    return f"calibrated on {len(found):,} answers ({on}) of the training data: {numbers}"


def _weights(config: RunConfig) -> list[float]:
    """The weight of each of the head's dimensions in the total."""
    return list(total_weights(getattr(config.algorithm, "dimensions", ())).values()) or [1.0]


def trained_on(p: Parts, count: int) -> Groups:
    """At most `count` groups of the training data, evenly spread over each source."""
    return _spread(list(zip(p.opened.main, p.opened.chosen, strict=True)), count)


def held_out(p: Parts, count: int) -> Groups:
    """At most `count` held-out groups, evenly spread over each source."""
    return _spread(list(zip(p.opened.held_out, p.opened.kept_back, strict=True)), count)


def _spread(stores: Sequence[tuple[Store, Any]], count: int) -> Groups:
    numbers = [list(range(len(s))) if kept is None else kept.tolist() for s, kept in stores]
    total = sum(map(len, numbers))
    out: Groups = []
    for (store, _), mine in zip(stores, numbers, strict=True):
        take = len(mine) if total <= count else max(1, len(mine) * count // total)
        out += [(store.source, store.group(mine[i * len(mine) // take])) for i in range(take if mine else 0)]
    return out


def _chunks(groups: Groups) -> Iterator[Groups]:
    for low in range(0, len(groups), CHUNK):
        yield groups[low : low + CHUNK]


# ------------------------------------------------------------------------------------------------------------- judging


def _answers(config: RunConfig, p: Parts, learner: TorchLearner, groups: Groups, how: Resampling) -> dict[str, Any]:
    weights = _weights(config)
    graded, sources = config.algorithm.traits.wants == "grades", correctness(groups)
    given = score_weights(preference_of(config))
    asked = [given.get(name, 0.0) if given else 1.0 for name in p.opened.dimensions]
    tokenizer = p.model.loaded.tokenizer
    records: list[HeldOutGroup] = []
    for chunk in _chunks(groups):
        said = iter(learner.score([g for _, g in chunk]))
        for source, group in chunk:
            scores = [next(said)[0] for _ in group]
            record = held_out_group(
                lambda ids: str(tokenizer.decode(ids)),
                source,
                group,
                scores,
                weights,
                asked,
                labels_are_correctness=source in sources,
            )
            records.append(compared_by_grades(record, weights) if graded else record)
    alone = [[replace(s, beats=[], ties=[]) for s in g] for _, g in groups[:PROBED]]  # in any order, one by one
    probed = sensitivity(learner.score, alone, seed=config.loop.seed)
    return reward.judge(records, how, probed, {"" if name == NAMELESS else name: w for name, w in _people(config, p)})


def _people(config: RunConfig, p: Parts) -> list[tuple[str, float]]:
    """Dimensions of the data's grades and what they weigh in people's total: as comparisons were made of them where
    `score_weights` says so, else as in the model's total, else alike."""
    asked = score_weights(preference_of(config)) or total_weights(getattr(config.algorithm, "dimensions", ()))
    return [(name, asked.get(name, 0.0) if asked else 1.0) for name in p.opened.dimensions]


def _steps(config: RunConfig, p: Parts, learner: TorchLearner, groups: Groups, how: Resampling) -> dict[str, Any]:
    samples = [group for _, group in groups]
    said = [reads for chunk in _chunks(groups) for reads in learner.score([g for _, g in chunk])]
    solutions = from_samples(samples, said)
    report = process.process(solutions, how)
    if path := judge_of(config).outcome_model:
        outcome = _outcome(config, path, p, learner)
        whole = [[replace(s, reads=[len(s) - 1], grades=[]) for s in g] for g in samples]
        scores = [said[0] for low in range(0, len(whole), CHUNK) for said in outcome(whole[low : low + CHUNK])]
        report["against_outcome"] = process.against_outcome(solutions, scores, how)
    return report


def _outcome(config: RunConfig, path: str, p: Parts, learner: TorchLearner) -> Any:
    """Scores of an outcome reward model for whole solutions."""
    how = config.model
    asked = ModelConfig(model=path, dtype=how.dtype, layout=how.layout, template=how.template)
    found = build_model(asked, learner.device, head=Head((), "response", trained=False))
    if found.loaded.tokenizer.get_vocab() != p.model.loaded.tokenizer.get_vocab():
        raise ConfigError(f"outcome_model {path} has another tokenizer; expected the model's", key="outcome_model")
    forwards: Forwards = frozen(found.policy, learner.options, learner.world)
    calibration = heads.calibration_of(found.policy.model)

    def score(groups: Sequence[list[Sample]]) -> list[tuple[float, ...]]:
        return [tuple(calibration.apply(said)[0].tolist()) for said in forwards.scores(groups)]

    return score
