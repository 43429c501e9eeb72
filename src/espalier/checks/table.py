"""What a check before the first step says, and what becomes of it: a value, a limit and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from espalier.errors import CheckError
from espalier.files import json_text, write_atomic

Verdict = Literal["pass", "warn", "fail", "skipped"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found. `way_out` says what to do unless the verdict is pass."""

    value: str
    limit: str
    verdict: Verdict
    way_out: str = ""


def passed(value: str, limit: str) -> Outcome:
    """The value is within its limit."""
    return Outcome(value, limit, "pass")


def warned(value: str, limit: str, way_out: str) -> Outcome:
    """The run goes on, and the way out is printed."""
    return Outcome(value, limit, "warn", way_out)


def failed(value: str, limit: str, way_out: str) -> Outcome:
    """The run stops with the way out."""
    return Outcome(value, limit, "fail", way_out)


def skipped(value: str = "", limit: str = "") -> Outcome:
    """Nothing was checked: the user left the check out, or nothing here can be checked."""
    return Outcome(value, limit, "skipped")


def settle(outcomes: Mapping[str, Outcome], path: Path | None) -> None:
    """Write `preflight.json`; raise CheckError naming every failed check and its way out."""
    if path is not None:
        lines = []
        for name, o in outcomes.items():
            lines.append({"name": name, "value": o.value, "limit": o.limit, "verdict": o.verdict, "way_out": o.way_out})
        write_atomic(path, json_text({"checks": lines}))
    causes = {name: o for name, o in outcomes.items() if o.verdict == "fail"}
    if causes:
        texts = [f"{name}: {o.value}, expected {o.limit}. {o.way_out}" for name, o in causes.items()]
        raise CheckError(f"{'; '.join(texts)} (--skip-checks {' '.join(causes)} goes on all the same)")
