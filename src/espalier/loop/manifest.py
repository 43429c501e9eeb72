"""manifest.json of a run: what the run made in its folder, what it computes from, and when it was started.

    entries   names in the run's folder, each listed before it is written
    removing  true while the entries are being deleted
    pinned    facts by name that a resumed run must meet again
    starts    time, arguments and changes of each start
    sha256    of all that

Only what is listed is ever replaced or deleted: an entry is listed and then written, so a kill at any moment leaves at
most a name without its entry. A run of an older version has no list; of it counts what is known by its content.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espalier import files
from espalier.errors import ConfigError
from espalier.loop.older_runs import is_preflight, known_by_content

NAME = "manifest.json"
FORMAT = 1
LOCK = ".lock"
ENTRIES = (
    *(LOCK, NAME, "run.yaml", "checkpoints", "metrics.jsonl", "samples.jsonl", "preflight.json", "rejected.jsonl"),
    *("journal.jsonl", "journals"),
    *("findings.json", "report.html", "workbench.json", "workbench.html", "model", "tensorboard", "trackers"),
)
"""All names that a run may list."""
STAY = (LOCK, NAME)
"""Entries that the next run takes over: the lock is held, and the list is replaced as a whole."""


@dataclass(slots=True)
class Manifest:
    """The content of manifest.json in `folder`. older: an older version wrote it, without a list of entries."""

    folder: Path
    entries: list[str] = field(default_factory=lambda: list(STAY))
    pinned: dict[str, dict[str, Any]] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    removing: bool = False
    older: bool = False
    _written: str | None = None

    @property
    def path(self) -> Path:
        return self.folder / NAME

    def write(self) -> None:
        """Replace the file. Raises ConfigError if another run wrote it meanwhile, OSError."""
        if _text(self.path) not in (None, self._written):
            raise ConfigError(
                f"{self.path} is no longer the one that this run wrote: another run took the folder. Nothing more is "
                "written there; continue this run from a copy of its folder",
                key="out",
            )
        body = {"format": FORMAT, "entries": self.entries, "removing": self.removing}
        text = files.sealed({**body, "pinned": self.pinned, "starts": self.starts})
        files.make_dir(self.folder)
        files.write_atomic(self.path, text)
        self._written = text

    def claim(self, *names: str) -> None:
        """List entries that are about to be written. Raises ConfigError for one that stands there and is not listed."""
        new = [name for name in names if name not in self.entries]
        if not new:
            return
        self.refuse_in_the_way(new)
        self.entries += new
        self.write()

    def refuse_in_the_way(self, names: Sequence[str] = ENTRIES) -> None:
        """Raise ConfigError that lists what has one of these names and is not the run's."""
        if "preflight.json" in names and is_preflight(self.folder / "preflight.json"):
            names = [name for name in names if name != "preflight.json"]
        foreign = [entry for name in names if name not in self.entries for entry in _there(self.folder, name)]
        if not foreign:
            return
        why = "which no run of Espalier is known to have made"
        if self.older:
            why = "which are not known by their content, and the older version that made this run kept no list"
        raise ConfigError(
            f"out: {self.folder} holds {', '.join(foreign)}, {why}; what this run would write stands under the same "
            "name. Move it away, or choose another folder",
            key="out",
        )

    def remove(self) -> None:
        """Delete all entries, and start an empty list. A kill inside is finished by the next call."""
        while going := [name for name in self.entries if name not in STAY]:
            self.removing = True
            self.write()
            for entry in _there(self.folder, going[0]):
                files.delete(self.folder / entry)
            self.entries.remove(going[0])
        self.pinned, self.starts = {}, []
        self.removing = self.older = False

    def start(self, start: dict[str, Any], *entries: str) -> None:
        """Add a start, and `entries` that are about to be written; what was listed and is not there is listed no
        more."""
        self.starts.append(start)
        listed = {*STAY, *entries, *(name for name in self.entries if _there(self.folder, name))}
        self.entries = [name for name in ENTRIES if name in listed]
        self.write()

    def tidy(self, name: str) -> None:
        """Finish what a kill left while the listed entry `name` was replaced or deleted."""
        if name in self.entries:
            files.restore_one(self.folder / name)


def read(folder: Path) -> Manifest | None:
    """The manifest of the run in `folder`; None if there is no file of that name.

    Raises ConfigError for a file that is not a run's or was changed since the run wrote it.
    """
    path = folder / NAME
    text = _text(path)
    if text is None:
        return None
    body = files.unsealed(text)
    if body is not None and body.get("format") == FORMAT and set(body["entries"]) <= set(ENTRIES):
        entries, pinned, starts = body["entries"], body["pinned"], body["starts"]
        return Manifest(folder, entries, pinned, starts, removing=body["removing"], _written=text)
    if _is_older(text):
        body = json.loads(text)
        entries = [*STAY, *known_by_content(folder)]
        return Manifest(folder, entries, body["pinned"], body["starts"], older=True, _written=text)
    raise ConfigError(
        f"{path} cannot be read as a run's manifest: it is not one, or was changed. Nothing in {folder} is touched; "
        "put the file back, or choose another folder",
        key="out",
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None


def _is_older(text: str) -> bool:
    """Whether a file is the manifest of an older run, which has no list and no digest."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(body, dict) or body.keys() != {"pinned", "starts"}:
        return False
    return isinstance(body["pinned"], dict) and isinstance(body["starts"], list)


def _there(folder: Path, name: str) -> list[str]:
    """What stands in `folder` for the entry `name`: itself, and what replacements of it were cut."""
    paths = [folder / name, *(files.beside(folder / name, suffix) for suffix in files.SUFFIXES)]
    return [path.name for path in paths if os.path.lexists(path)]
