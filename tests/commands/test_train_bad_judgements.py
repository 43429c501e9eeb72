"""Judged rows that cannot be used: a run stops at the first with its line, or skips, counts and lists them."""

from __future__ import annotations

from typing import Any

import pytest

from desk import PAIRS, Desk

PROMPT = "tell me about rivers"
ENDS = ("and so on to the end", "and so on to the sea")  # alike but for their last words
BAD: dict[str, tuple[str, Any, str, str]] = {
    # name: format, row, reason, and a part of what the message says beside it
    "identical": ("pairs", {"prompt": "q", "chosen": "same", "rejected": "same"}, "identical responses", "same text"),
    "empty": ("pairs", {"prompt": "q", "chosen": " ", "rejected": "no"}, "empty assistant turn", "field chosen"),
    "prompts": (
        "hh",
        {"chosen": "\n\nHuman: a?\n\nAssistant: yes", "rejected": "\n\nHuman: b?\n\nAssistant: no"},
        "prompts differ",
        "expected",
    ),
    "not finite": (
        "ranked",
        '{"prompt": "q", "responses": ["a", "b"], "scores": [1e999, 1]}',
        "score not finite",
        "got inf",
    ),
    "NaN": ("ranked", '{"prompt": "q", "responses": ["a", "b"], "scores": [NaN, 1]}', "broken JSON", "NaN"),
    "out of range": (
        "ranked",
        {"prompt": "q", "responses": ["a", "b"], "scores": [11, 1], "scale": [1, 10]},
        "score out of range",
        "got 11",
    ),
    "gap in ranks": (
        "ranked",
        {"prompt": "q", "responses": ["a", "b"], "ranks": [0, 2]},
        "ranks with gaps",
        "got 0, 2",
    ),
    "tie": (
        "ranked",
        {"prompt": "q", "responses": ["a", "b"], "ranks": [0, 0]},
        "no strict preference",
        "2 responses, none better",
    ),
    "contradiction": (
        "pairs",
        {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_score": 1, "rejected_score": 2},
        "ranks contradict scores",
        "Negate",
    ),
    "cut alike": (
        "pairs",
        {"prompt": PROMPT, "chosen": ENDS[0], "rejected": ENDS[1]},
        "identical after the cut",
        "Raise --max-length",
    ),
    "cut away": (
        "pairs",
        {"prompt": PROMPT * 4, "chosen": "yes", "rejected": "no"},
        "emptied by truncation",
        "Raise --max-length",
    ),
}
LIMIT = 50  # tokens: enough for all rows but those that are cut


def good(form: str) -> list[Any]:
    if form == "ranked":
        return [{"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]], "ranks": [0, 1]} for r in PAIRS]
    if form == "hh":
        return [
            {side: f"\n\nHuman: {r['prompt']}\n\nAssistant: {r[side]}" for side in ("chosen", "rejected")}
            for r in PAIRS
        ]
    return PAIRS


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_stops_the_run_or_is_listed(desk: Desk, name: str) -> None:
    form, row, reason, told = BAD[name]
    rows = good(form)[:4]
    data = desk.rows("rows", [rows[0], row, *rows[1:]])
    flags = ("--format", form, "--max-length", LIMIT, "--steps", 1)
    stopped = desk.run("dpo", *flags, data=data, code=2)
    assert f"{data}:2: {reason}" in desk.err and told in desk.err
    assert not (stopped.path / "metrics.jsonl").exists()
    run = desk.run("dpo", *flags, "--on-bad-row", "skip", data=data)
    (listed,) = run.rejected
    assert listed["where"] == f"{data}:2" and listed["reason"] == reason and told in listed["message"]
    assert run.checks["rows"]["value"] == "5 read, 4 kept, 1 rejected, 0 truncated"
    assert run.steps[0]["groups"] == 4


def test_a_pair_that_is_cut_to_the_same_tokens_says_what_would_help(desk: Desk) -> None:
    data = desk.rows("rows", [{"prompt": PROMPT, "chosen": ENDS[0], "rejected": ENDS[1]}])
    desk.run("dpo", "--max-length", LIMIT, data=data, code=2)
    assert (
        f"{data}:1: identical after the cut; got 2 responses that are cut to the same tokens; expected responses that "
        f"differ among the first {LIMIT} tokens, prompt included. Raise --max-length, if the model takes more, or "
        "leave such rows out with --on-bad-row skip"
    ) in desk.err
    desk.run("dpo", "--max-length", LIMIT + 20, "--steps", 1, data=data)


@pytest.mark.parametrize("command", ["dpo", "simpo", "orpo", "cpo"])
def test_rankings_without_any_strict_preference_are_refused(desk: Desk, command: str) -> None:
    ties = [
        {"prompt": f"{i}?", "chosen": "a", "rejected": "b", "chosen_score": 3, "rejected_score": 3} for i in range(4)
    ]
    data = desk.rows("ties", ties)
    desk.run(command, data=data, code=2)
    assert f"{data}:1: no strict preference" in desk.err
    desk.run(command, "--on-bad-row", "skip", data=data, code=2)
    assert "no row can be used: no strict preference (4)" in desk.err
    scored = desk.rows("near", [{**row, "chosen_score": 5, "rejected_score": 4.9} for row in PAIRS])
    desk.run(command, "--min-gap", 0.5, "--on-bad-row", "skip", data=scored, code=2)
    assert "no row can be used: no strict preference (12)" in desk.err


def test_labels_that_are_none_are_refused(desk: Desk) -> None:
    rows = [{"prompt": "a", "response": "b", "label": True}, {"prompt": "a", "response": "c", "label": 0.5}]
    data = desk.rows("labels", rows)
    desk.run("kto", "--format", "labels", data=data, code=2)
    assert f"{data}:2: wrong type; field label; got number 0.5; expected true or false" in desk.err


def test_several_reasons_are_counted_apart(desk: Desk) -> None:
    bad = [BAD[name][1] for name in ("identical", "empty", "cut alike", "cut away", "identical")]
    data = desk.rows("rows", [*bad, *PAIRS])
    run = desk.run("dpo", "--max-length", LIMIT, "--on-bad-row", "skip", "--steps", 1, data=data)
    assert [r["reason"] for r in run.rejected] == [
        BAD[n][2] for n in ("identical", "empty", "cut alike", "cut away", "identical")
    ]
    assert [r["row"] for r in run.rejected] == [1, 2, 3, 4, 5]
    assert "17 read, 12 kept, 5 rejected" in run.checks["rows"]["value"]
