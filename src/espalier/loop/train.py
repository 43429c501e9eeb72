"""The loop. It runs every algorithm: draw, annotate, update, hand the weights over, log, evaluate, save.

It speaks to engines through protocols only, and everything it carries from step to step is in `TrainState`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from espalier.algorithms.traits import Algorithm
from espalier.config.sections import LoopConfig, OptimConfig
from espalier.engines.protocols import Roles, together
from espalier.errors import CheckpointError, EspalierError
from espalier.loop import checkpoint
from espalier.loop.annotate import annotate
from espalier.loop.critic import CriticTraining, own_critic
from espalier.loop.evaluate import shown
from espalier.loop.metrics import MetricsFile
from espalier.loop.progress import resident_memory
from espalier.loop.schedule import learning_rate
from espalier.loop.signals import AT_END, Interrupted, Stopper, announcing
from espalier.loop.source import Source
from espalier.loop.state import TrainState, load_rng
from espalier.loop.step import Made, UpdateError, fit_critic, make_updates
from espalier.loop.step_numbers import about
from espalier.types import Draw


@dataclass(frozen=True, slots=True)
class Reporters:
    """Callbacks of the loop: show(step, numbers) to a person, track(step, numbers) to the trackers, note(line), and
    memory(), the peak bytes of this process, and resident(), those it holds now."""

    show: Callable[[int, Mapping[str, float]], None]
    track: Callable[[int, Mapping[str, float]], None]
    note: Callable[[str], None]
    memory: Callable[[], int]
    resident: Callable[[], int] = resident_memory


@dataclass(frozen=True, slots=True)
class Finished:
    """How a run ended: its last state, why it stopped early (empty if it did not), and the checkpoint to export."""

    state: TrainState
    stopped: str
    chosen: Path | None


Watch = Callable[[int, Mapping[str, float]], list[str]]
Guard = Callable[[int, bool], None]
SAVES = 10
"""Checkpoints of a run whose config does not set `save_every`."""
OF_SOURCE = "source."
FRESH = TrainState(
    step=0, epoch=0, position=0, counters={}, state={}, best_score=None, best_step=None, stale=0, lengths={}
)


class Trainer:
    """One run of the loop.

    roles: who takes part; the reference is built from the weights that the run starts with (so before `resume`).
    root: the folder of the checkpoints.
    metrics, samples: the run's files, None on ranks that write none; a source without records needs no `samples`.
    critic: how a critic of its own is trained.
    given: what the algorithm's state holds from the start, in every step.
    guard: called once a step's weights are handed over, with its number and whether they should have changed.
    watch: called with the number and numbers of each step and evaluation; the lines that it returns for a step are
        noted and stand in its metrics as `notes`.

    Every rank runs the same loop.
    """

    def __init__(
        self,
        roles: Roles,
        algorithm: Algorithm,
        source: Source,
        *,
        optim: OptimConfig,
        loop: LoopConfig,
        root: Path,
        metrics: MetricsFile | None,
        reporters: Reporters,
        samples: MetricsFile | None = None,
        critic: CriticTraining | None = None,
        watch: Watch | None = None,
        given: Mapping[str, float] | None = None,
        guard: Guard | None = None,
    ):
        if (own_critic(roles) is None) != (critic is None):
            raise ValueError("got a critic of its own or how it is trained, not both; expected both or none")
        self.roles, self.algorithm, self.source = roles, algorithm, source
        self.optim, self.critic, self.loop, self.root = optim, critic, loop, root
        self.metrics, self.samples, self.reporters, self.watch = metrics, samples, reporters, watch
        self.given, self.guard = dict(given or {}), guard
        self.world = roles.policy.world
        self.every = loop.save_every or max(1, -(-source.steps // SAVES))
        self.state = FRESH
        self._saved: TrainState | None = None

    @property
    def _files(self) -> list[MetricsFile]:
        """The append-only files, which a checkpoint measures and a resumed run cuts."""
        return [file for file in (self.metrics, self.samples) if file is not None]

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Take up a checkpoint: weights, reference, optimizers, generators, counters, and the append-only files as they
        were then.

        Raises CheckpointError if it lacks something or does not fit. Whether data and config are those it was trained
        on is the caller's to check (`RunDir.pin`).
        """
        state = saved.state()
        self.roles.policy.load(checkpoint.role_folder(saved.path, "policy"))
        critic = own_critic(self.roles)
        if critic is not None:
            critic.load(checkpoint.role_folder(saved.path, "critic"))
        if self.roles.reference is not None:
            self.roles.reference.load(saved.path)
        load_rng(saved.path, self.world.rank)
        for file in self._files:
            name = file.path.name
            if name not in state.lengths and file is self.metrics:
                raise CheckpointError(f"{saved.path}: state.json lacks the length of {name}")
            digest = "" if self.loop.accept_changes else state.digests.get(name, "")
            # A run that wrote no samples.jsonl so far has none of its lines.
            file.truncate_to(state.lengths.get(name, 0), digest)
        of_source = {n.removeprefix(OF_SOURCE): x for n, x in state.counters.items() if n.startswith(OF_SOURCE)}
        # Before its first draw a source has counted nothing.
        if of_source:
            self.source.restore(of_source)
        self.source.moved(state.step)
        self.state = self._saved = state

    def run(self) -> Finished:
        """Train from the current state to the last step, a stop signal, or the end of patience.

        A signal that comes after the last step changes nothing, unless it interrupts the last evaluation: the run saves
        and ends in any case. A draw or an evaluation that a signal interrupts is left out, and what was before it is
        saved.
        """
        with Stopper() as stopper:
            self.source.heed(lambda: stopper.requested)
            try:
                stopped = self._train(stopper)
            except Interrupted:
                self._save()
                stopped = True
            if stopped:
                return Finished(self.state, stopper.reason or "stop signal", None)
        reason = f"no better for {self.state.stale} evaluations" if self._exhausted() else self._ended()
        best_step = self.state.best_step if self.loop.patience else None
        return Finished(self.state, reason, self.root / checkpoint.step_name(best_step or self.state.step))

    def _train(self, stopper: Stopper) -> bool:
        """The steps, and the last save; whether a signal ended them."""
        # Due already if a signal interrupted it.
        if self.state.step:
            self._evaluate_if_due()
        while not self._over():
            self._step()
            self._evaluate_if_due()
            # The last step is saved below, once, with its evaluation.
            if self._over():
                break
            # Signals reach ranks at different moments, so one rank's signal stops all.
            if self.world.sum([float(stopper.requested)])[0]:
                self._save()
                return True
            if self.state.step % self.every == 0:
                self._save()
        with announcing(AT_END):
            self._evaluate()
            self._save()
        return False

    def _over(self) -> bool:
        return self.state.step >= self.source.steps or self._exhausted() or bool(self._ended())

    def _ended(self) -> str:
        """Why the algorithm ends the run; empty if it does not."""
        return self.algorithm.ends(self.state.state) if self.state.step else ""

    def _exhausted(self) -> bool:
        return bool(self.loop.patience) and self.state.stale >= self.loop.patience

    # --------------------------------------------------------------------------------------------------------- steps

    def _step(self) -> None:
        step, times = self.state.step, [time.perf_counter()]
        draw = self._draw(step)
        times.append(time.perf_counter())
        rates = {"lr": learning_rate(step, self.source.steps, self.optim)}
        if self.critic is not None:
            rates["lr_critic"] = learning_rate(step, self.source.steps, self.critic.optim)
        moving, notes = self._annotate(step, draw, rates)
        times.append(time.perf_counter())
        made = self._update(step, draw, moving, rates)
        self._sync(step + 1)
        self.source.moved(step + 1)
        if self.guard is not None:
            self.guard(step + 1, made.of_policy > 0 and rates["lr"] > 0 and made.optimizers.get("grad_norm", 0.0) > 0)
        times.append(time.perf_counter())
        added = self._count(step + 1, draw, made, moving)
        seconds = time.perf_counter() - times[0]
        numbers = {
            **made.numbers,
            **rates,
            **made.optimizers,
            "epoch": self.source.epoch_of(step + 1),
            **added,
            **about(self.algorithm.traits, draw, made, moving, times, self.reporters.resident),
            "seconds": seconds,
            "tokens_per_second": made.tokens / seconds,
            "memory_bytes": self.reporters.memory(),
        }
        self._record(step)
        notes = [*draw.notes, *notes, *made.notes(), *self.algorithm.remarks(moving)]
        self._report(step + 1, numbers, notes)

    def _annotate(self, step: int, draw: Draw, rates: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        """Fill the streams of a draw; returns the moving numbers and lines for the user. Before the first step the
        critic learns from its answers, if it is to."""
        fill = partial(annotate, draw.groups, self.algorithm, self.roles, silent=draw.silent)
        before = {**self.state.state, **self.given}
        moving = fill(before)
        if step or self.critic is None or not self.critic.pretrain:
            return moving, []
        with self._saving_on_error(step):
            made = fit_critic(self.roles, self.algorithm, draw, moving, self.critic.pretrain, rates["lr_critic"])
        return fill(before), [f"the critic learned the returns of the first {len(draw.groups):,} groups {made} times"]

    def _draw(self, step: int) -> Draw:
        """The draw of a step; if it stops the run, its answers are in samples.jsonl all the same."""
        try:
            return self.source.draw(step)
        except EspalierError:
            # The last draw may be that of the step before, which is written already.
            with contextlib.suppress(ValueError):
                self._record(step)
            raise

    def _update(self, step: int, draw: Draw, moving: dict[str, float], rates: Mapping[str, float]) -> Made:
        """The updates of a step. Raises EspalierError for a gradient that is not finite."""
        with self._saving_on_error(step):
            return make_updates(
                self.roles,
                self.algorithm,
                draw,
                moving,
                step=step,
                seed=self.loop.seed,
                lr=rates["lr"],
                critic_lr=rates.get("lr_critic", 0.0),
                train_policy=self.critic is None or step >= self.critic.warmup,
            )

    @contextlib.contextmanager
    def _saving_on_error(self, step: int) -> Iterator[None]:
        """Inside, an update whose gradient is not finite saves what was before its step and raises EspalierError."""
        try:
            yield
        except UpdateError as error:
            saved = "the weights before it are saved"
            if error.made:
                # Between the updates of a step there is nothing that could be resumed.
                saved = f"nothing is saved, since {error.made} updates of this step were made; --resume goes back"
            else:
                self._save()
            raise error.explained(step + 1, saved) from error

    def _count(self, done: int, draw: Draw, made: Made, moving: dict[str, float]) -> dict[str, int]:
        """Make the state that of `done` steps; returns what this step added to the counters."""
        added = {
            "samples": sum(len(g) for g in draw.groups),
            "groups": len(draw.groups),
            "tokens": made.tokens,
            "packed": made.packed,
            "scored": made.scored,
        }
        counters = dict(self.state.counters)
        counted = dict(added)
        if self.algorithm.traits.online is not None:
            counted["updates"], counted["policy_updates"] = made.updates, made.of_policy
        for name, amount in counted.items():
            counters[name] = counters.get(name, 0) + amount
        counters.update({f"{OF_SOURCE}{name}": count for name, count in self.source.state().items()})
        epoch = int(self.source.epoch_of(done))
        self.state = replace(
            self.state, step=done, epoch=epoch, position=counters["groups"], counters=counters, state=moving
        )
        return added

    def _record(self, step: int) -> None:
        """Write what the source says of its samples."""
        if self.samples is not None:
            for record in self.source.records(step):
                self.samples.append(record)

    def _report(self, done: int, numbers: dict[str, float], notes: list[str]) -> None:
        """Write, show and track the numbers of a step, its notes, and what the watch says about them."""
        lines = [*notes, *(self.watch(done, numbers) if self.watch else [])]
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
            if self.roles.reference is None:
                raise ValueError("the algorithm moves its reference, and there is none; give the loop one")
            self.roles.reference.move(traits.sync_alpha)

    def _log(self, record: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.append(record)

    # ---------------------------------------------------------------------------------------------------- evaluation

    def _evaluate_if_due(self) -> None:
        if self.loop.eval_every and self.state.step % self.loop.eval_every == 0:
            self._evaluate()

    def _evaluate(self) -> None:
        """Evaluate held-out data, at most once per step, and save if it is the best so far."""
        if self.state.counters.get("evaluated_at") == self.state.step:
            return
        began = time.perf_counter()
        numbers = self.source.evaluate(self.roles, self.algorithm, self.state.state)
        if not numbers:
            return
        score, best = numbers["eval_score"], self.state.best_score
        better = math.isfinite(score) and (best is None or score > best)
        stale = 0 if better else self.state.stale + 1
        step = self.state.step
        self.state = replace(self.state, stale=stale, counters={**self.state.counters, "evaluated_at": step})
        if better:
            self.state = replace(self.state, best_score=score, best_step=step)
        if "eval_loss" in numbers:
            # Of rows the score is the loss with its sign changed.
            numbers = {name: number for name, number in numbers.items() if name != "eval_score"}
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
            lengths: dict[str, int] = {}
            digests: dict[str, str] = {}
            for file in self._files:
                file.sync()
                lengths[file.path.name], digests[file.path.name] = file.length(), file.digest()
            if lengths:
                self.state = replace(self.state, lengths=lengths, digests=digests)
            checkpoint.save(self.root, self.state, self._write, world=self.world)
            self._saved = self.state
        self._prune()

    def _write(self, folder: Path) -> None:
        # All gather over all ranks, so none may enter the next while rank 0 failed to write the one before.
        roles, parts = self.roles, [partial(self.roles.policy.save, folder / "policy")]
        critic = own_critic(roles)
        if critic is not None:
            parts.append(partial(critic.save, folder / "critic"))
        if roles.reference is not None:
            parts.append(partial(roles.reference.save, folder))
        for part in parts:
            together(part, f"{folder} was not written", self.world, CheckpointError)
        roles.policy.export(folder / "model")

    def _prune(self) -> None:
        if self.world.rank == 0:
            checkpoint.prune(self.root, self.loop.keep, self.state.best_step)
