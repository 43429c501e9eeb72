"""Checkpoints that are whole or absent: a folder written beside, flushed, sealed by a manifest, renamed once.

    checkpoints/step-000100/   manifest.json   size and sha256 of every other file; written last
                               state.json      `TrainState`
                               rng-00000.json  generators of rank 0, and so on
                               policy/, ...    what the caller's `write` put there: see `role_folder`

Only what a manifest lists is trusted. Names that start with a dot belong to saves and deletions in progress; `clean`
removes those that a killed process left. One process (rank 0) at a time may write, which the run's lock ensures.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier import files
from espalier.engines.protocols import World, from_first, together
from espalier.errors import CheckpointError
from espalier.files import safetensors_size
from espalier.loop.state import STATE, TrainState, read_json, rng_name, save_rng

MANIFEST = "manifest.json"
ABANDONED = "abandoned"
FORMAT = 1
_STEP = re.compile(r"step-([0-9]{6,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files are those of its manifest. `ranks` processes wrote it; `files` maps names to bytes."""

    path: Path
    step: int
    ranks: int
    files: dict[str, int]

    def state(self) -> TrainState:
        """What `save` was given. Raises CheckpointError."""
        path = self.path / STATE
        return TrainState.from_json(json.dumps(read_json(path)), str(path))


@dataclass(frozen=True, slots=True)
class Broken:
    """A folder named like a checkpoint that cannot be one, and why."""

    path: Path
    problems: list[str]

    def __str__(self) -> str:
        return f"checkpoint {self.path.name} is corrupt: {'; '.join(self.problems)}"


def step_name(step: int) -> str:
    """`step-000100` for 100; more than six digits from a million on."""
    return f"step-{step:06d}"


def role_folder(path: Path, role: str) -> Path:
    """The files of one learner in the checkpoint `path`: `policy/`, `critic/`. Older checkpoints have those of their
    policy beside state.json.

    Raises CheckpointError if the checkpoint has no such learner.
    """
    if (path / role).is_dir():
        return path / role
    if role == "policy":
        return path
    raise CheckpointError(f"{path} has no {role}/, so it was written by a run without a {role}")


def steps(root: Path) -> list[int]:
    """Steps that have a folder, intact or not, oldest first."""
    if not root.is_dir():
        return []
    names = [(path, _STEP.fullmatch(path.name)) for path in root.iterdir()]
    return sorted(int(match[1]) for path, match in names if match and path.is_dir())


# ------------------------------------------------------------------------------------------------------------ saving


def save(
    root: Path,
    state: TrainState,
    write: Callable[[Path], None],
    *,
    world: World | None = None,
    estimate: int = 0,
) -> Checkpoint:
    """Write the checkpoint of `state.step` below `root`; every rank calls this and every rank's `write` is called.

    `write(folder)` puts the caller's files into the folder, which all ranks share; names must differ between ranks. A
    checkpoint of the same step is replaced. A kill at any moment leaves the earlier checkpoints as they are and either
    this one whole or a leftover that `clean` removes.

    Raises CheckpointError, on every rank and with nothing left behind, if the disk is full (or has fewer than
    `estimate` bytes free; 0 takes the size of the newest checkpoint), if a file cannot be written, came out short, or
    is not seen by rank 0, or if another rank failed. Any other error of `write` is raised as it is on its own rank.
    """
    rank, size = (world.rank, world.size) if world else (0, 1)
    target = root / step_name(state.step)
    partial = files.beside(target, files.PARTIAL)

    def begin() -> None:
        text = state.to_json()
        if rank == 0:
            files.make_dir(root)
            clean(root)
            needed, free = estimate or _newest_size(root), files.free_bytes(root)
            if free < needed:
                raise CheckpointError(_full(target, needed, free))
            partial.mkdir()
            files.write_atomic(partial / STATE, text)

    def fill() -> None:
        save_rng(partial, rank)
        write(partial)
        files.fsync_tree(partial)

    def seal() -> None:
        if rank == 0:
            for other in range(size):
                if not (partial / rng_name(other)).exists():
                    raise CheckpointError(
                        f"rank 0 does not see what rank {other} wrote to {root}; "
                        "checkpoints need a folder that all processes share"
                    )
            _write_manifest(partial, state.step, size)
            files.replace_dir(partial, target)

    try:
        # Each part ends on all ranks before the next begins: rank 0 makes the folder that the
        # others fill, and seals it when they have.
        for part in (begin, fill, seal):
            explained = functools.partial(_explained, part, target, estimate)
            together(explained, f"{target} was not written", world, CheckpointError)
    except BaseException:
        if rank == 0:
            files.discard(partial)
        raise
    return _read_manifest(target)


