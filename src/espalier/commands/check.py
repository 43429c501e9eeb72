"""`espalier check`: all that a run checks before its first step, and no step."""

from __future__ import annotations

from pathlib import Path

from espalier import files
from espalier.assembly.describe import describe
from espalier.assembly.parts import parts
from espalier.assembly.runs import RunConfig
from espalier.checks.start import prepared, settle


def run(config: RunConfig) -> None:
    """Run every check of `train` and stop there. Raises CheckError where one fails."""
    with parts(config) as p:
        describe(config, p)
        _, _, checks = prepared(config, p)
        out = Path(config.loop.out)
        if (out / "run.yaml").exists() or p.world.rank:  # a run's own preflight.json stays
            settle(p.say, checks, None)
        else:
            files.make_dir(out)
            settle(p.say, checks, out / "preflight.json")
