"""Grade real answers with the built-in rewards, and print how many are right and which differ from their labels.

    python scripts/grade_answers.py DATA

DATA is a folder with `verifiable/` and `process/` as described there. Every answer is graded in worker processes, as in
a run; it takes a minute or two.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from espalier.config.rollout_sections import RewardsConfig
from espalier.rewards.build import plan
from espalier.rewards.builtin import BUILTIN
from espalier.toy.instructions import NOISE, answer
from espalier.toy.problems import problems
from espalier.toy.score import exact_match
from espalier.types import Message, Task

BRACES = "the conversion lost braces"
MATRIX = "the conversion lost the braces of the matrix"
MIXED = "the conversion glued the whole number to the fraction"
UNIT = "the conversion lost the braces of the unit"
# Answers to MATH-500 that are right (conversions of right answers, and one by its sense) and are not graded so.
REASONS = {
    "gpt": {
        **dict.fromkeys((73, 96, 146, 166, 181, 389, 422), BRACES),
        **dict.fromkeys((99, 205, 248, 298, 408, 419, 420), MATRIX),
        **dict.fromkeys((264, 472), MIXED),
        **dict.fromkeys((257, 467), UNIT),
        318: "the conversion lost the braces of the numerator: 11 + 9a/20",
    },
    "qwen3": {379: "right by its sense, but no expression"},
}


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON list or of JSON lines, gzipped."""
    text = gzip.decompress(path.read_bytes()).decode()
    if text.lstrip().startswith("["):
        entries: list[dict[str, Any]] = json.loads(text)
        return entries
    return [json.loads(line) for line in text.splitlines()]


def task(question: str, answer: str, **facts: Any) -> Task:
    return Task((Message("user", question),), answer=answer, facts=facts)


def scores(name: str, answers: Sequence[tuple[Task, str]], *args: str) -> list[float]:
    """The score of each answer; nan for an error."""
    graders = plan(RewardsConfig(reward=(name,), reward_args=args)).start(lambda ids: "")
    try:
        outcomes = graders.grade(answers)
    finally:
        graders.close()
    for (_, text), outcome in zip(answers, outcomes, strict=True):
        if outcome.error:
            print(f"    error: {outcome.error}: {text[-60:]!r}")
    return [float("nan") if outcome.error else outcome.score for outcome in outcomes]


def golds(name: str, tasks: Sequence[Task]) -> list[tuple[Task, str]]:
    gold = BUILTIN[name].gold
    if gold is None:
        raise ValueError(f"{name} has no gold")
    return [(item, gold(item)) for item in tasks]


def print_golds(data: Path) -> None:
    gsm8k = [task(row["question"], row["answer"]) for row in rows(data / "verifiable/gsm8k_train.jsonl.gz")]
    svamp = [task(row["Body"], str(row["Answer"])) for row in rows(data / "verifiable/svamp.jsonl.gz")]
    cmath = [task(row["question"], row["answer"]) for row in rows(data / "verifiable/cmath_zh.jsonl.gz")]
    math500 = [task(row["problem"], row["answer"]) for row in rows(data / "verifiable/math500.json.gz")]
    aqua = rows(data / "verifiable/aqua_test.jsonl.gz")
    choices = [task(row["question"], row["correct"], choices=row["options"]) for row in aqua]
    print("golds with full marks")
    for label, name, tasks in (
        ("GSM8K train", "gsm8k", gsm8k),
        ("GSM8K train", "numeric", gsm8k),
        ("SVAMP", "numeric", svamp),
        ("CMATH", "numeric", cmath),
        ("MATH-500", "math", math500),
        ("AQuA test", "choice", choices),
    ):
        right = sum(score == 1 for score in scores(name, golds(name, tasks)))
        print(f"  {label:<12} {name:<8} {right} of {len(tasks)}")
    solutions = [(task("", row["answer"]), row["solution"]) for row in rows(data / "verifiable/math500.json.gz")]
    right = sum(score == 1 for score in scores("math", solutions))
    print(f"  MATH-500     math     {right} of {len(solutions)} of its solutions")


