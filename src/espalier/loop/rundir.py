"""The folder of one run: what is in it, who may write to it, and whether a resumed run is still the same run.

    runs/NAME/  manifest.json  run.yaml  metrics.jsonl  samples.jsonl  journal.jsonl  preflight.json  rejected.jsonl
                findings.json  checkpoints/  model/  tensorboard/  report.html

`manifest.json` makes a folder a run: it is written before everything else, and lists what the run makes
(`manifest.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from espalier.errors import ConfigError
from espalier.files import PARTIAL, beside, make_dir, write_atomic
from espalier.loop import manifest as manifests
from espalier.loop.manifest import LOCK, Manifest
from espalier.loop.older_runs import HEADING, is_preflight

PACKAGES = ("espalier", "torch", "transformers", "tokenizers", "safetensors", "peft")

MAY_CHANGE = frozenset(
    {
        # Which run, and how it is entered.
        *("out", "resume", "resume_from", "accept_changes", "overwrite"),
        # What is written, and when the run ends.
        *("save_every", "eval_every", "keep", "patience", "track"),
        # Where tokens are kept, what model/ holds, which checks run before the first step.
        *("cache", "export", "skip_checks"),
    }
)
"""Config fields that do not enter the computation of a step. Every other one (`steps` and `epochs` too, because the
learning rate is a function of them) must be what it was for a resumed run to continue bit for bit."""


class RunDir:
    """The paths of a run. `open` makes the folder and locks it; under several processes only rank 0 opens."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "run.yaml"
        self.manifest = path / manifests.NAME
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.preflight = path / "preflight.json"
        self.rejected = path / "rejected.jsonl"
        self.findings = path / "findings.json"
        self.report = path / "report.html"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.tensorboard = path / "tensorboard"
        self.trackers = path / "trackers"
        self.workbench = path / "workbench.json"
        self.workbench_page = path / "workbench.html"
        self.resumed = False
        self.notes: list[str] = []
        self._accept = False
        self._lock = -1
        self._list = Manifest(path)

    @classmethod
    def open(
        cls, path: Path, config: str, *, resume: bool = False, overwrite: bool = False, accept_changes: bool = False
    ) -> RunDir:
        """Lock `path` and make it the run of `config` (resolved, YAML), a new one or the one already there.

        A folder that holds a run of a step or more is entered with `resume`, or loses that run with `overwrite`; to
        resume a run that was never begun begins one. `resumed` says which it was; `notes` are lines for the user. Only
        what manifest.json lists is ever replaced or deleted: a folder with files and no run is refused, and so is one
        in which something else has a name that the run needs. The lock ends with `close` or with the process.

        Raises ConfigError with the way out: the folder is in use, holds another run or no run, or something in the way;
        the config reads from what would be deleted; or, unless `accept_changes`, a resumed config differs in a field
        outside `MAY_CHANGE`, or the `versions` differ.
        """
        run = cls(path)
        if "\0" in str(path):
            raise ConfigError(f"out: got {str(path)!r}, expected a path without a null character", key="out")
        try:
            if path.exists() and not path.is_dir():
                raise ConfigError(f"out: {path} is a file, expected a folder; choose another name", key="out")
            run._refuse_foreign(resume)
            make_dir(path)
            run._take_lock()
            try:
                run._enter(config, resume, overwrite, accept_changes)
                run.pin("versions", versions())
            except BaseException:
                run.close()
                raise
        except OSError as error:
            raise ConfigError(f"out: {path} cannot be used: {error.strerror} ({error.filename})", key="out") from error
        return run

    def journals(self, ranks: int) -> list[Path]:
        """What the ranks of a run keep the outcomes of rollouts in."""
        return [self.path / "journal.jsonl", *([self.path / "journals"] if ranks > 1 else [])]

    def close(self) -> None:
        """Release the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create(self, *paths: Path) -> None:
        """List entries of this folder in manifest.json, before they are written; nothing on ranks that did not `open`.

        Raises ConfigError if one stands there already and is not listed.
        """
        if self._lock < 0:
            return
        names = [path.name for path in paths]
        try:
            self._list.claim(*names)
            for name in names:
                self._list.tidy(name)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written: {error.strerror}; {resumption(self.path)}") from error

    @classmethod
    def adopt(cls, path: Path) -> RunDir:
        """The run in `path`, locked, for a command that writes one more entry with `create`.

        Raises ConfigError if the run is in use, or its manifest cannot be read; a folder without a run is not locked,
        and gets no list.
        """
        run = cls(path)
        listed = manifests.read(path)
        if listed is not None:
            run._take_lock()
            run._list = listed
        return run

    def pinned(self, name: str) -> Mapping[str, Any]:
        """What `pin` stored under a name; empty if nothing is."""
        listed = manifests.read(self.path)
        return listed.pinned.get(name, {}) if listed is not None else {}

    def pin(self, name: str, facts: Mapping[str, Any]) -> None:
        """`pin_all` of one name."""
        self.pin_all({name: facts})

    def pin_all(self, groups: Mapping[str, Mapping[str, Any]]) -> None:
        """Store what must stay as it is for the run to repeat (threads, ranks, device, content hashes of data) in
        manifest.json; on a resumed run, compare with what the first start stored.

        Raises ConfigError that lists old -> new, unless the run was opened with `accept_changes`: then the new facts
        are stored, and the old are kept in the entry of this start. A resumed run that did not store a name is refused,
        too, unless an older version began it: then there is a note.
        """
        news = {name: json.loads(json.dumps(facts)) for name, facts in groups.items()}
        all_changes: dict[str, list[Any]] = {}
        texts = []
        for name, new in news.items():
            old = self._list.pinned.get(name, {} if self.resumed else new)
            if name not in self._list.pinned and self.resumed and self._list.older:
                self.notes.append(f"{name} was not noted by the version that began this run; it is taken as it is now")
                old = new
            changes = _changes(old, new)
            if changes:
                texts.append(f"{name} changed: {_listed(changes)}")
                all_changes.update(changes)
        if all_changes:
            self._refuse(texts, all_changes, "Resume where these are as before")
            self._list.starts[-1]["changed"].update(all_changes)
        self._list.pinned.update(news)
        self._list.write()

    # ------------------------------------------------------------------------------------------------------ opening

    def _refuse_foreign(self, resume: bool) -> None:
        """Raise ConfigError for a folder without a run that holds other files than an interrupted `open` leaves."""
        if not self.path.is_dir() or manifests.read(self.path) is not None:
            return
        foreign = [path.name for path in sorted(self.path.iterdir()) if not self._is_ours(path)]
        if not foreign:
            return
        shown = ", ".join([*foreign[:3], "..."] if len(foreign) > 3 else foreign)
        if resume and self.config.exists():
            raise ConfigError(
                f"out: {self.manifest} is missing, so nothing says what the run in {self.path} computed from, or that "
                f"{shown} is its own; put the file back, or start anew in another folder",
                key="out",
            )
        raise ConfigError(
            f"out: {self.path} holds files but no run ({shown}), and is left alone; choose a new folder", key="out"
        )

    def _is_ours(self, path: Path) -> bool:
        """Whether an interrupted `open`, or `check`, left a file where there is no run yet."""
        if path.name == LOCK:
            return _is_lock(path)
        return path == beside(self.manifest, PARTIAL) or (path == self.preflight and is_preflight(path))

    def _take_lock(self) -> None:
        lock = self.path / LOCK
        if os.path.lexists(lock) and not _is_lock(lock):
            raise ConfigError(f"out: {lock} is not a run's lock; move it away, or choose another folder", key="out")
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 32, 0).decode().strip() or "unknown"
            self.close()
            raise ConfigError(
                f"out: {self.path} is in use by process {owner}; wait for it or stop it, or choose another folder",
                key="out",
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _enter(self, config: str, resume: bool, overwrite: bool, accept_changes: bool) -> None:
        self._accept = accept_changes
        # Read again, under the lock.
        self._list = manifests.read(self.path) or Manifest(self.path)
        begun = not self._list.removing and self._begun()
        if begun and not (resume or overwrite):
            raise ConfigError(
                f"out: {self.path} already holds a run; continue it with --resume, remove it with --overwrite, "
                "or choose another folder",
                key="out",
            )
        self._list.refuse_in_the_way()
        if begun and resume:
            self._resume(config)
            return
        self._refuse_inputs(config)
        self._list.remove()
        self._start({}, "run.yaml", "checkpoints")
        write_atomic(self.config, config)
        self.checkpoints.mkdir(exist_ok=True)

    def _begun(self) -> bool:
        """Whether a step was made: a run that ended before (a check failed, a row was bad) is replaced by the next."""
        listed = self._list.entries
        if self.metrics.name in listed and self.metrics.exists() and self.metrics.stat().st_size > 0:
            return True
        return self.checkpoints.name in listed and self.checkpoints.is_dir() and any(self.checkpoints.iterdir())

    def _refuse_inputs(self, config: str) -> None:
        """Raise ConfigError if the config reads from an entry that is about to be deleted."""
        going = [(self.path / name).resolve() for name in self._list.entries if name not in manifests.STAY]
        for name, value in _flat(config, self.config).items():
            for text in _strings(value) if name != "out" else ():
                if _reads_from(text, going):
                    raise ConfigError(
                        f"{name}: {text} is part of the run in {self.path}, which this one would remove; choose "
                        "another out, or copy it elsewhere first",
                        key=name,
                    )

    def _resume(self, config: str) -> None:
        changes = _changes(_read_config(self.config), _flat(config, self.config))
        breaking = {name: change for name, change in changes.items() if name not in MAY_CHANGE}
        if breaking:
            text = f"its config changed: {_listed(breaking)}"
            way_out = "Resume with the old values, start anew with --overwrite"
            if all(old == _ABSENT for old, _ in breaking.values()):
                # Settings that the version which began the run did not have.
                way_out = "An earlier version began it, and may have read and rendered rows in another way: start anew"
                way_out += " with --overwrite"
            self._refuse([text], breaking, way_out)
        self.resumed = True
        for name in [*self._list.entries]:
            self._list.tidy(name)
        self._start(changes, "run.yaml", "checkpoints")
        if changes:
            write_atomic(self.config, config)

    def _refuse(self, texts: list[str], changes: Mapping[str, Any], way_out: str) -> None:
        if self._accept:
            return
        raise ConfigError(
            f"{self.path} would not continue bit for bit: {'; '.join(texts)}. {way_out}, or give --accept-changes",
            key=next(iter(changes)) if len(changes) == 1 else "",
        )

    def _start(self, changed: dict[str, list[Any]], *entries: str) -> None:
        """Add this start, with the config fields it changes (old, new), and `entries` to manifest.json."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._list.start({"time": now, "argv": sys.argv, "changed": changed}, *entries)


