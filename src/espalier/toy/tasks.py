"""Problems of the toy world as tasks: a question and its answer, one row per line."""

from __future__ import annotations

import json
from pathlib import Path

from espalier.toy.problems import LARGEST, Split, problems


def write_tasks(path: str | Path, n: int, seed: int = 0, split: Split = "train", largest: int = LARGEST) -> None:
    """Write `n` problems with different questions to `path`, each as `{"question": ..., "answer": "72"}`; no step has a
    number above `largest`.

    The answer is the number alone. A model says it behind `####`, which the rewards `gsm8k` and `numeric` read. The
    first m of n problems are those of m. Raises ConfigError for a split that does not exist.
    """
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for item in problems(n, seed, split, largest):
            file.write(json.dumps({"question": item.question, "answer": item.answer}) + "\n")