def _explained(part: Callable[[], None], target: Path, estimate: int) -> None:
    """Run `part`; an error of the operating system becomes a CheckpointError with the way out."""
    try:
        part()
    except Exception as error:
        if files.disk_full(error):
            root = target.parent
            needed = max(estimate, _newest_size(root), _bytes(files.beside(target, files.PARTIAL)))
            free = files.free_bytes(root if root.is_dir() else root.parent)
            raise CheckpointError(_full(target, needed, free)) from error
        if isinstance(error, OSError):
            raise CheckpointError(f"{target} was not written: {error}; earlier checkpoints are intact") from error
        raise


def _full(target: Path, needed: int, free: int) -> str:
    return (
        f"{target} was not written: the disk is full; it needs about {needed} bytes, {free} are free. Earlier "
        "checkpoints are intact: free some space (or keep fewer with --keep) and continue with --resume"
    )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _newest_size(root: Path) -> int:
    """Bytes of the newest checkpoint with a manifest, 0 if there is none: what the next one is likely to take."""
    for step in reversed(steps(root)):
        try:
            return sum(_read_manifest(root / step_name(step)).files.values())
        except CheckpointError:
            continue
    return 0


def _write_manifest(folder: Path, step: int, ranks: int) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    entries: dict[str, dict[str, Any]] = {}
    # Threads, because hashing releases the interpreter lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, digest in zip(paths, pool.map(files.sha256, paths), strict=True):
            size = path.stat().st_size
            # A full disk may cut a file without an error; the header of safetensors declares the
            # size.
            if path.suffix == ".safetensors" and size != safetensors_size(path):
                declared = safetensors_size(path)
                raise CheckpointError(f"{path.name} came out with {size} bytes of {declared}; is the disk full?")
            entries[path.relative_to(folder).as_posix()] = {"size": size, "sha256": digest}
    files.write_atomic(folder / MANIFEST, _sealed({"format": FORMAT, "step": step, "ranks": ranks, "files": entries}))


def _sealed(body: dict[str, Any]) -> str:
    """The manifest's text, with a digest of everything else in it, so that no byte of it can change unnoticed."""
    return files.json_text({**body, "sha256": hashlib.sha256(files.json_text(body).encode()).hexdigest()})


# ----------------------------------------------------------------------------------------------------------- finding


