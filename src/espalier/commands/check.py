"""`espalier check`: all that a run checks before its first step, and no step."""

from __future__ import annotations

from pathlib import Path

from espalier import files
from espalier.assembly.describe import describe
from espalier.assembly.runs import RunConfig
from espalier.assembly.session import open_session
from espalier.checks.start import run_checks, settle
from espalier.loop.older_runs import is_preflight


def run(config: RunConfig) -> None:
    """Run every check of a training command and stop there. Raises CheckError if one fails."""
    with open_session(config) as session:
        describe(session)
        outcomes = run_checks(session)
        path = Path(config.loop.out) / "preflight.json"
        taken = path.exists() and not is_preflight(path)
        if taken:
            session.console.note(
                f"{path} is not a list of checks, and is left as it is; name another folder with --out"
            )
        # A run's own preflight.json stays.
        if taken or path.with_name("manifest.json").exists() or not session.main:
            settle(session, outcomes, None)
        else:
            files.make_dir(path.parent)
            settle(session, outcomes, path)
