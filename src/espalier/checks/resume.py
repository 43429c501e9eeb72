"""The check of a resumed run: optimizer, metrics and a moving reference stand where the checkpoint stood."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from espalier.errors import CheckpointError
from espalier.files import file_to_tensors
from espalier.loop.metrics import read_lines

if TYPE_CHECKING:
    from espalier.assembly.session import Session
    from espalier.loop.state import TrainState

NUMBERS = 64


def check_resumed(session: Session, folder: Path, state: TrainState, metrics: Path | None) -> None:
    """Raise CheckpointError unless the run stands where `state` does, which is that of the checkpoint in `folder`.

    metrics: the run's file, None on a rank that writes none.
    """
    written = 0
    if metrics is not None:
        written = max((int(line["step"]) for line in read_lines(metrics) if "step" in line), default=0)
    # Offline a step is one update, and nobody counts them. Of a critic's warm-up, and behind a minibatch that goes too
    # far, updates are not the policy's.
    made = state.counters.get("policy_updates", state.counters.get("updates", state.step))
    stale = stale_reference(session, folder)
    faults = resumed(state.step, session.learner.optimizer.updates(), written, stale, made)
    if faults:
        raise CheckpointError(f"resume: {'; '.join(faults)}. The run would not go on where it stopped: report this")


def resumed(
    step: int, updates: Mapping[str, int], written: int, stale: list[str], made: int | None = None
) -> list[str]:
    """What does not stand where a run of `step` steps and `made` updates (None: one a step) stands: updates of
    parameters, the last step of the metrics, and names of weights of the reference that are not those of its file."""
    faults = []
    made = step if made is None else made
    for name, count in updates.items():
        if count != made:
            faults.append(f"the optimizer has made {count} updates of {name} after {step} steps of {made} updates")
            break
    if written > step:
        faults.append(f"the metrics go to step {written}, the run to {step}")
    if stale:
        faults.append(f"{stale[0]} of the reference is not that of the checkpoint")
    return faults


def stale_reference(session: Session, folder: Path) -> list[str]:
    """Names of the weights of a moving reference whose first numbers differ from its file; of one process alone."""
    from espalier.engines.reference import FILE

    path = folder / FILE
    if session.reference is None or session.processes.size > 1 or not path.exists():
        return []
    saved, names = file_to_tensors(path), []
    for name, weight in session.reference.moved():
        one, other = (x.reshape(-1)[:NUMBERS].float().cpu() for x in (weight, saved[name]))
        if not bool((one == other).all()):
            names.append(name)
    return names