def _read_manifest(path: Path) -> Checkpoint:
    """The manifest of a checkpoint folder, checked against its own digest and the folder's name."""
    file = path / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
        body = json.loads(text)
        body.pop("sha256")
    except FileNotFoundError:
        raise CheckpointError(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{MANIFEST} cannot be read") from None
    if body.get("format") != FORMAT:
        raise CheckpointError(f"{MANIFEST} has format {body.get('format')!r}, expected {FORMAT}")
    if text != _sealed(body):
        raise CheckpointError(f"{MANIFEST} does not have the sha256 that it states")
    if path.name != step_name(body["step"]):
        raise CheckpointError(f"{MANIFEST} is that of {step_name(body['step'])}")
    return Checkpoint(path, body["step"], body["ranks"], {name: entry["size"] for name, entry in body["files"].items()})


def digests(path: Path) -> dict[str, str]:
    """sha256 of each file of the checkpoint folder `path`, as its manifest has them. Raises CheckpointError."""
    _read_manifest(path)
    entries = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    return {name: entry["sha256"] for name, entry in entries.items()}


def problems(path: Path, *, deep: bool = True) -> list[str]:
    """What keeps the folder `path` from being a checkpoint, a line for each problem; empty if it is intact.

    Reads every byte, or with `deep` false only the manifest and the sizes.
    """
    try:
        checkpoint = _read_manifest(path)
    except CheckpointError as error:
        return [str(error)]
    expected = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    lines = []
    for name, size in checkpoint.files.items():
        file = path / name
        if not file.is_file():
            lines.append(f"{name} is missing")
        elif file.stat().st_size != size:
            lines.append(f"{name} has {file.stat().st_size} bytes, expected {size}")
        elif deep:
            try:
                digest = files.sha256(file)
            except OSError as error:
                lines.append(f"{name} cannot be read: {error.strerror}")
                continue
            if digest != expected[name]["sha256"]:
                lines.append(f"{name} has sha256 {digest}, expected {expected[name]['sha256']}")
    return lines


def verify(path: Path) -> Checkpoint:
    """Read every byte of a checkpoint. Raises CheckpointError that names each file at fault."""
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint {path}; {_offer(path.parent)}")
    lines = problems(path)
    if lines:
        raise CheckpointError(f"{Broken(path, lines)} (in {path.parent})")
    return _read_manifest(path)


def find(root: Path) -> tuple[Checkpoint | None, list[Broken]]:
    """The newest intact checkpoint below `root`, or None, and every newer folder that is not one, newest first."""
    broken: list[Broken] = []
    for step in reversed(steps(root)):
        path = root / step_name(step)
        lines = problems(path)
        if not lines:
            return _read_manifest(path), broken
        broken.append(Broken(path, lines))
    return None, broken


def choose(root: Path, resume_from: str = "", *, world: World | None = None) -> Checkpoint | None:
    """The checkpoint to resume from: the one named (`step-000100` or `100`), else the newest; None if there is none.

    Every rank calls this; rank 0 reads, and all get the same answer. Leftovers of killed saves are removed.

    Raises CheckpointError if the named or the newest one is not intact. It says what is wrong and how to resume from
    the newest intact one: to go back silently would hide the work that is lost.
    """

    def by_rank_0() -> int | None:
        if world is not None and world.rank != 0:
            return None
        chosen = _choose(root, resume_from)
        return None if chosen is None else chosen.step

    step = together(by_rank_0, f"no checkpoint of {root} was chosen", world, CheckpointError)
    step = from_first(step, world)
    return None if step is None else _read_manifest(root / step_name(step))


def _choose(root: Path, resume_from: str) -> Checkpoint | None:
    clean(root)
    if resume_from:
        name = step_name(int(resume_from)) if resume_from.isascii() and resume_from.isdecimal() else resume_from
        if not _STEP.fullmatch(name):
            raise CheckpointError(f"resume_from: got {resume_from}, expected a name like step-000100; {_offer(root)}")
        return verify(root / name)
    intact, broken = find(root)
    if not broken:
        return intact
    lost = "; ".join(str(folder) for folder in broken)
    if intact is None:
        raise CheckpointError(f"{lost}. {root} holds no intact checkpoint; start anew with --overwrite")
    name = step_name(intact.step)
    raise CheckpointError(f"{lost}. {name} is intact: go back to it with --resume --resume-from {name}")


def _offer(root: Path) -> str:
    names = ", ".join(step_name(step) for step in steps(root)) or "none"
    return f"{root} has {names}"


# ---------------------------------------------------------------------------------------------------------- removing


def clean(root: Path) -> None:
    """Remove what killed saves and deletions left below `root`; a checkpoint whose replacement was cut is put back."""
    for folder in (root, root / ABANDONED):
        if folder.is_dir():
            files.restore(folder, "step-")


def prune(root: Path, keep: int, best: int | None = None) -> list[int]:
    """Delete checkpoints but the newest `keep` (0 keeps all) and that of step `best`; returns the deleted steps.

    The newest intact one stays in any case, and so does what is newer than it, for its owner to look at. Intact means
    here that the files of the manifest have their sizes: reading every byte is left to `find`.
    """
    all_steps = steps(root)
    intact = [step for step in all_steps if not problems(root / step_name(step), deep=False)]
    if not keep or not intact:
        return []
    kept = {*intact[-keep:], best}
    deleted = [step for step in all_steps if step not in kept and step < intact[-1]]
    for step in deleted:
        files.remove_dir(root / step_name(step))
    return deleted


def set_aside(root: Path, step: int) -> list[Path]:
    """Move checkpoints after `step` to `root/abandoned/`, intact or not; returns where they are now.

    Rank 0 calls this when a run goes back to `step`, before it cuts its append-only files: later checkpoints belong to
    another future, and must not be found when the run is resumed next. An earlier folder of that name is deleted.
    """
    moved = []
    for later in steps(root):
        if later > step:
            files.make_dir(root / ABANDONED)
            target = root / ABANDONED / step_name(later)
            files.replace_dir(root / step_name(later), target)
            files.fsync_dir(root)
            moved.append(target)
    return moved
