"""Children of `espalier overopt` that only write the files which theirs would."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espalier.config.overopt_section import OveroptConfig
from espalier.files import sealed


def config(tmp_path: Path, **given: Any) -> OveroptConfig:
    """A grid of 2 proxies, 2 betas and 2 seeds in tmp_path/o."""
    pairs, tasks = tmp_path / "pairs.jsonl", tmp_path / "t.jsonl"
    pairs.write_text("".join(f'{{"n": {n}}}\n\n' for n in range(5)))
    tasks.write_text("".join(f'{{"question": "{n} + 1?", "answer": "{n + 1}"}}\n' for n in range(3)))
    fields: dict[str, Any] = {
        "model": "m", "data": (str(tasks),), "pairs": str(pairs), "gold": "numeric", "out": str(tmp_path / "o"),
        "sizes": ("2", "4"), "seeds": 2, "steps": 40, "best_of": 4, "prompts": 2, "resamples": 20, **given,
    }  # fmt: skip
    return OveroptConfig(**fields)


class Children:
    """`Runner` whose children write files at once.

    The one named `fails` ends with code 2; `stops` is sent a SIGTERM beside this process, and ends once it is stopped;
    `cut` ends with code 0 before its last file. weights: the name of what trained children export.
    """

    def __init__(self, fails: str = "", stops: str = "", cut: str = "", weights: str = "config.json") -> None:
        self.fails, self.stops, self.cut, self.weights = fails, stops, cut, weights
        self.started: list[str] = []
        self.stopped = threading.Event()

    def stop(self) -> None:
        self.stopped.set()

    def __call__(self, argv: Sequence[str], log: Path) -> int:
        out = Path(argv[argv.index("--out") + 1])
        name = f"gold of {out.name}" if "--regrade" in argv else out.name
        self.started.append(name)
        assert log.parent.is_dir()
        if name == self.stops:
            os.kill(os.getpid(), signal.SIGTERM)
            return 130 if self.stopped.wait(30) else 0
        if name == self.fails:
            return 2
        out.mkdir(parents=True, exist_ok=True)
        if name == self.cut:
            return 0
        if argv[0] == "rollout":
            (out / "rollout.json").write_text(sealed({"figures": {}}))
        else:
            (out / "model").mkdir()
            (out / "model" / self.weights).write_text("{}")
        if argv[0] == "reward":
            rows = Path(argv[argv.index("--data") + 1]).read_text().splitlines()
            assert len(rows) == int(out.name.partition("-")[2])
            return 0
        if "--regrade" in argv:
            stored = Path(argv[argv.index("--regrade") + 1]) / "samples.jsonl"
            lines = [self.gold(json.loads(line)) for line in stored.read_text().splitlines()]
        elif argv[0] == "rollout":
            lines = [self.line(0, row, k, None) for row in range(2) for k in range(4)]
        else:
            lines = [self.line(step, step % 3, k, 0.01 * step) for step in range(1, 41) for k in range(2)]
        (out / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return 0

    def line(self, step: int, row: int, k: int, kl: float | None) -> dict[str, Any]:
        parts = {"length": 0.5 * k, "proxy-2": 0.1 * step + k, "proxy-4": 0.2 * step + k, "judge": float(k % 2)}
        task = {"row": row, "source": "s", "line": row + 1}
        scored = {"score": parts["proxy-4"], "parts": parts, "error": "", "invalid": "", "kl": kl, "length": 5}
        return {"step": step, "task": task, "k": k, "ids": [k // 2], **scored}

    def gold(self, line: dict[str, Any]) -> dict[str, Any]:
        """Odd answers are right; of even ones nothing can be read, which is invalid: a score of 0 without parts."""
        right = line["k"] % 2
        return {**line, "score": float(right), "parts": {"numeric": 1.0} if right else {}}
