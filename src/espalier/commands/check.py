"""`espalier check`: all that a run checks before its first step, and no step."""

from __future__ import annotations

from pathlib import Path

from espalier import files
from espalier.assembly.describe import describe
from espalier.assembly.runs import RunConfig
from espalier.assembly.session import open_session
from espalier.checks.start import run_checks, settle


def run(config: RunConfig) -> None:
    """Run every check of a training command and stop there. Raises CheckError if one fails."""
    with open_session(config) as session:
        describe(session)
        outcomes = run_checks(session)
        out = Path(config.loop.out)
        if (out / "run.yaml").exists() or not session.main:  # a run's own preflight.json stays
            settle(session, outcomes, None)
        else:
            files.make_dir(out)
            settle(session, outcomes, out / "preflight.json")
