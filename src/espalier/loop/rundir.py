"""The folder of one run: what is in it, who may write to it, and whether a resumed run is still the same run.

    runs/NAME/  run.yaml  manifest.json  metrics.jsonl  samples.jsonl  preflight.json  rejected.jsonl
                findings.json  checkpoints/  model/  tensorboard/  report.html

`run.yaml` makes a folder a run: it is written before everything else and removed before everything else.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from espalier.errors import ConfigError
from espalier.files import TRASH, fsync_dir, json_text, make_dir, write_atomic

LOCK = ".lock"
HEADING = "# espalier "
"""The beginning of run.yaml; the command that it configures follows."""
CONTENTS = (
    *("run.yaml", "manifest.json", "metrics.jsonl", "samples.jsonl", "preflight.json", "rejected.jsonl"),
    *("findings.json", "report.html", "checkpoints", "model", "tensorboard", "trackers"),
)
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
        self.manifest = path / "manifest.json"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.preflight = path / "preflight.json"
        self.rejected = path / "rejected.jsonl"
        self.findings = path / "findings.json"
        self.report = path / "report.html"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.tensorboard = path / "tensorboard"
        self.resumed = False
        self._accept = False
        self._lock = -1

    @classmethod
    def open(
        cls, path: Path, config: str, *, resume: bool = False, overwrite: bool = False, accept_changes: bool = False
    ) -> RunDir:
        """Lock `path` and make it the run of `config` (resolved, YAML), a new one or the one already there.

        A folder that holds a run of a step or more is entered with `resume`, or loses that run with `overwrite`; to
        resume a run that was never begun begins one. `resumed` says which it was. Files that are not a run's are never
        touched, and a folder that holds such files and no run is refused. The lock ends with `close` or with the
        process.

        Raises ConfigError with the way out: the folder is in use, holds another run or no run; or, unless
        `accept_changes`, a resumed config differs in a field outside `MAY_CHANGE`, or the `versions` differ.
        """
        run = cls(path)
        try:
            if path.exists() and not path.is_dir():
                raise ConfigError(f"out: {path} is a file, expected a folder; choose another name", key="out")
            run._refuse_foreign()
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

    def pin(self, name: str, facts: Mapping[str, Any]) -> None:
        """Store what must stay as it is for the run to repeat (threads, ranks, device, content hashes of data) in
        manifest.json; on a resumed run, compare with what the first start stored.

        Raises ConfigError that lists old -> new, unless the run was opened with `accept_changes`: then the new facts
        are stored, and the old are kept in the entry of this start.
        """
        manifest = self._read_manifest()
        new = json.loads(json.dumps(facts))
        changes = _changes(manifest["pinned"].get(name, new), new)
        if changes:
            self._refuse(f"{name} changed", changes, "Resume where these are as before")
            manifest["starts"][-1]["changed"].update(changes)
        manifest["pinned"][name] = new
        write_atomic(self.manifest, json_text(manifest))

    # ------------------------------------------------------------------------------------------------------ opening

    def _refuse_foreign(self) -> None:
        """Raise ConfigError for a folder without a run that holds other files than an interrupted `open` leaves."""
        if not self.path.is_dir() or self.config.exists() or (self.path / TRASH).exists():
            return
        # preflight.json is left by `check`, the others by an interrupted `open`.
        ours = (LOCK, ".run.yaml.partial", "preflight.json")
        foreign = sorted(entry.name for entry in self.path.iterdir() if entry.name not in ours)
        if foreign:
            shown = ", ".join([*foreign[:3], "..."] if len(foreign) > 3 else foreign)
            raise ConfigError(
                f"out: {self.path} holds files but no run ({shown}), and is left alone; choose a new folder",
                key="out",
            )

    def _take_lock(self) -> None:
        self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
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
        if self.config.exists() and self._begun():
            _delete(self.path / TRASH)
            if resume:
                self._resume(config)
                return
            if not overwrite:
                raise ConfigError(
                    f"out: {self.path} already holds a run; continue it with --resume, remove it with --overwrite, "
                    "or choose another folder",
                    key="out",
                )
        self._remove_old()
        write_atomic(self.config, config)
        self._start({})
        _delete(self.path / TRASH)
        self.checkpoints.mkdir(exist_ok=True)

    def _begun(self) -> bool:
        """Whether a step was made: a run that ended before (a check failed, a row was bad) is replaced by the next."""
        steps = self.metrics.exists() and self.metrics.stat().st_size > 0
        return steps or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))

    def _remove_old(self) -> None:
        """Move the old run's entries into one trash folder, `run.yaml` first; other files stay.

        From then on there is no run here, and the trash folder says that what is left of it may be deleted.
        """
        trash = self.path / TRASH
        if not self.config.exists() and not trash.exists():
            return
        trash.mkdir(exist_ok=True)
        for name in CONTENTS:
            if (self.path / name).exists():
                os.rename(self.path / name, trash / name)
                fsync_dir(self.path)

    def _resume(self, config: str) -> None:
        changes = _changes(_flat(self.config.read_text(encoding="utf-8"), self.config), _flat(config, self.config))
        breaking = {name: change for name, change in changes.items() if name not in MAY_CHANGE}
        if breaking:
            self._refuse("its config changed", breaking, "Resume with the old values, start anew with --overwrite")
        self.resumed = True
        self._start(changes)
        if changes:
            write_atomic(self.config, config)

    def _refuse(self, what: str, changes: Mapping[str, list[Any]], way_out: str) -> None:
        if self._accept:
            return
        listed = "; ".join(f"{name} {_show(old)} -> {_show(new)}" for name, (old, new) in changes.items())
        key = next(iter(changes)) if len(changes) == 1 else ""
        raise ConfigError(
            f"{self.path} would not continue bit for bit: {what}: {listed}. {way_out}, or give --accept-changes",
            key=key,
        )

    def _start(self, changed: dict[str, list[Any]]) -> None:
        """Add this start, with the config fields it changes (old, new), to manifest.json."""
        manifest = self._read_manifest() if self.manifest.exists() else {"pinned": {}, "starts": []}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        manifest["starts"].append({"time": now, "argv": sys.argv, "changed": changed})
        write_atomic(self.manifest, json_text(manifest))

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
            if isinstance(manifest["pinned"], dict) and isinstance(manifest["starts"], list):
                return dict(manifest)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise ConfigError(f"{self.manifest} cannot be read; put it back, or start anew with --overwrite", key="out")


def resumption(out: Path) -> str:
    """How to continue the run in `out` after an interrupt."""
    if not (out / "run.yaml").exists():
        return f"{out} holds no run yet; the same command starts it"
    first = (out / "run.yaml").read_text(encoding="utf-8").split("\n", 1)[0]
    command = first.removeprefix(HEADING).split()[0] if first.startswith(HEADING) else "sft"
    return f"continue with: espalier {command} --config {shlex.quote(str(out / 'run.yaml'))} --resume"


def _delete(trash: Path) -> None:
    """Delete what is left of an old run; an entry that resists is tried again when the run is opened next."""
    shutil.rmtree(trash, ignore_errors=True)


def versions() -> dict[str, str]:
    """Python's and the installed versions of `PACKAGES` by name, without importing any of them."""
    versions_by_name = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions_by_name[name] = version(name)
        except PackageNotFoundError:
            versions_by_name[name] = "not installed"
    return versions_by_name


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


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
