"""The error for a row of an unknown layout proposes a mapping that reads it."""

from __future__ import annotations

import doctest
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from espalier.data import proposal as proposals
from espalier.data.columns.mapping import Columns
from espalier.data.proposal import proposal
from espalier.data.read import Source, read
from espalier.errors import RowError
from espalier.types import Chat, Consumes, Ranking, Steps

ASK, GOOD, BAD = "Name a blue thing.", "The sky on a clear day.", "A ripe lemon."
ANSWER = f"{GOOD} It is blue because air scatters blue light most."
TURNS = [{"role": "user", "content": ASK}]


@pytest.mark.parametrize(
    ("consumes", "row", "mapping"),
    [
        ("chat", {"issue": ASK, "final_solution": GOOD}, "prompt=issue response=final_solution"),
        ("chat", {"id": 3, "human_request": ASK, "bot_reply": GOOD}, "prompt=human_request response=bot_reply"),
        ("chat", {"Q": ASK, "ans": GOOD}, "prompt=Q response=ans"),
        ("chat", {"lang": "en", "first": ASK, "second": ANSWER, "third": BAD}, "prompt=first response=second"),
        ("chat", {"inner": {"q": ASK, "reply": GOOD}, "n": 1}, "prompt=inner.q response=inner.reply"),
        ("chat", {"ask": ASK, "replies_given": [GOOD]}, "prompt=ask 'response=replies_given[0]'"),
        ("chat", {"ask": ASK, "replies": {"text": [GOOD], "at": [3]}}, "prompt=ask 'response=replies.text[0]'"),
        (
            "chat",
            {"the_talk": [*TURNS, {"role": "assistant", "content": GOOD}], "seed": 3},
            "messages=the_talk",
        ),
        ("chat", {"so_far": TURNS, "bot_reply": GOOD}, "prompt=so_far response=bot_reply"),
        (
            "chat",
            {"ask": ASK, "answer_a": BAD, "answer_b": GOOD, "winner": "model_b", "rating_a": 1, "rating_b": 3},
            "prompt=ask responses=answer_a,answer_b scores=rating_a,rating_b",
        ),
        (
            "ranking",
            {"ask": ASK, "better_one": GOOD, "worse_one": BAD},
            "prompt=ask chosen=better_one rejected=worse_one",
        ),
        ("ranking", {"query": ASK, "response": GOOD, "rejected_response": BAD}, ""),
        (
            "ranking",
            {"ask": {"turns": TURNS}, "preferred_output": GOOD, "non_preferred_output": BAD},
            "prompt=ask.turns chosen=preferred_output rejected=non_preferred_output",
        ),
        (
            "ranking",
            {"ask": ASK, "outs": [BAD, GOOD], "outs_ratings": [1, 4]},
            "prompt=ask responses=outs scores=outs_ratings",
        ),
        (
            "ranking",
            {"ask": ASK, "out_0": BAD, "out_1": GOOD, "better_id": 1},
            "prompt=ask responses=out_0,out_1 best=better_id",
        ),
        (
            "ranking",
            {"info": {"post": ASK}, "tries": [{"text": BAD, "by": "x"}, {"text": GOOD, "by": "y"}], "choice": 1},
            "prompt=info.post 'responses=tries[].text' best=choice",
        ),
        (
            "ranking",
            {"ask": ASK, "out1": BAD, "out2": GOOD, "overall_preference": 2},
            "prompt=ask responses=out1,out2 preference=overall_preference",
        ),
        (
            "steps",
            {"riddle": ASK, "chain_steps": ["First, look up.", "It is blue."], "marks": [True, False]},
            "prompt=riddle steps=chain_steps labels=marks",
        ),
    ],
)
def test_a_mapping_is_proposed_and_reads_the_row(
    consumes: Consumes, row: dict[str, Any], mapping: str, tmp_path: Path
) -> None:
    proposed = proposal(row, consumes)
    if mapping:
        assert proposed == f"--columns {mapping}"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    fields = shlex.split(proposed)[1:]
    (example,) = read(Source(str(path), consumes=consumes, columns=Columns.parse(fields)))
    kinds = {"chat": Chat, "ranking": Ranking, "steps": Steps}
    assert isinstance(example, kinds[consumes])
    if isinstance(example, Ranking):
        first, second = example.responses
        texts = {GOOD: 0, BAD: 1}
        assert (first.rank or 0) - (second.rank or 0) in (
            0,
            texts[first.message.content] - texts[second.message.content],
        )
    if isinstance(example, Chat):
        assert (example.messages[-2].content, example.messages[-1].content.startswith(GOOD)) == (ASK, True)


