"""Toy rules that a scoring model of a few thousand parameters learns in seconds, and commands that train on them.

Answers are eight letters, a and b in random order: the one with more a is better. Steps are three letters: one with an
x in it is wrong.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espalier.commands import main as cli
from espalier.loop.metrics import read_lines
from tiny import tiny_model, tiny_tokenizer

LETTERS = 8
CHECKS = (
    "rows",
    "trained",
    "stop",
    "bos",
    "mask",
    "controls",
    "template",
    "layout",
    "loss",
    "update",
    "preferences",
    "first_loss",
)
Rows = list[dict[str, Any]]


def answer(rng: random.Random) -> str:
    """Eight letters, every number of a as likely."""
    count = rng.randrange(LETTERS + 1)
    drawn = ["a"] * count + ["b"] * (LETTERS - count)
    rng.shuffle(drawn)
    return "".join(drawn)


def grade(text: str) -> float:
    """From 1 (no a) to 10 (all a)."""
    return 1 + 9 * text.count("a") / LETTERS


def pairs(count: int, seed: int, tag: str = "p") -> Rows:
    """Strict pairs, each with a prompt of its own."""
    rng, rows = random.Random(seed), Rows()
    while len(rows) < count:
        one, other = sorted((answer(rng) for _ in range(2)), key=grade, reverse=True)
        if grade(one) > grade(other):
            rows.append({"prompt": f"{tag}{len(rows)}", "chosen": one, "rejected": other})
    return rows


def lists(count: int, seed: int, k: int = 4, tag: str = "k", scores: str = "one") -> Rows:
    """Lists of k different answers with the grades 1 to 10; with scores "two", in `many` and, turned around, `few`."""
    rng, rows = random.Random(seed), Rows()
    while len(rows) < count:
        drawn = [answer(rng) for _ in range(k)]
        if len(set(drawn)) < k or len({grade(text) for text in drawn}) == 1:
            continue
        given: list[Any] = [grade(text) for text in drawn]
        if scores == "two":
            given = [{"many": g, "few": 11 - g} for g in given]
        rows.append({"prompt": f"{tag}{len(rows)}", "responses": drawn, "scores": given})
    return rows


def correct(count: int, seed: int, k: int = 4, tag: str = "c") -> Rows:
    """Lists of k different answers of which those with more a than b are right; some lists are all right or wrong."""
    return [
        {
            "prompt": row["prompt"],
            "responses": row["responses"],
            "good": [g > 5.5 for g in map(grade, row["responses"])],
        }
        for row in lists(count, seed, k, tag)
    ]


def step(rng: random.Random, bad: bool) -> str:
    drawn = [rng.choice("abcd") for _ in range(3)]
    if bad:
        drawn[rng.randrange(3)] = "x"
    return "".join(drawn)


def solutions(count: int, seed: int, tag: str = "s", each: int = 1) -> Rows:
    """Solutions of four steps with the place of the first mistake, half of them without one; `each` to a problem."""
    rng, rows = random.Random(seed), Rows()
    for number in range(count):
        wrong = rng.randrange(4) if rng.random() < 0.5 else None
        steps = [step(rng, bad=i == wrong) for i in range(4)]
        rows.append({"prompt": f"{tag}{number // each}", "steps": steps, "mistake_index": wrong})
        rows[-1]["solved"] = wrong is None
    return rows


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Place:
    """A folder with a tiny model, data, and the runs made there."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.model = self.save("llama")

    def save(self, family: str, name: str = "", **tokens: Any) -> str:
        """A tiny model on disk; `tokens` are set on its tokenizer."""
        path = self.folder / (name or family)
        tokenizer = tiny_tokenizer()
        for field, value in tokens.items():
            setattr(tokenizer, field, value)
        model = tiny_model(family)
        model.config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        return str(path)

    def data(self, name: str, rows: Rows) -> str:
        return write(self.folder / f"{name}.jsonl", rows)

    def argv(self, command: str, out: str, *more: str, model: str = "", checks: bool = False) -> list[str]:
        skipped = () if checks else ("--skip-checks", *CHECKS)
        return [
            *(command, "--model", model or self.model, "--out", str(self.folder / out)),
            *(("--resamples", "50") if command in ("reward", "prm") else ()),
            *("--cache", str(self.folder / "cache"), "--lr", "3e-3", "--samples-per-step", "32", "--seed", "2"),
            *("--save-every", "500"), *skipped, *more,
        ]  # fmt: skip

    def run(self, command: str, out: str, *more: str, model: str = "", checks: bool = False) -> Path:
        """Run a command that must end well; returns the run's folder."""
        assert cli.main(["--debug", *self.argv(command, out, *more, model=model, checks=checks)]) == 0
        return self.folder / out


def workbench(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "workbench.json").read_text())
    return found


def steps_of(run: Path) -> Rows:
    return [line for line in read_lines(run / "metrics.jsonl") if "lr" in line]
