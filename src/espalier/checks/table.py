"""The table of checks before the first step: a check is a value, a limit and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from espalier.errors import CheckError, ConfigError
from espalier.files import json_text, write_atomic

Verdict = Literal["pass", "warn", "fail", "skipped"]


NAMES = (
    *("rows", "trained", "stop", "bos", "mask", "template", "layout", "loss", "update"),
    *("preferences", "reference", "first_loss"),  # of runs that learn from judgements
)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table. `way_out` says what to do where the verdict is not pass."""

    name: str
    value: str
    limit: str
    verdict: Verdict
    way_out: str = ""


def settle(checks: Sequence[Check], path: Path | None) -> None:
    """Write `preflight.json`; raise CheckError naming every failed check and its way out."""
    if path is not None:
        write_atomic(path, json_text({"checks": [asdict(c) for c in checks]}))
    failed = [c for c in checks if c.verdict == "fail"]
    if failed:
        causes = "; ".join(f"{c.name}: {c.value}, expected {c.limit}. {c.way_out}" for c in failed)
        names = " ".join(c.name for c in failed)
        raise CheckError(f"{causes} (--skip-checks {names} goes on all the same)")


def run(checks: Iterable[tuple[str, Callable[[], Check]]], skip: Sequence[str]) -> list[Check]:
    """Run checks in order. Raises ConfigError for a name in `skip` that is none."""
    if unknown := [name for name in skip if name not in NAMES]:
        raise ConfigError(f"skip_checks: got {unknown[0]}, expected some of {', '.join(NAMES)}", key="skip_checks")
    return [Check(n, "", "", "skipped") if n in skip else check() for n, check in checks]