def print_pairs(data: Path) -> None:
    print("answers to MATH-500 (math)")
    for name, reasons in REASONS.items():
        pairs = rows(data / f"verifiable/math500_answer_pairs_{name}.json.gz")
        given = scores("math", [(task("", pair["answer"]), pair["prediction"]) for pair in pairs])
        print(f"  {name}: {sum(score == 1 for score in given)} of {len(pairs)} right; labelled right, graded wrong:")
        for number, reason in sorted(reasons.items()):
            pair = pairs[number]
            seen = "" if given[number] != 1 else "  GRADED RIGHT"
            print(f"    {number:>3}  {pair['answer']:<45} {pair['prediction']:<55} {reason}{seen}")
        if name == "gpt":
            others = [number for number, score in enumerate(given) if score != 1 and number not in reasons]
            print(f"    graded wrong and not in this list: {others or 'none'}")


def print_solutions(data: Path) -> None:
    problems_ = rows(data / "process/qwen_math_cot_100x8_rm.jsonl.gz")
    answers = [(task(row["question"], row["gt"]), code) for row in problems_ for code in row["code"]]
    given = [score == 1 for score in scores("math", answers)]
    labels = [bool(label) for row in problems_ for label in row["score"]]
    print("100 problems x 8 solutions (math)")
    for name, right in (("graded", given), ("the data's labels", labels)):
        groups = [right[start : start + 8] for start in range(0, len(right), 8)]
        best = 0
        for row, group in zip(problems_, groups, strict=True):
            points = [score[-1] for score in row["pred_score"]]
            best += group[points.index(max(points))]
        first, some = sum(group[0] for group in groups), sum(map(any, groups))
        print(f"  {name}: first right {first} %, best of 8 by the reward model {best} %, any of 8 {some} %")
    differing = [number for number, (one, two) in enumerate(zip(given, labels, strict=True)) if one != two]
    print(f"  graded as labelled: {len(labels) - len(differing)} of {len(labels)}")
    for number in differing:
        row = problems_[number // 8]
        print(f"    problem {number // 8}, {number % 8}: gold {row['gt']!r}, predicted {row['pred'][number % 8]!r}")


def print_instructions(data: Path) -> None:
    responses = {row["prompt"]: row["response"] for row in rows(data / "verifiable/ifeval_gpt4_responses.jsonl.gz")}
    chosen = [row for row in rows(data / "verifiable/ifeval.jsonl.gz") if row["prompt"] in responses]
    tasks = []
    for row in chosen:
        facts = {key: row[key] for key in ("instruction_id_list", "kwargs")}
        tasks.append((task(row["prompt"], "", **facts), responses[row["prompt"]]))
    print(f"GPT-4 on {len(tasks)} prompts of IFEval (ifeval)")
    for mode in ("strict", "loose"):
        followed = sum(scores("ifeval", tasks, f"ifeval.mode={mode}"))
        shares = scores("ifeval", tasks, f"ifeval.mode={mode}", "ifeval.score=share")
        counts = [len(row["instruction_id_list"]) for row in chosen]
        instructions = sum(share * count for share, count in zip(shares, counts, strict=True))
        print(
            f"  {mode:<6}  prompts {followed / len(tasks):.1%} ({followed:.0f} of {len(tasks)}), "
            f"instructions {instructions / sum(counts):.1%} ({instructions:.0f} of {sum(counts)})"
        )


def print_toy() -> None:
    rng = Random(0)
    answers, right = [], []
    for item in problems(2000, seed=5):
        text = answer(item, rng.choice(("clean", *NOISE)), rng)
        answers.append((task(item.question, item.answer), text))
        right.append(exact_match(text, item))
    given = [score == 1 for score in scores("gsm8k", answers)]
    same = sum(one == two for one, two in zip(given, right, strict=True))
    print(f"toy world (gsm8k): {same} of {len(right)} answers graded as by its own score, {sum(right)} of them right")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python scripts/grade_answers.py DATA")
    data = Path(sys.argv[1])
    print_golds(data)
    print_pairs(data)
    print_solutions(data)
    print_instructions(data)
    print_toy()


if __name__ == "__main__":
    main()
