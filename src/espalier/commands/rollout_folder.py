"""The folder of `espalier rollout`: samples.jsonl, and rollout.json, which says what the samples follow from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from espalier import files
from espalier.errors import ConfigError
from espalier.loop.metrics import MetricsFile, read_lines

MARK = "espalier rollout"
"""The entry of rollout.json by which the command knows its own folders."""
Pins = dict[str, Any]


class RolloutFolder:
    """The lines so far, and what they follow from."""

    def __init__(self, out: Path):
        self.out = out
        self.samples = out / "samples.jsonl"
        self.summary = out / "rollout.json"

    def open(self, pins: Pins, per_chunk: Sequence[int], *, overwrite: bool) -> int:
        """Enter the folder; returns how many chunks are done. `per_chunk` are the lines of each chunk; lines of one
        that was not finished are cut off.

        Raises ConfigError for a folder with other files, or with rollouts that follow from something else.
        """
        pins = json.loads(json.dumps({MARK: 1, **pins}))
        self._enter(pins, overwrite)
        done = lines = length = 0
        if self.samples.is_file():
            ends = _line_ends(self.samples)
            while done < len(per_chunk) and lines + per_chunk[done] <= len(ends):
                lines += per_chunk[done]
                done += 1
            length = ends[lines - 1] if lines else 0
        with MetricsFile(self.samples) as file:
            file.truncate_to(length)
        return done

    def _enter(self, pins: Pins, overwrite: bool) -> None:
        earlier = self._earlier()
        if earlier is None or (overwrite and earlier != pins):
            # In this order a kill leaves no lines without what they follow from.
            self.samples.unlink(missing_ok=True)
            files.make_dir(self.out)
            self._write({"pins": pins})
        elif earlier != pins:
            changed = sorted(name for name in {*earlier, *pins} if earlier.get(name) != pins.get(name))
            raise ConfigError(
                f"out: {self.out} holds rollouts of another {', '.join(changed)}; choose another folder, or give "
                "--overwrite",
                key="out",
            )
        elif overwrite:
            self.samples.unlink(missing_ok=True)

    def _earlier(self) -> Pins | None:
        """What the rollouts in the folder follow from; None if there is no folder, or an empty one."""
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"out: {self.out} is a file; expected a folder", key="out")
        body = files.unsealed(self.summary.read_bytes()) if self.summary.is_file() else None
        if body is not None and MARK in body.get("pins", {}):
            return dict(body["pins"])
        names = sorted(path.name for path in self.out.iterdir()) if self.out.is_dir() else []
        if [name for name in names if not name.startswith(".rollout.json")]:
            raise ConfigError(
                f"out: {self.out} holds files that are no rollouts ({', '.join(names[:3])}); choose another folder",
                key="out",
            )
        return None

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Add the lines of one chunk."""
        with MetricsFile(self.samples) as file:
            for record in records:
                file.append(record)
            file.sync()

    def lines(self) -> Iterator[dict[str, Any]]:
        return read_lines(self.samples)

    def finish(self, figures: dict[str, Any]) -> None:
        """Put the figures beside what they follow from."""
        body = files.unsealed(self.summary.read_bytes()) or {}
        self._write({"pins": body["pins"], "figures": figures})

    def _write(self, body: dict[str, Any]) -> None:
        files.write_atomic(self.summary, files.sealed(body))


def _line_ends(path: Path) -> list[int]:
    """Bytes up to and including the end of each whole line."""
    ends, at = [], 0
    with open(path, "rb") as file:
        for line in file:
            at += len(line)
            if line.endswith(b"\n"):
                ends.append(at)
    return ends
