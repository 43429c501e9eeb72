"""What `espalier rollout` prints: a table of figures, and answers to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from espalier.loop.progress import Progress

LONGEST = 600
"""Characters of a prompt or a response that are printed; the middle of a longer one is left out."""
CAUSES = 5
"""Causes of errors, and reasons of invalid answers, that are listed."""


def show(console: Progress, figures: Mapping[str, Any]) -> None:
    """Print the figures of `workbench.rollouts.summary`."""
    rows: list[tuple[str, str, str]] = [("reward", *_cells(figures["reward"]))]
    rows += [(f"reward {name}", *_cells(estimate)) for name, estimate in figures["rewards"].items()]
    rows += [(f"best of {k}", *_cells(estimate)) for k, estimate in figures["best_of"].items() if k != "1"]
    for k, estimate in figures.get("pass", {}).items():
        rows.append((f"pass@{k}", *_cells(estimate, share=True)))
    for name, text in (("always", "always right"), ("never", "never right"), ("dead", "dead (all scores equal)")):
        if name in figures:
            rows.append((text, *_cells(figures[name], share=True)))
    title = f"{figures['answers']:,} answers to {figures['tasks']:,} tasks"
    console.table(title, ("figure", "value", "95 % interval over tasks"), rows)
    for line in lines(figures):
        console.note(line)


def lines(figures: Mapping[str, Any]) -> list[str]:
    """The counts in words."""
    length, answers = figures["length"], figures["answers"]
    texts = []
    if length:
        stops = ", ".join(f"{stop} {count / answers:.1%}" for stop, count in figures["stops"].items())
        texts.append(
            f"tokens an answer: mean {length['mean']:.1f}, median {length['median']:g}, 90 % up to {length['p90']}, "
            f"longest {length['max']}; ended by {stops}"
        )
    for name, table in (("invalid", "reasons"), ("errors", "causes")):
        if figures[name]:
            listed = [f"{text} ({count:,})" for text, count in figures[table].items()]
            more = ", ..." if len(listed) > CAUSES else ""
            texts.append(f"{figures[name]:,} answers {_WORDS[name]}: {', '.join(listed[:CAUSES])}{more}")
        else:
            texts.append(f"every answer {_NONE[name]}")
    if figures.get("tokens_per_second"):
        texts.append(f"sampled {figures['tokens_per_second']:,.0f} tokens/s")
    if "pass" not in figures:
        texts.append("pass@k: the rewards declare no best score; give --right SCORE to count answers as right")
    return texts


_WORDS = {"invalid": "did not qualify", "errors": "could not be graded, and are in no figure"}
_NONE = {"invalid": "that was graded qualified", "errors": "could be graded"}


def _cells(estimate: Mapping[str, Any], *, share: bool = False) -> tuple[str, str]:
    """A figure and its interval."""
    form = "{:.1%}" if share else "{:.4g}"
    if estimate["value"] is None:
        return "-", "-"
    value = form.format(estimate["value"])
    if estimate["low"] is None:
        return value, "-"
    return value, f"{form.format(estimate['low'])} to {form.format(estimate['high'])}"


def show_answers(console: Progress, records: Iterable[Mapping[str, Any]], count: int) -> None:
    """Print `count` of the best answers and of the worst, each to another task; then one that does not qualify and one
    that could not be graded, if there are any."""
    if not count:
        return
    best, worst, invalid, failed = examples(records, count)
    for title, group in (("highest", best), ("lowest", worst), ("not qualified", invalid), ("not graded", failed)):
        for record in group:
            console.note(f"--- {title}: {_heading(record)}")
            console.note(shortened(record["prompt"]))
            console.note(">>>")
            console.note(shortened(record["response"]))


Records = list[Mapping[str, Any]]


def examples(records: Iterable[Mapping[str, Any]], count: int) -> tuple[Records, Records, Records, Records]:
    """The best answers, the worst (none with the highest score), one that does not qualify, one that has no score; the
    first of equals, and of each task one."""
    best: dict[int, Mapping[str, Any]] = {}
    worst: dict[int, Mapping[str, Any]] = {}
    invalid: Records = []
    failed: Records = []
    for record in records:
        if record["error"]:
            failed = failed or [record]
            continue
        if record["invalid"]:
            invalid = invalid or [record]
        _keep(best, record, count, sign=1.0)
        _keep(worst, record, count, sign=-1.0)
    top = sorted(best.values(), key=lambda record: -record["score"])
    least = max((record["score"] for record in top), default=0.0)
    bottom = [
        record for record in sorted(worst.values(), key=lambda record: record["score"]) if record["score"] < least
    ]
    return top, bottom, invalid, failed


def _keep(kept: dict[int, Mapping[str, Any]], record: Mapping[str, Any], count: int, *, sign: float) -> None:
    """Keep a record if it is among the `count` highest by sign * score, of each task the first highest."""
    row = record["task"]["row"]
    if row in kept and sign * kept[row]["score"] >= sign * record["score"]:
        return
    kept[row] = record
    if len(kept) > count:
        # The last of the lowest goes, so that the first of equals stays.
        lowest = min(sign * entry["score"] for entry in kept.values())
        del kept[[row for row, entry in kept.items() if sign * entry["score"] == lowest][-1]]


def _heading(record: Mapping[str, Any]) -> str:
    task = record["task"]
    score = "no score" if record["score"] is None else f"score {record['score']:g}"
    why = record["invalid"] or record["error"]
    return f"{task['source']}:{task['line']}, {score}{f' ({why})' if why else ''}, {record['length']} tokens"


def shortened(text: str) -> str:
    """A text of at most about `LONGEST` characters: its beginning and its end."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def show_golds(console: Progress, rows: Sequence[tuple[str, int, int]], unchecked: Sequence[str]) -> None:
    """Print how many of the data's own answers get full marks: (reward, right, graded), and who has no known answer."""
    table = [(name, f"{right:,} of {count:,}", f"{right / count:.2%}" if count else "-") for name, right, count in rows]
    console.table("the data's own answers", ("reward", "full marks", "share"), table)
    if unchecked:
        console.note(f"not checked, because no answer is known to be right for them: {', '.join(unchecked)}")
