"""A place to run commands that are killed, and what it means that two runs are the same."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.checks.start import NAMES
from espalier.loop import checkpoint
from espalier.loop.checkpoint import step_name, steps
from espalier.loop.metrics import read_lines
from tiny import tiny_model, tiny_tokenizer

HERE = Path(__file__).parent
CHECKS = NAMES
"""Skipped unless a test asks for them: the kills are counted in calls, which checks make too."""


TIME_FIELDS = frozenset(
    {"time", "seconds", "tokens_per_second", "sampled_per_second", "eta_seconds", "memory_bytes", "resident_bytes"}
)
"""Fields that depend on the machine's clock and load: two runs that are bitwise equal may differ in these alone."""


def without_time(record: dict[str, Any]) -> dict[str, Any]:
    """The record without `TIME_FIELDS`: in the rest, a resumed run equals one that was never killed."""
    return {key: value for key, value in record.items() if key not in TIME_FIELDS and not key.startswith("seconds_")}


@dataclass(frozen=True)
class Ended:
    code: int  # minus the signal where one killed it
    out: str
    err: str


class Place:
    """A model, data, and a process that runs commands on them in forked children; see killed_runs.py."""

    def __init__(self, folder: Path):
        self.folder, self.model, self.data, self.text = folder, folder / "model", folder / "d.jsonl", folder / "t.jsonl"
        tiny_model("llama").save_pretrained(self.model)
        tiny_tokenizer().save_pretrained(self.model)
        rng = random.Random(0)
        with open(self.data, "w") as file:
            for i in range(27):
                a, b = rng.randrange(100), rng.randrange(100)
                said = [("user", f"{a}+{b}?"), ("assistant", f"{a + b} " * (1 + i % 4))]
                file.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in said]}) + "\n")
        with open(self.text, "w") as file:
            for i in range(20):
                file.write(json.dumps({"text": f"{i} plain words" * (1 + i % 3)}) + "\n")
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "killed_runs.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        assert self._answer() == "ready\n"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()

    def flags(self, run: Path, *more: str, checks: bool = False) -> list[str]:
        skipped = () if checks else ("--skip-checks", *CHECKS)
        return [
            *("sft", "--model", str(self.model), "--data", str(self.data), "--cache", str(self.folder / "cache")),
            *("--out", str(run), "--epochs", "2", "--samples-per-step", "8", "--tokens-per-microbatch", "64"),
            *("--eval-fraction", "0.1", "--eval-every", "2", "--save-every", "3", "--lr", "1e-3", *skipped, *more),
        ]

    def run(self, run: Path, *more: str, hook: list[Any] | None = None, checks: bool = False) -> Ended:
        return self.command(self.flags(run, *more, checks=checks), hook)

    def command(self, argv: list[str], hook: list[Any] | None = None) -> Ended:
        """Any command."""
        assert self.process.stdin is not None
        request = {"argv": argv, "hook": hook}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self._answer()))

    def whole(self, name: str, *more: str) -> Path:
        """A run that nothing interrupts, made once."""
        run = self.folder / name
        if not run.exists():
            ended = self.run(run, *more, checks=True)
            assert ended.code == 0, ended
        return run


def lines(run: Path) -> list[dict[str, Any]]:
    return [without_time(line) for line in read_lines(run / "metrics.jsonl")]


def content(folder: Path) -> dict[str, str]:
    """sha256 of every file by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def assert_same(run: Path, whole: Path, *, names: bool = True) -> None:
    """Weights, optimizer, generators, state, metrics, consumed rows and the exported model, bit for bit.

    The byte length and digest of metrics.jsonl, in state.json, depend on how many digits its time fields have.
    """
    assert lines(run) == lines(whole)
    assert [line["rows"] for line in lines(run) if "rows" in line] == [
        line["rows"] for line in lines(whole) if "rows" in line
    ]
    assert content(run / "model") == content(whole / "model")
    kept = steps(whole / "checkpoints")
    if names:
        assert steps(run / "checkpoints") == kept
    for name in (step_name(step) for step in kept if step in steps(run / "checkpoints")):
        one, two = (checkpoint.verify(folder / "checkpoints" / name) for folder in (run, whole))
        blank = {"lengths": None, "digests": None}
        states = [{**json.loads((c.path / "state.json").read_text()), **blank} for c in (one, two)]
        assert states[0] == states[1]
        files = [
            {n: h for n, h in content(c.path).items() if n not in ("manifest.json", "state.json")} for c in (one, two)
        ]
        assert files[0] == files[1] and "policy/optimizer.safetensors" in files[0]
    left = [
        path.name for folder in (run, run / "checkpoints") for path in folder.iterdir() if path.name.startswith(".")
    ]
    assert left == [".lock"], "leftovers"