@pytest.mark.parametrize(
    ("consumes", "row"),
    [
        ("chat", {"id": 3, "label": 1}),
        ("chat", {"finish": "found_error", "problem": ASK}),  # a code is no answer
        ("chat", {"problem": ASK, "label": {"finish": "found_error", "seconds": 3}}),
        ("chat", {"question": ASK, "passage": GOOD}),  # what is read before a question does not answer it
        ("chat", {"ask": ASK, "out_1": GOOD, "out_2": BAD}),  # nobody says which one is right
        ("chat", {"q": ASK, "reply": GOOD, "images": ["a.png"]}),  # would be refused all the same
        ("ranking", {"q": ASK, "reply": GOOD}),
        ("ranking", {"q": ASK, "steps": [GOOD, BAD], "labels": [0.9, 0.1]}),  # steps do not compete
        ("steps", {"q": ASK, "steps": ["a", "b"], "marks": [1]}),
        ("chat", ["no", "object"]),
    ],
)
def test_no_mapping_is_better_than_a_wrong_one(consumes: Consumes, row: Any) -> None:
    assert proposal(row, consumes) == ""


def errors(folder: Path, row: dict[str, Any], consumes: Consumes, *columns: str) -> list[str]:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    source = Source(str(path), consumes=consumes, columns=Columns.parse(columns))
    return [str(example) for example in read(source) if isinstance(example, RowError)]


def test_errors_have_the_proposal(tmp_path: Path) -> None:
    (unknown,) = errors(tmp_path, {"issue": ASK, "fix": GOOD}, "chat")
    assert "no known format" in unknown and "Try --columns prompt=issue response=fix, or name a format" in unknown
    (none,) = errors(tmp_path, {"id": 3}, "chat")
    assert "Name its columns with --columns NAME=COLUMN" in none
    (chat,) = errors(tmp_path, {"prompt": ASK, "response": GOOD, "worse": BAD}, "ranking")
    assert "no judgement" in chat and "or try --columns prompt=prompt chosen=response rejected=worse" in chat
    # What the user maps is not mapped again.
    (own,) = errors(tmp_path, {"prompt": ASK, "response": GOOD, "worse": BAD}, "ranking", "prompt=prompt")
    assert "try --columns" not in own


def test_worked_examples() -> None:
    assert doctest.testmod(proposals).failed == 0


@pytest.mark.parametrize(
    ("consumes", "row", "flags"),
    [
        ("chat", {"q_text": ASK, "a_text": GOOD}, "--columns prompt=q_text response=a_text"),
        ("chat", {"data": [ASK, GOOD]}, "--columns messages=data"),
        ("chat", {"talk": [{"human": ASK, "assistant": GOOD}]}, "--columns messages=talk"),
        ("chat", {"prompt": ASK, "label": GOOD}, "--columns prompt=prompt response=label"),
        ("chat", {"transcript": f"Human: {ASK}\n\nAssistant: {GOOD}"}, "--columns chat=transcript"),
        (
            "chat",
            {"ask": ASK, "reply": GOOD, "note": ANSWER * 2},
            "--columns prompt=ask response=reply --ignore-columns note",
        ),
        (
            "ranking",
            {"ask": ASK, "answers": [{"text": GOOD, "pm_score": 3}, {"text": BAD, "pm_score": 1}]},
            "--columns prompt=ask 'responses=answers[].text' 'scores=answers[].pm_score'",
        ),
        (
            "ranking",
            {"ask": ASK, "answer_a": BAD, "answer_b": GOOD, "winner": "b"},
            "--columns prompt=ask responses=answer_a,answer_b best=winner",
        ),
        (
            "ranking",
            {"post_id": "a1 b2", "history": ASK, "ref_A": GOOD, "ref_B": BAD, "score_A": 3, "score_B": 1},
            "--columns prompt=history responses=ref_A,ref_B scores=score_A,score_B",
        ),
        (
            "steps",
            {"ask": ASK, "steps": json.dumps([GOOD, BAD]), "labels": "[1, 0]"},
            "--columns prompt=ask steps=steps labels=labels",
        ),
        (
            "steps",
            {"ask": ASK, "parts": [{"step": GOOD, "ok": 1}, {"step": BAD, "ok": 0}]},
            "--columns prompt=ask 'steps=parts[].step' 'labels=parts[].ok'",
        ),
    ],
)
def test_proposals_read_the_row_when_they_are_pasted(
    consumes: Consumes, row: dict[str, Any], flags: str, tmp_path: Path
) -> None:
    assert proposal(row, consumes) == flags
    mapped, _, ignored = flags.removeprefix("--columns ").partition(" --ignore-columns ")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    columns = Columns.parse(shlex.split(mapped), shlex.split(ignored))
    (example,) = read(Source(str(path), columns=columns, consumes=consumes))
    assert not isinstance(example, RowError)


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": GOOD}]},
        {"description": ASK, "incorrect_solutions": {"solution": [BAD]}, "found_at": 3},
    ],
)
def test_no_mapping_to_the_same_names_or_to_wrong_answers_is_proposed(row: dict[str, Any]) -> None:
    assert proposal(row, "chat") == ""
