"""`espalier sft`, `dpo`, ...: a run from its config to its model."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from espalier import files
from espalier.assembly.runs import RunConfig
from espalier.config.options import dump, flat
from espalier.engines.protocols import from_first, together
from espalier.errors import CheckpointError
from espalier.loop import checkpoint
from espalier.loop.metrics import MetricsFile, read_lines
from espalier.loop.older_runs import HEADING
from espalier.loop.progress import Progress, peak_memory
from espalier.loop.rundir import RunDir, resumption

if TYPE_CHECKING:
    from espalier.assembly.session import Session
    from espalier.loop.checkpoint import Checkpoint
    from espalier.loop.train import Finished


def run(config: RunConfig) -> None:
    """Train. An interrupt says how to go on."""
    try:
        train(config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(resumption(Path(config.loop.out))) from None


def train(config: RunConfig) -> Path:
    """Train; returns the exported model's folder (the newest checkpoint's if a signal ended the run). With `eval_only`,
    judge a scoring model instead; returns the run's folder."""
    run = _open(config)
    # What follows imports torch, which takes seconds; a folder that cannot be used is refused before that.
    from espalier.assembly.describe import describe
    from espalier.assembly.session import open_session
    from espalier.checks.start import run_checks, settle

    try:
        with open_session(config, run.pinned("sampler") if config.loop.resume else None) as session:
            if config.judge.eval_only:
                return _judge(session, run)
            _enter(session, run)
            for line in run.notes:
                session.console.note(line)
            describe(session)
            outcomes = run_checks(session)
            run.create(run.preflight)
            settle(session, outcomes, run.preflight if session.main else None)
            finished = _train(session, run)
            if finished.chosen is None:
                return _stopped(session, finished, run)
            _finish(session, finished, run)
            return run.model
    finally:
        run.close()


def _open(config: RunConfig) -> RunDir:
    """The run's folder; rank 0 makes and locks it."""
    loop = config.loop
    if int(os.environ.get("RANK", "0")) != 0:
        return RunDir(Path(loop.out))
    return RunDir.open(
        Path(loop.out),
        f"{HEADING}{config.command}\n{dump(config)}",
        resume=loop.resume,
        overwrite=loop.overwrite,
        accept_changes=loop.accept_changes,
    )


def _enter(session: Session, run: RunDir) -> None:
    """Write down what the run computes from, or, on resuming, compare it with what was written. If rank 0 fails, all
    raise."""

    def pin() -> None:
        if session.main:
            _pin(session, run)

    together(pin, f"{run.path} was not entered", session.processes, CheckpointError)


def _pin(session: Session, run: RunDir) -> None:
    """Rank 0's part of `_enter`."""
    from espalier.assembly.pins import pins
    from espalier.data.store.report import write_rejected

    run.pin_all(pins(session))
    if any(store.stats.rejected for store in session.stores):
        run.create(run.rejected)
        write_rejected(session.stores, run.rejected)


def _judge(session: Session, run: RunDir) -> Path:
    """Judge a scoring model on all data; nothing is trained."""
    from espalier.assembly.describe import describe_data
    from espalier.assembly.learner import build_learner
    from espalier.commands import judge

    _enter(session, run)
    describe_data(session)
    build_learner(session)
    judge.judge(session, judge.trained_on(session, session.config.judge.judged), run)
    return run.path


# ----------------------------------------------------------------------------------------------------------- training


def _train(session: Session, run: RunDir) -> Finished:
    """The loop, with the checkpoint it starts from, its files, trackers and watch."""
    from espalier.assembly.critic import critic_training
    from espalier.assembly.rollouts import build_source
    from espalier.checks.resume import check_resumed
    from espalier.loop.track import Trackers
    from espalier.loop.train import Reporters, Trainer
    from espalier.watch.memory import MemoryWatch
    from espalier.watch.preference import PreferenceWatch, explain

    config, steps, main = session.config, session.dataset.steps, session.main
    online = session.rollouts is not None
    start = _start(session, run)
    first = start.state().step if start else 0
    files_of_run = [run.metrics, run.tensorboard, *([run.trackers] if config.loop.track else [])]
    if online:
        files_of_run += [run.samples, *run.journals(session.processes.size)]
    # Other ranks write journals: not before rank 0 has listed them.
    together(partial(run.create, *files_of_run), f"{run.path} was not entered", session.processes, CheckpointError)
    metrics = _opened(run.metrics, main, start)
    samples = _opened(run.samples, main and online, start)
    rank, progress = session.processes.rank, Progress(steps, rank=session.processes.rank)
    trackers = Trackers(run.path, config.loop.track, flat(config), step=first, rank=rank, note=progress.note)
    settings = {"warmup": round(config.optim.warmup * steps)}
    judged = session.traits.consumes == "ranking"
    watch = PreferenceWatch(**settings).see if judged else MemoryWatch().see if online else None
    try:
        with progress:
            trainer = Trainer(
                session.roles,
                config.algorithm,
                build_source(session, run.path, progress.answers),
                optim=config.optim,
                loop=config.loop,
                root=run.checkpoints,
                metrics=metrics,
                samples=samples,
                critic=critic_training(session),
                given=session.given,
                guard=_guard(session),
                reporters=Reporters(progress.update, trackers.log, progress.note, peak_memory),
                watch=watch,
            )
            if start is not None:
                trainer.resume(start)
                check_resumed(session, start.path, trainer.state, run.metrics if main else None)
                if trainer.watch is not None and main:
                    lines = read_lines(run.metrics)
                    trainer.watch = (
                        PreferenceWatch.replay(lines, **settings) if judged else MemoryWatch.replay(lines)
                    ).see
                progress.note(f"resumed from {start.path.name}")
            finished = trainer.run()
        if judged and main:
            run.create(run.findings)
            files.write_atomic(run.findings, files.json_text(explain(read_lines(run.metrics), **settings)))
        return finished
    finally:
        trackers.close()
        for file in (metrics, samples):
            if file is not None:
                file.close()


