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
from espalier.engines.protocols import Group, Learner, Reference, together
from espalier.errors import CheckpointError, EspalierError
from espalier.loop import checkpoint
from espalier.loop.annotate import annotate
from espalier.loop.evaluate import evaluate, evaluate_loss, shown
from espalier.loop.metrics import MetricsFile
from espalier.loop.schedule import learning_rate
from espalier.loop.signals import Stopper
from espalier.loop.state import TrainState, load_rng


class Source(Protocol):
    """Where the groups of a step come from: a function of the step alone."""

    steps: int

    def groups(self, step: int) -> list[Group]: ...

    def held_out(self) -> Iterator[list[Group]]:
        """Held-out groups, some at a time; empty where nothing is held out."""
        ...

    def epoch_of(self, step: int) -> float: ...

    def consumed(self, step: int) -> str:
        """A digest of all rows of the steps before `step`."""
        ...


@dataclass(frozen=True, slots=True)
class Reporters:
    """Whom the loop tells: `show` a person (step, numbers), `track` the trackers, `note` a line, `memory` peak
    bytes."""

    show: Callable[[int, Mapping[str, float]], None]
    track: Callable[[int, Mapping[str, float]], None]
    note: Callable[[str], None]
    memory: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Finished:
    """How a run ended: its last state, why it stopped early (empty where it did not), and the checkpoint to export."""

    state: TrainState
    stopped: str
    chosen: Path | None


Watch = Callable[[int, Mapping[str, float]], list[str]]
SAVES = 10  # checkpoints of a run that does not say how often
FRESH = TrainState(step=0, epoch=0, position=0, counters={}, state={}, best=None, best_step=None, stale=0, lengths={})


class Trainer:
    """One run of the loop.

    root: where checkpoints go. metrics: the run's file, None on ranks that write none. reference: whom the algorithm
    holds the policy against, built from the weights that the run starts with (so before `resume`). watch: called with
    the number and numbers of each step and evaluation; the lines that it returns of a step are noted and stand in its
    metrics as `notes`. Every rank runs the same loop; rank 0 writes.
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
        self.metrics, self.tell = metrics, reporters
        self.reference, self.watch = reference, watch
        self.world = learner.world
        self.every = loop.save_every or max(1, -(-source.steps // SAVES))
        self.state = FRESH
        self._saved: TrainState | None = None

    def resume(self, found: checkpoint.Checkpoint) -> None:
        """Take up a checkpoint: weights, reference, optimizer, generators, counters, and the metrics file as it was
        then.

        Raises CheckpointError where it lacks something or does not fit. That data and config are those it was trained
        on is for the caller to see to (`RunDir.pin`).
        """
        state = found.state()
        self.learner.load(found.path)
        if self.reference is not None:
            self.reference.load(found.path)
        load_rng(found.path, self.world.rank)
        if self.metrics is not None:
            self.metrics.truncate_to(state.lengths["metrics.jsonl"])
        self.state = self._saved = state

    def run(self) -> Finished:
        """Train from the current state to the last step, a stop signal, or the end of patience.

        A signal that comes after the last step changes nothing: what is left is what it asks for.
        """
        with Stopper() as stopper:
            while not self._over():
                self._step()
                step = self.state.step
                if self.loop.eval_every and step % self.loop.eval_every == 0:
                    self._evaluate()
                if self._over():  # saved below, once, with its evaluation
                    break
                if self.world.sum([float(stopper.requested)])[0]:  # signals reach ranks at different moments
                    self._save()
                    return Finished(self.state, stopper.reason or "stop signal", None)
                if step % self.every == 0:
                    self._save()
            self._evaluate()
            self._save()
        best = self.state.best_step if self.loop.patience else None
        stopped = f"no better for {self.state.stale} evaluations" if self._exhausted() else ""
        return Finished(self.state, stopped, self.root / checkpoint.step_name(best or self.state.step))

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
        counters = dict(self.state.counters)
        added = {"samples": sum(len(g) for g in groups), "groups": len(groups), "tokens": result.tokens}
        added |= {"packed": result.packed, "scored": result.scored}
        for name, amount in added.items():
            counters[name] = counters.get(name, 0) + amount
        epoch = self.source.epoch_of(step + 1)
        self.state = replace(
            self.state, step=step + 1, epoch=int(epoch), position=counters["groups"], counters=counters, state=moving
        )
        seconds = time.perf_counter() - began
        numbers = {
            "loss": result.loss, **result.terms, "lr": lr, **update, "epoch": epoch, **added, "seconds": seconds,
            "tokens_per_second": result.tokens / seconds, "memory_bytes": self.tell.memory(),
        }  # fmt: skip
        lines = self.watch(step + 1, numbers) if self.watch else []
        notes = {"notes": lines} if lines else {}
        self._log({"step": step + 1, **numbers, "rows": self.source.consumed(step + 1)[:16], **notes})
        self.tell.show(step + 1, numbers)
        self.tell.track(step + 1, numbers)
        for line in lines:
            self.tell.note(f"step {step + 1}: {line}")

    def _sync(self, done: int) -> None:
        """Move the reference where the algorithm wants it after `done` steps."""
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
        """Evaluate held-out data, once a step, and save where it is the best so far."""
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
        self.tell.track(step, numbers)
        if self.watch:  # what it says of later steps depends on held-out numbers
            self.watch(step, numbers)
        self.tell.note(f"step {step}: {shown(numbers)}{', the best so far' if better else ''}")
        if better and not self._over():
            self._save()

    # ------------------------------------------------------------------------------------------------------- saving

    def _save(self) -> None:
        """Save the state, unless it is saved already, and delete what need not be kept."""
        if self._saved != self.state:
            if self.metrics is not None:
                self.metrics.sync()
                self.state = replace(self.state, lengths={"metrics.jsonl": self.metrics.length()})
            checkpoint.save(self.root, self.state, self._write, world=self.world)
            self._saved = self.state
        self._prune()

    def _write(self, folder: Path) -> None:
        # All gather over all ranks, so none may enter the next while rank 0 failed to write the one before.
        outcome = f"{folder} was not written"
        together(partial(self.learner.save, folder), outcome, self.world, CheckpointError)
        if self.reference is not None:
            together(partial(self.reference.save, folder), outcome, self.world, CheckpointError)
        self.learner.export(folder / "model")

    def _prune(self) -> None:
        if self.world.rank == 0:
            checkpoint.prune(self.root, self.loop.keep, self.state.best_step)