def _is_lock(path: Path) -> bool:
    """Whether a file is empty, or holds what a run's lock does: the number of a process."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 32:
        return False
    return re.fullmatch(rb"\d*\n?", path.read_bytes()) is not None


def _strings(value: Any) -> Iterator[str]:
    """Every string in a value of a config."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _strings(entry)


def _reads_from(text: str, entries: list[Path]) -> bool:
    """Whether a value of a config, taken as a path, lies in one of the entries; DATA:FORMAT=SHARE counts as DATA."""
    bare = text.split("=")[0]
    for place in {text, bare, text.split(":")[0], bare.rsplit(":", 1)[0]}:
        if place and "\0" not in place:
            path = Path(os.path.expanduser(place)).resolve()
            if any(path.is_relative_to(entry) for entry in entries):
                return True
    return False


def resumption(out: Path) -> str:
    """How to continue the run in `out` after an interrupt."""
    if not (out / "run.yaml").exists():
        return f"{out} holds no run yet; the same command starts it"
    first = (out / "run.yaml").read_text(encoding="utf-8").split("\n", 1)[0]
    command = first.removeprefix(HEADING).split()[0] if first.startswith(HEADING) else "sft"
    return f"continue with: espalier {command} --config {shlex.quote(str(out / 'run.yaml'))} --resume"