def _guard(session: Session) -> Callable[[int, bool], None] | None:
    """What the loop calls after each hand-over; None for runs that draw nothing, and if `handover` is left out."""
    canary = session.canary
    if canary is None or "handover" in session.config.loop.skip_checks:
        return None

    def guard(step: int, updated: bool) -> None:
        canary.moved(step, updated=updated)

    return guard


def _opened(path: Path, writes: bool, start: Checkpoint | None) -> MetricsFile | None:
    """An append-only file of the run, empty if it starts anew; None on ranks that do not write it."""
    if not writes:
        return None
    file = MetricsFile(path)
    if start is None:
        file.truncate_to(0)
    return file


def _start(session: Session, run: RunDir) -> Checkpoint | None:
    """The checkpoint that the run goes on from; later ones are set aside. None for a new run.

    Raises CheckpointError for one beyond the last step.
    """
    loop, steps = session.config.loop, session.dataset.steps
    if not loop.resume:
        return None
    start = checkpoint.choose(run.checkpoints, loop.resume_from, world=session.processes)
    if start is None:
        return None
    step = start.state().step
    if step > steps:
        raise CheckpointError(
            f"{start.path.name} is beyond the {steps} steps of this config; give more --steps or --epochs"
        )
    if session.main:
        for path in checkpoint.set_aside(run.checkpoints, step):
            session.console.note(f"set aside {path}")
    return start


# ---------------------------------------------------------------------------------------------------------- afterwards


def _stopped(session: Session, finished: Finished, run: RunDir) -> Path:
    """A signal ended the run: say how to go on. Raises KeyboardInterrupt for ctrl-C, whose handler says it."""
    name = checkpoint.step_name(finished.state.step)
    saved = f"stopped by {finished.stopped}, saved as {name}"
    if finished.stopped == "SIGINT":
        session.console.note(saved)
        raise KeyboardInterrupt
    session.console.note(f"{saved}; {resumption(run.path)}")
    return run.checkpoints / name / "model"


def _finish(session: Session, finished: Finished, run: RunDir) -> None:
    """Put the chosen model in place; a model that scores is calibrated and judged first."""
    from espalier.assembly.provenance import note_training, provenance
    from espalier.checks.start import check_end
    from espalier.models.own_files import kept_line

    assert finished.chosen is not None
    config, name, console = session.config, finished.chosen.name, session.console
    if session.main and name != checkpoint.step_name(finished.state.step):  # written a while ago
        checkpoint.verify(finished.chosen)
    # What a kill inside the copy left is tidied up, too.
    together(partial(run.create, run.model), f"{run.model} was not written", session.processes, CheckpointError)
    if session.traits.says == "reads":
        from espalier.commands import judge

        judge.finish(session, finished, run)
    else:
        _put_model(session, finished, run)
        if name != checkpoint.step_name(finished.state.step):
            session.learner.load(checkpoint.role_folder(finished.chosen, "policy"))
    if session.main:
        note_training(run.model, provenance(session))
    kept = kept_line(run.model) if session.main else ""
    if kept:
        console.note(kept)
    check_end(session, finished.chosen)
    why = f" ({finished.stopped})" if finished.stopped else ""
    best = finished.state.best_step
    if best and checkpoint.step_name(best) != name:
        console.note(f"{checkpoint.step_name(best)} was better on held-out data; it is kept in {run.checkpoints}")
    console.note(f"done after step {finished.state.step}{why}: {run.model} holds {name}")
    if config.model.export == "adapter":
        from espalier.models.adapter_tokens import resizing

        first = resizing(session.model.loaded.model)
        if first:
            console.note(f"{run.model} is an adapter, and {first}")
            console.note(f"or let `espalier export --run {run.path} --merge` write the merged model")
    session.processes.barrier()


def _put_model(session: Session, finished: Finished, run: RunDir) -> None:
    """Make `model/` what the config asks for: a copy of the chosen checkpoint's, or a new export if that checkpoint was
    written under another `export`."""
    assert finished.chosen is not None
    source = finished.chosen / "model"
    adapter_only = session.config.model.export == "adapter"
    written = from_first((source / "adapter_config.json").is_file(), session.processes)
    if written == adapter_only:
        if session.main:
            _copy_model(source, run.model)
        return
    if finished.chosen.name != checkpoint.step_name(finished.state.step):
        session.learner.load(checkpoint.role_folder(finished.chosen, "policy"))
    session.learner.export(run.model)
    kind = "the adapter alone" if adapter_only else "merged weights"
    session.console.note(f"{run.model} is written anew as {kind}; checkpoints keep what they held")


def _copy_model(source: Path, target: Path) -> None:
    """Put a checkpoint's model in place; a README there that a user wrote or edited stays, and so do a user's files."""
    from espalier.models.own_files import carrying
    from espalier.models.readme import README, edited

    kept = edited(target)

    def prepare(new: Path) -> None:
        carrying(target)(new)
        if kept is not None:
            (new / README).write_bytes(kept)

    files.copy_dir(source, target, prepare)
