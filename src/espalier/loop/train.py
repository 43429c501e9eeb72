"""The loop. It runs every algorithm: read, annotate, forward and backward, update, log, evaluate, save.

It speaks to engines through protocols only, and everything it carries from step to step is in `TrainState`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from espalier.algorithms.traits import Algorithm
from espalier.config.sections import LoopConfig, OptimConfig
from espalier.engines.protocols import Group, Learner, Reference, StepResult, together
from espalier.errors import CheckpointError, EspalierError
from espalier.loop import checkpoint
from espalier.loop.annotate import annotate
from espalier.loop.evaluate import evaluate, evaluate_loss, shown
from espalier.loop.metrics import MetricsFile
from espalier.loop.schedule import learning_rate
from espalier.loop.signals import Stopper
from espalier.loop.state import TrainState, load_rng


class Source(Protocol):
    """The source of a step's groups: a function of the step alone."""

    steps: int

    def groups(self, step: int) -> list[Group]: ...

    def held_out(self) -> Iterator[list[Group]]:
        """Held-out groups, some at a time; empty if nothing is held out."""
        ...

    def epoch_of(self, step: int) -> float: ...

    def consumed(self, step: int) -> str:
        """A digest of all rows of the steps before `step`."""
        ...


@dataclass(frozen=True, slots=True)
class Reporters:
    """Callbacks of the loop: show(step, numbers) to a person, track(step, numbers) to the trackers, note(line), and
    memory(), the peak bytes of this process."""

    show: Callable[[int, Mapping[str, float]], None]
    track: Callable[[int, Mapping[str, float]], None]
    note: Callable[[str], None]
    memory: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Finished:
    """How a run ended: its last state, why it stopped early (empty if it did not), and the checkpoint to export."""

    state: TrainState
    stopped: str
    chosen: Path | None


Watch = Callable[[int, Mapping[str, float]], list[str]]
SAVES = 10
"""Checkpoints of a run whose config does not set `save_every`."""
FRESH = TrainState(step=0, epoch=0, position=0, counters={}, state={}, best=None, best_step=None, stale=0, lengths={})


