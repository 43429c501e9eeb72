"""Instruction data of the toy world, as noisy as data written by many hands: OpenAI messages, one row a line.

A clean row asks a training problem's question and answers with its solution. The share `noise` of the rows is spoilt,
in equal parts, in one of four ways:

    wrong      the last step is off by a slip (1, 2, 10 or 20), and so is the `#### answer`
    terse      the right `#### answer` and nothing before it
    reworded   the right steps and `#### answer` in other words
    unmarked   the right steps, but the answer in a closing sentence without `####`

Nothing in a row says whether it is spoilt. A quarter of the questions stand inside a longer request.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

from espalier.errors import ConfigError
from espalier.toy import words
from espalier.toy.problems import Problem, problems

NOISE = ("wrong", "terse", "reworded", "unmarked")
DEFAULT_NOISE = 0.3


def write_instructions(path: str | Path, n: int, seed: int = 0, noise: float = DEFAULT_NOISE) -> dict[str, int]:
    """Write `n` rows with unlike questions to `path`; returns how many are `clean` and how many of each kind of noise.

    Raises ConfigError where `noise` is no share in [0, 1].
    """
    if not 0 <= noise <= 1:
        raise ConfigError(f"write_instructions got noise {noise}; expected a share from 0 to 1")
    counts = Counter(dict.fromkeys(("clean", *NOISE), 0))
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for i, item in enumerate(problems(n, seed)):
            rng = Random(f"{seed}/{i}/instruction")
            kind = rng.choice(NOISE) if rng.random() < noise else "clean"
            form = rng.choice(words.REQUESTS) if rng.random() < 1 / 3 else "{q}"
            turns = {"user": form.format(q=item.question), "assistant": answer(item, kind, rng)}
            counts[kind] += 1
            row = {"messages": [{"role": role, "content": content} for role, content in turns.items()]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return dict(counts)


def answer(item: Problem, kind: str, rng: Random) -> str:
    """The assistant's turn for `item`: its solution (`clean`), or that spoilt in one of the ways of `NOISE`."""
    if kind == "clean":
        return item.solution
    if kind == "terse":
        return f"#### {item.answer}"
    if kind == "wrong":
        return _wrong(item, rng)
    if kind == "reworded":
        lines = [rng.choice(words.REWORDED_STEP).format(e=step.expression, v=step.value) for step in item.steps]
        return "\n".join([*lines, f"#### {item.answer}"])
    if kind == "unmarked":
        return "\n".join([*(step.said for step in item.steps), rng.choice(words.REWORDED_END).format(v=item.answer)])
    raise ConfigError(f"answer got kind {kind!r}; expected clean, {', '.join(NOISE)}")


def _wrong(item: Problem, rng: Random) -> str:
    """The last step off by a slip. An earlier slip could cancel out further on, so that the answer would be right."""
    last = item.steps[-1]
    slip = rng.choice([s for s in (1, -1, 2, -2, 10, -10, 20) if last.value + s > 0])
    said = last.said.replace(f"={last.value}", f"={last.value + slip}")
    return "\n".join([*(step.said for step in item.steps[:-1]), said, f"#### {last.value + slip}"])