def versions() -> dict[str, str]:
    """Python's and the installed versions of `PACKAGES` by name, without importing any of them."""
    versions_by_name = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions_by_name[name] = version(name)
        except PackageNotFoundError:
            versions_by_name[name] = "not installed"
    return versions_by_name


def _read_config(path: Path) -> dict[str, Any]:
    """The config fields of a run that is resumed. Raises ConfigError if they cannot be read."""
    try:
        return _flat(path.read_text(encoding="utf-8"), path)
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read, so nothing says what the run was asked for ({error}); put it back, or start anew "
            "with --overwrite"
        ) from error


def _flat(text: str, where: Path) -> dict[str, Any]:
    """Config fields by name, without their sections: names are unique over all of them."""
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where} is not YAML: {reason}; start anew with --overwrite") from error
    if not isinstance(entries, dict):
        raise ConfigError(f"{where} holds no config fields; start anew with --overwrite")
    flat: dict[str, Any] = {}
    for name, value in entries.items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


_ABSENT = "(absent)"


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """`{name: [old, new]}` of the entries that differ, by name."""
    pairs = {name: [old.get(name, _ABSENT), new.get(name, _ABSENT)] for name in sorted({*old, *new})}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _listed(changes: Mapping[str, list[Any]]) -> str:
    """`name old -> new` of every change."""
    return "; ".join(f"{name} {_show(old)} -> {_show(new)}" for name, (old, new) in changes.items())


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