class Trainer:
    """One run of the loop.

    root: the folder of the checkpoints.
    metrics: the run's file, None on ranks that write none.
    reference: the model that the algorithm compares the policy with, built from the weights that the run starts with
        (so before `resume`).
    watch: called with the number and numbers of each step and evaluation; the lines that it returns for a step are
        noted and stand in its metrics as `notes`.

    Every rank runs the same loop; rank 0 writes.
    """

    def __init__(
        self,
        learner: Learner,
        algorithm: Algorithm,
        source: Source,
        *,
        optim: OptimConfig,
        loop: LoopConfig,
        root: Path,
        metrics: MetricsFile | None,
        reporters: Reporters,
        reference: Reference | None = None,
        watch: Watch | None = None,
    ):
        self.learner, self.algorithm, self.source = learner, algorithm, source
        self.optim, self.loop, self.root = optim, loop, root
        self.metrics, self.reporters = metrics, reporters
        self.reference, self.watch = reference, watch
        self.world = learner.world
        self.every = loop.save_every or max(1, -(-source.steps // SAVES))
        self.state = FRESH
        self._saved: TrainState | None = None

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Take up a checkpoint: weights, reference, optimizer, generators, counters, and the metrics file as it was
        then.

        Raises CheckpointError if it lacks something or does not fit. Whether data and config are those it was trained
        on is the caller's to check (`RunDir.pin`).
        """
        state = saved.state()
        self.learner.load(saved.path)
        if self.reference is not None:
            self.reference.load(saved.path)
        load_rng(saved.path, self.world.rank)
        if self.metrics is not None:
            name = self.metrics.path.name
            digest = "" if self.loop.accept_changes else state.digests.get(name, "")
            self.metrics.truncate_to(state.lengths[name], digest)
        self.state = self._saved = state

    def run(self) -> Finished:
        """Train from the current state to the last step, a stop signal, or the end of patience.

        A signal that comes after the last step changes nothing: the run saves and ends in any case.
        """
        with Stopper() as stopper:
            while not self._over():
                self._step()
                step = self.state.step
                if self.loop.eval_every and step % self.loop.eval_every == 0:
                    self._evaluate()
                # The last step is saved below, once, with its evaluation.
                if self._over():
                    break
                # Signals reach ranks at different moments, so one rank's signal stops all.
                if self.world.sum([float(stopper.requested)])[0]:
                    self._save()
                    return Finished(self.state, stopper.reason or "stop signal", None)
                if step % self.every == 0:
                    self._save()
            self._evaluate()
            self._save()
        stopped = f"no better for {self.state.stale} evaluations" if self._exhausted() else ""
        best_step = self.state.best_step if self.loop.patience else None
        return Finished(self.state, stopped, self.root / checkpoint.step_name(best_step or self.state.step))

    def _over(self) -> bool:
        return self.state.step >= self.source.steps or self._exhausted()

    def _exhausted(self) -> bool:
        return bool(self.loop.patience) and self.state.stale >= self.loop.patience

    # --------------------------------------------------------------------------------------------------------- steps

    def _step(self) -> None:
        step, began = self.state.step, time.perf_counter()
        groups = self.source.groups(step)
        lr = learning_rate(step, self.source.steps, self.optim)
        moving = annotate(groups, self.algorithm, self.learner, self.reference, self.state.state)
        result = self.learner.forward_backward(groups, self.algorithm.loss, moving, step)
        try:
            update = self.learner.optim_step(lr)
        except FloatingPointError as error:
            self._save()
            rows = ", ".join(str(g[0].key) for g in groups[:4])
            raise EspalierError(
                f"step {step + 1}: {error}, so no update was made; the weights before it are saved. The loss of this "
                f"step is {result.loss:g}; its first samples have keys {rows}. Lower lr, or look at these rows"
            ) from error
        self._sync(step + 1)
        added = self._count(step + 1, groups, result, moving)
        seconds = time.perf_counter() - began
        numbers = {
            "loss": result.loss,
            **result.terms,
            "lr": lr,
            **update,
            "epoch": self.source.epoch_of(step + 1),
            **added,
            "seconds": seconds,
            "tokens_per_second": result.tokens / seconds,
            "memory_bytes": self.reporters.memory(),
        }
        self._report(step + 1, numbers)

    def _count(self, done: int, groups: list[Group], result: StepResult, moving: dict[str, float]) -> dict[str, int]:
        """Make the state that of `done` steps; returns what this step added to the counters."""
        added = {
            "samples": sum(len(g) for g in groups),
            "groups": len(groups),
            "tokens": result.tokens,
            "packed": result.packed,
            "scored": result.scored,
        }
        counters = dict(self.state.counters)
        for name, amount in added.items():
            counters[name] = counters.get(name, 0) + amount
        epoch = int(self.source.epoch_of(done))
        self.state = replace(
            self.state, step=done, epoch=epoch, position=counters["groups"], counters=counters, state=moving
        )
        return added

    def _report(self, done: int, numbers: dict[str, float]) -> None:
        """Write, show and track the numbers of a step, and what the watch says about them."""
        lines = self.watch(done, numbers) if self.watch else []
        record: dict[str, Any] = {"step": done, **numbers, "rows": self.source.consumed(done)[:16]}
        if lines:
            record["notes"] = lines
        self._log(record)
        self.reporters.show(done, numbers)
        self.reporters.track(done, numbers)
        for line in lines:
            self.reporters.note(f"step {done}: {line}")

    def _sync(self, done: int) -> None:
        """Move the reference if the algorithm moves it after `done` steps."""
        traits = self.algorithm.traits
        if traits.sync_every and done % traits.sync_every == 0:
            if self.reference is None:
                raise ValueError("the algorithm moves its reference, and there is none; give the loop one")
            self.reference.move(traits.sync_alpha)

    def _log(self, record: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.append(record)

    # ---------------------------------------------------------------------------------------------------- evaluation

    def _evaluate(self) -> None:
        """Evaluate held-out data, at most once per step, and save if it is the best so far."""
        if self.state.counters.get("evaluated_at") == self.state.step:
            return
        began = time.perf_counter()
        if self.algorithm.traits.likelihood:
            numbers = evaluate(self.learner, self.source.held_out())
        else:
            numbers = evaluate_loss(
                self.learner, self.algorithm, self.reference, self.state.state, self.source.held_out()
            )
        if not numbers:
            return
        loss = numbers["eval_loss"]
        better = math.isfinite(loss) and (self.state.best is None or loss < self.state.best)
        stale = 0 if better else self.state.stale + 1
        step = self.state.step
        self.state = replace(self.state, stale=stale, counters={**self.state.counters, "evaluated_at": step})
        if better:
            self.state = replace(self.state, best=loss, best_step=step)
        self._log({"step": step, **numbers, "seconds": time.perf_counter() - began})
        self.reporters.track(step, numbers)
        # What the watch says about later steps depends on held-out numbers.
        if self.watch:
            self.watch(step, numbers)
        self.reporters.note(f"step {step}: {shown(numbers)}{', the best so far' if better else ''}")
        if better and not self._over():
            self._save()

    # ------------------------------------------------------------------------------------------------------- saving

    def _save(self) -> None:
        """Save the state, unless it is saved already, and delete checkpoints that need not be kept."""
        if self._saved != self.state:
            if self.metrics is not None:
                self.metrics.sync()
                name = self.metrics.path.name
                lengths, digests = {name: self.metrics.length()}, {name: self.metrics.digest()}
                self.state = replace(self.state, lengths=lengths, digests=digests)
            checkpoint.save(self.root, self.state, self._write, world=self.world)
            self._saved = self.state
        self._prune()

    def _write(self, folder: Path) -> None:
        # All gather over all ranks, so none may enter the next while rank 0 failed to write the one
        # before.
        outcome = f"{folder} was not written"
        together(partial(self.learner.save, folder), outcome, self.world, CheckpointError)
        if self.reference is not None:
            together(partial(self.reference.save, folder), outcome, self.world, CheckpointError)
        self.learner.export(folder / "model")

    def _prune(self) -> None:
        if self.world.rank == 0:
            checkpoint.prune(self.root, self.loop.keep, self.state.best_step)
