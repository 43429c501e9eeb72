"""The state with which a run continues exactly: counters, moving floats and random generators, as JSON.

Nothing here imports torch until its generator is read or set.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espalier.errors import CheckpointError
from espalier.files import json_text, write_atomic

STATE = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """Where a run stands after `step` optimizer steps. The learning rate is a function of `step`, so it is not here.

    epoch, position: the data cursor: passes finished, and groups of the current pass already consumed.
    counters: totals since the first step (samples, tokens and the like).
    state: the algorithm's own numbers.
    best_score, best_step: the highest `eval_score` so far and its step; None before the first. stale: evaluations since
        then.
    lengths, digests: bytes of the append-only files and sha256 of these bytes, by name.
    """

    step: int
    epoch: int
    position: int
    counters: dict[str, int]
    state: dict[str, float]
    best_score: float | None
    best_step: int | None
    stale: int
    lengths: dict[str, int]
    digests: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """JSON from which `from_json` gives an equal state; floats keep all their bits.

        Raises CheckpointError that names the entry if a value has the wrong type or is NaN or infinite.
        """
        entries = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        _check(entries, "the state to be saved")
        return json_text(entries)

    @classmethod
    def from_json(cls, text: str, where: str = STATE) -> TrainState:
        """Read what `to_json` wrote. Raises CheckpointError, with `where`, for a missing, unknown or wrong entry."""
        try:
            entries = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"{where} is not JSON: {error}") from error
        if not isinstance(entries, dict):
            raise CheckpointError(f"{where} holds {type(entries).__name__}, expected an object")
        # Older versions kept no digests, and as `best` a loss, lower being better.
        entries = {"digests": {}, **entries}
        if "best" in entries and "best_score" not in entries:
            best = entries.pop("best")
            if not _is("a finite float or null", best):
                raise CheckpointError(f"{where}: best is {best!r}, expected a finite float or null")
            entries["best_score"] = None if best is None else -best
        _check(entries, where)
        return cls(**entries)


_ENTRIES = {
    "step": "a count",
    "epoch": "a count",
    "position": "a count",
    "counters": "counts by name",
    "state": "finite floats by name",
    "best_score": "a finite float or null",
    "best_step": "a count or null",
    "stale": "a count",
    "lengths": "counts by name",
    "digests": "texts by name",
}


def _is(kind: str, value: Any) -> bool:
    """Whether a value is of a kind of `_ENTRIES`."""
    if kind.endswith(" or null"):
        return value is None or _is(kind.removesuffix(" or null"), value)
    if kind == "counts by name":
        return _is_table("a count", value)
    if kind == "finite floats by name":
        return _is_table("a finite float", value)
    if kind == "texts by name":
        return _is_table("a text", value)
    if kind == "a text":
        return isinstance(value, str)
    if kind == "a finite float":
        return isinstance(value, float) and math.isfinite(value)
    # bool is a subclass of int.
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_table(kind: str, value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and _is(kind, entry) for key, entry in value.items())


def _check(entries: Mapping[str, Any], where: str) -> None:
    _same_names(entries, _ENTRIES, where)
    for name, kind in _ENTRIES.items():
        if not _is(kind, entries[name]):
            raise CheckpointError(f"{where}: {name} is {entries[name]!r}, expected {kind}")


def _same_names(got: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    missing = sorted(expected.keys() - got.keys())
    if missing:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}; it was written by another version or cut")
    unknown = sorted(got.keys() - expected.keys())
    if unknown:
        raise CheckpointError(f"{where} has the unknown {', '.join(unknown)}; it was written by another version")


# ------------------------------------------------------------------------------------------------- random generators


def rng_state() -> dict[str, Any]:
    """The global generators of this process as JSON values: `python`, `numpy`, `torch` and `cuda` (current device).

    An entry is None if the process has no such generator yet: the library is not imported, or CUDA is not in use.
    """
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, list(words), gauss], "numpy": None, "torch": None, "cuda": None}
    if "numpy" in sys.modules:
        import numpy

        name, keys, *rest = numpy.random.get_state(legacy=True)
        state["numpy"] = [name, [int(key) for key in keys], *rest]
    if "torch" in sys.modules:
        import torch

        state["torch"] = bytes(torch.get_rng_state().tolist()).hex()
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            state["cuda"] = bytes(torch.cuda.get_rng_state().tolist()).hex()
    return state


def set_rng_state(state: Mapping[str, Any], where: str = "the random state") -> None:
    """Make the global generators continue where `rng_state` read them; an entry that is None changes nothing.

    Raises CheckpointError for a missing or unknown entry, one that cannot be read, or a CUDA generator on a machine
    without CUDA.
    """
    _same_names(state, {"python": 0, "numpy": 0, "torch": 0, "cuda": 0}, where)
    try:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        if state["numpy"] is not None:
            import numpy

            name, keys, *rest = state["numpy"]
            numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
        if state["torch"] is not None:
            import torch

            torch.set_rng_state(torch.tensor(list(bytes.fromhex(state["torch"])), dtype=torch.uint8))
        if state["cuda"] is not None:
            import torch

            if not torch.cuda.is_available():
                raise CheckpointError(
                    f"{where} holds a CUDA generator, but this machine has no CUDA; resume where it has"
                )
            torch.cuda.set_rng_state(torch.tensor(list(bytes.fromhex(state["cuda"])), dtype=torch.uint8))
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{where} cannot be restored: {error}") from error


def save_rng(folder: Path, rank: int) -> None:
    """Write this rank's generators into a checkpoint."""
    write_atomic(folder / rng_name(rank), json_text(rng_state()))


def load_rng(folder: Path, rank: int) -> None:
    """Restore this rank's generators from a checkpoint. Raises CheckpointError."""
    path = folder / rng_name(rank)
    set_rng_state(read_json(path), str(path))


def rng_name(rank: int) -> str:
    """`rng-00003.json` for rank 3."""
    return f"rng-{rank:05d}.json"


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file of a checkpoint. Raises CheckpointError if the file is missing or holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; resume from another checkpoint with --resume-from") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, expected an object")
    return value
