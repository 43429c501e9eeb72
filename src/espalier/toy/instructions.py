"""Instruction data of the toy world, as noisy as data by many authors: OpenAI messages, one row per line.

In a clean row a training problem's question is answered with its solution. The share `noise` of the rows is spoilt, in
equal parts, in one of four ways:

    wrong      the last step is off by 1, 2, 10 or 20, and so is the `#### answer`
    terse      the right `#### answer` and nothing before it
    reworded   the right steps and `#### answer` in other words
    unmarked   the right steps, but the answer in a closing sentence without `####`

Nothing in a row marks it as spoilt. A quarter of the questions are part of a longer request.
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
    """Write `n` rows with different questions to `path`; returns how many are `clean` and how many of each kind of
    noise.

    Raises ConfigError if `noise` is not in [0, 1].
    """
    if not 0 <= noise <= 1:
        raise ConfigError(f"write_instructions got noise {noise}; expected a share from 0 to 1")
    counts = Counter(dict.fromkeys(("clean", *NOISE), 0))
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for number, item in enumerate(problems(n, seed)):
            rng = Random(f"{seed}/{number}/instruction")
            kind, request = "clean", "{q}"
            if rng.random() < noise:
                kind = rng.choice(NOISE)
            # One of the four requests is the bare question: a third of the rows makes a quarter of longer requests.
            if rng.random() < 1 / 3:
                request = rng.choice(words.REQUESTS)
            counts[kind] += 1
            messages = [
                {"role": "user", "content": request.format(q=item.question)},
                {"role": "assistant", "content": answer(item, kind, rng)},
            ]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return dict(counts)


def answer(item: Problem, kind: str, rng: Random) -> str:
    """The assistant's turn for `item`: its solution (`clean`), or the solution spoilt in one of the ways of `NOISE`.

    Raises ConfigError for another kind.
    """
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
        lines = [step.sentence for step in item.steps]
        return "\n".join([*lines, rng.choice(words.REWORDED_END).format(v=item.answer)])
    raise ConfigError(f"answer got kind {kind!r}; expected clean, {', '.join(NOISE)}")


def _wrong(item: Problem, rng: Random) -> str:
    """The solution with an error in its last step."""
    # An earlier error could cancel out further on, so that the answer would be right.
    *earlier, last = item.steps
    error = rng.choice([error for error in (1, -1, 2, -2, 10, -10, 20) if last.value + error > 0])
    value = last.value + error
    lines = [step.sentence for step in earlier]
    lines.append(last.sentence.replace(f"={last.value}", f"={value}"))
    return "\n".join([*lines, f"#### {value}"])
