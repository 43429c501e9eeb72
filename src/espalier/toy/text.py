"""The toy world's plain text, without chat form. A document is one of

    problem   `Problem:`, its question, `Solution:`, its steps and `#### answer`
    story     the events of a problem, told with its result
    sums      lines like `23+48=71`
    sheet     a numbered list of questions without answers

The sheets tie the solution to `Solution:`: without them a model answers any question, in chat form too. A document has
no blank line, so a file of them is split at blank lines.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from espalier.toy.problems import FACTORS, LARGEST, SMALLEST, problem, split_of

SHARES = {"problem": 0.64, "story": 0.08, "sums": 0.13, "sheet": 0.15}  # of the documents

NUMBERINGS = ("{}. ", "{}) ", "({})\n", "[{}] ", "[{}]\n", "- ", "Question {}:\n", "")
HEADINGS = ("Questions", "Homework:", "[Exercises]", "Sheet of questions", "PAGE 3")


def document(seed: int | str) -> str:
    """The document of `seed`. It contains training problems only, and no sum that is a test problem by itself."""
    rng = Random(f"{seed}/document")
    kind = rng.choices(tuple(SHARES), weights=tuple(SHARES.values()))[0]
    if kind == "sums":
        return "\n".join(_sum(rng) for _ in range(rng.randint(4, 12)))
    if kind == "sheet":
        return _sheet(rng, [problem(f"{seed}/{number}").question for number in range(rng.randint(1, 4))])
    item = problem(f"{seed}/told")
    return item.text if kind == "problem" else item.story


def write_text(path: str | Path, n: int, seed: int = 0) -> None:
    """Write `n` documents to `path`, separated by blank lines."""
    text = "\n\n".join(document(f"{seed}/{number}") for number in range(n))
    Path(path).write_text(text + "\n", encoding="utf-8")


def _sheet(rng: Random, questions: list[str]) -> str:
    """Questions numbered in one of several styles, with or without a heading."""
    style, start = rng.choice(NUMBERINGS), rng.randint(1, 9)
    lines = []
    if rng.random() < 0.5:
        lines.append(rng.choice(HEADINGS))
    for number, question in enumerate(questions, start):
        lines.append(style.format(number) + question)
    return "\n".join(lines)


def _sum(rng: Random) -> str:
    """One sum of a problem's kind, `23+48=71`, in the training split."""
    while True:
        op = rng.choice("+++---*/")
        left = rng.randint(SMALLEST, rng.choice((20, 99, LARGEST)))
        right = rng.choice(FACTORS) if op in "*/" else rng.randint(SMALLEST, rng.choice((9, 40, 99)))
        value = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[op]
        line = f"{left}{op}{right}={value}"
        exact = op != "/" or left % right == 0
        if exact and SMALLEST <= value <= LARGEST and split_of(line) == "train":
            return line
