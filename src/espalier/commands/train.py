"""`espalier sft`, `dpo`, ...: a run from its config to its model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier import files
from espalier.assembly.data import cache_folder
from espalier.assembly.runs import RunConfig, judge_of
from espalier.config.options import dump, flat
from espalier.engines.protocols import together
from espalier.errors import CheckpointError
from espalier.loop import checkpoint
from espalier.loop.metrics import MetricsFile, read_lines
from espalier.loop.progress import Progress, peak_memory
from espalier.loop.rundir import HEADING, RunDir, resumption

if TYPE_CHECKING:
    from espalier.assembly.parts import Parts
    from espalier.data.dataset import Opened
    from espalier.loop.train import Finished


def run(config: RunConfig) -> None:
    """Train. An interrupt says how to go on."""
    try:
        train(config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(resumption(Path(config.loop.out))) from None


def train(config: RunConfig) -> Path:
    """Train; returns the exported model's folder (the newest checkpoint's where a signal ended the run). With
    `eval_only`, judge a scoring model instead; returns the run's folder."""
    loop = config.loop
    run = RunDir(Path(loop.out))
    if main := int(os.environ.get("RANK", "0")) == 0:  # before anything slow: the folder may be refused
        text = f"{HEADING}{config.command}\n{dump(config)}"
        run = RunDir.open(
            run.path, text, resume=loop.resume, overwrite=loop.overwrite, accept_changes=loop.accept_changes
        )
    from espalier.assembly import learner as build
    from espalier.assembly.describe import describe, describe_data
    from espalier.assembly.parts import parts
    from espalier.checks.start import prepared, settle

    try:
        with parts(config) as p:
            entering = f"{run.path} was not entered"
            together(lambda: _enter(config, p, run) if main else None, entering, p.world, CheckpointError)
            if judge_of(config).eval_only:
                from espalier.commands import judge as judging

                describe_data(config, p)
                learner = build.build_learner(config, p.model, p.renderer, p.world, p.device)
                judging.judge(config, p, learner, judging.trained_on(p, judge_of(config).judged), run.path)
                return run.path
            describe(config, p)
            learner, reference, checks = prepared(config, p)
            settle(p.say, checks, run.preflight if main else None)
            finished = _train(config, p, learner, reference, run)
            if finished.chosen is None:
                name = checkpoint.step_name(finished.state.step)
                saved = f"stopped by {finished.stopped}, saved as {name}"
                if finished.stopped == "SIGINT":  # whoever catches it says how to go on
                    p.say.note(saved)
                    raise KeyboardInterrupt
                p.say.note(f"{saved}; {resumption(run.path)}")
                return run.checkpoints / name / "model"
            _finish(config, p, learner, finished, run)
            return run.model
    finally:
        run.close()


def _enter(config: RunConfig, p: Parts, run: RunDir) -> None:
    """Write down what the run computes from, or, on resuming, compare it with what was written."""
    from espalier.assembly import learner as build
    from espalier.assembly.reference import weights_of

    held = [f"{s.key} {n}" for s, n in zip(p.opened.held_out, p.opened.sizes_held, strict=True)]
    run.pin("data", {"plan": p.dataset.plan.fingerprint, "steps": p.dataset.steps, "validation": held})
    cache = cache_folder(config.data.cache)
    run.pin("model", weights_of(p.model.loaded, config.model.adapter, cache))
    run.pin("machine", _machine(p, build.budget(config, p.device)))
    _write_rejected(p.opened, run.rejected)


def _finish(config: RunConfig, p: Parts, learner: Any, finished: Finished, run: RunDir) -> None:
    """Put the chosen model in place; a model that scores is calibrated and judged first."""
    assert finished.chosen is not None
    name = finished.chosen.name
    if p.world.rank == 0:
        if name != checkpoint.step_name(finished.state.step):  # written a while ago
            checkpoint.verify(finished.chosen)
        files.restore(run.path, run.model.name)  # what a kill inside the copy left
    if config.algorithm.traits.reads:
        from espalier.commands import judge as judging

        judging.finish(config, p, learner, finished, run)
    elif p.world.rank == 0:
        files.copy_dir(finished.chosen / "model", run.model)
    why = f" ({finished.stopped})" if finished.stopped else ""
    best = finished.state.best_step
    if best and checkpoint.step_name(best) != name:
        p.say.note(f"{checkpoint.step_name(best)} was better on held-out data; it is kept in {run.checkpoints}")
    p.say.note(f"done after step {finished.state.step}{why}: {run.model} holds {name}")
    p.world.barrier()


def _machine(p: Parts, budget: int) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if p.device.type == "cuda" else "cpu"
    threads = torch.get_num_threads() if p.device.type == "cpu" else 0
    return {"device": name, "threads": threads, "ranks": p.world.size, "tokens_per_microbatch": budget}


def _write_rejected(opened: Opened, path: Path) -> None:
    from espalier.data.store.rejected import write_rejected

    if any(s.stats.rejected for s in opened.all):
        write_rejected(opened.all, path)


# ----------------------------------------------------------------------------------------------------------- training


def _train(config: RunConfig, p: Parts, learner: Any, reference: Any, run: RunDir) -> Finished:
    from espalier.loop.track import Trackers
    from espalier.loop.train import Reporters, Trainer
    from espalier.watch.preference import PreferenceWatch, explain

    loop = config.loop
    main = p.world.rank == 0
    found = checkpoint.choose(run.checkpoints, loop.resume_from, world=p.world) if loop.resume else None
    if found is not None and found.state().step > p.dataset.steps:
        raise CheckpointError(
            f"{found.path.name} is beyond the {p.dataset.steps} steps of this config; give more --steps or --epochs"
        )
    start = found.state().step if found else 0
    if found and main:
        for path in checkpoint.set_aside(run.checkpoints, start):
            p.say.note(f"set aside {path}")
    metrics = MetricsFile(run.metrics) if main else None
    if metrics is not None and found is None:
        metrics.truncate_to(0)
    trackers = Trackers(run.path, loop.track, flat(config), step=start, rank=p.world.rank)
    progress = Progress(p.dataset.steps, rank=p.world.rank)
    settings = {"warmup": round(config.optim.warmup * p.dataset.steps)}
    watch = PreferenceWatch(**settings).see if config.algorithm.traits.consumes == "ranking" else None
    try:
        with progress:
            trainer = Trainer(
                learner, config.algorithm, p.dataset, optim=config.optim, loop=loop, root=run.checkpoints,
                metrics=metrics, reporters=Reporters(progress.update, trackers.log, progress.note, peak_memory),
                reference=reference, watch=watch,
            )  # fmt: skip
            if found is not None:
                trainer.resume(found)
                if trainer.watch is not None and main:
                    trainer.watch = PreferenceWatch.replay(read_lines(run.metrics), **settings).see
                progress.note(f"resumed from {found.path.name}")
            finished = trainer.run()
        if watch is not None and main:
            files.write_atomic(run.findings, files.json_text(explain(read_lines(run.metrics), **settings)))
        return finished
    finally:
        trackers.close()
        if metrics is not None:
            metrics.close()


# ------------------------------------------------------------------------------------------------------ other commands
