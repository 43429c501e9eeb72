"""Judged data in the form that a run consumes, and folders of questions, answers and reviews."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from espalier.data.formats.expand import expand
from espalier.data.read import Source, parse_source, read
from espalier.errors import ConfigError, DataError, RowError
from espalier.types import Chat, Completion, Message, Origin, Ranking, Response, Steps, Text

HERE = Origin("file", 7)


# -------------------------------------------------------------------------------------------------- the form of a run


def ranked(*responses: Response) -> Ranking:
    return Ranking((Message("user", "Q"),), responses, origin=HERE)


def response(text: str, **judged: Any) -> Response:
    return Response(Message("assistant", text), **judged)


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        ([response("a", rank=1), response("b", rank=0)], "b"),
        ([response("a", scores=(1.0,)), response("b", scores=(2.0,)), response("c", scores=(2.0,))], "b"),
        ([response("a", scores=(9.0,), good=False), response("b", scores=(2.0,), good=True)], "b"),
        ([response("a", good=True)], "a"),
        ([response("a", good=False)], "no good response; got 1 response, none labelled good"),
        ([response("a", scores=(5.0,))], "no best response; got 1 response, 1 judged, none better"),
        ([response("a", rank=0), response("b", rank=0)], "no best response; got 2 responses, 2 judged"),
    ],
)
def test_a_chat_run_reads_the_best_response(responses: list[Response], expected: str) -> None:
    (found,) = expand(ranked(*responses), "chat")
    if isinstance(found, RowError):
        assert str(found).startswith(expected)
    else:
        assert found == Chat((Message("user", "Q"), Message("assistant", expected)), origin=HERE)


def test_solutions_in_steps_are_chats_and_labelled_responses() -> None:
    right = Steps((Message("user", "Q"),), ("a", "b"), (1.0, 1.0), solved=True, origin=HERE)
    wrong = Steps((Message("user", "Q"),), ("a", "b"), (1.0, 0.0), solved=False, origin=HERE)
    assert expand(right, "chat") == [Chat((Message("user", "Q"), Message("assistant", "a\nb")), origin=HERE)]
    assert expand(wrong, "ranking") == [ranked(response("a\nb", good=False))] and expand(wrong, "steps") == [wrong]
    (refused,) = expand(wrong, "chat")
    assert isinstance(refused, RowError) and refused.reason == "not known to be right"
    (unsolved,) = expand(Steps(wrong.prompt, ("a",), (1.0,)), "ranking")
    assert isinstance(unsolved, RowError) and unsolved.reason == "no judgement"


@pytest.mark.parametrize("example", [Text("t", HERE), Completion("p", "c", HERE), Chat((Message("user", "Q"),))])
def test_nobody_judged_a_conversation(example: Any) -> None:
    assert expand(example, "chat") == [example]
    for form, reason in (("ranking", "no judgement"), ("steps", "no steps")):
        (found,) = expand(example, form)
        assert isinstance(found, RowError) and found.reason == reason


def test_the_form_of_a_run_decides_what_a_file_holds(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"prompt": "Q", "response": "a", "score": 7}, {"prompt": "R", "response": " ", "score": 7}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat, empty = read(Source(str(file)))
    assert isinstance(chat, Chat) and isinstance(empty, RowError)
    ranking, empty = read(Source(str(file), consumes="ranking"))
    assert isinstance(ranking, Ranking) and str(ranking.origin) == "a:1"
    assert str(empty).startswith(f"{file}:2: empty assistant turn")
    assert [e.reason for e in read(Source(str(file), consumes="steps")) if isinstance(e, RowError)] == [
        "no steps",
        "empty assistant turn",
    ]


# ------------------------------------------------------------------------------------------------------------ reviews


def folder(path: Path, *reviews: dict[str, Any], answers: tuple[tuple[str, int, str], ...] = ()) -> Path:
    """Two questions, three answers to the first and one to the second, and reviews."""
    told = (("a", 1, "yes"), ("b", 1, "no"), ("c", 1, "maybe"), ("d", 2, "four"), *answers)
    files = {
        "question.jsonl": [{"question_id": 1, "text": "Q"}, {"question_id": 2, "text": "2+2?"}],
        "answer/m.jsonl": [{"answer_id": i, "question_id": q, "text": t, "model_id": f"m{i}"} for i, q, t in told],
        "review/r.jsonl": list(reviews),
    }
    for name, rows in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def review(one: str, two: str, *score: Any) -> dict[str, Any]:
    return {"review_id": f"{one}{two}", "answer1_id": one, "answer2_id": two, "score": list(score)}


def test_reviews_become_lists_with_mean_scores(tmp_path: Path) -> None:
    made = folder(tmp_path / "r", review("a", "b", 9, 6), review("b", "a", 7.5, 8), review("d", "d", 10, 10))
    for spec in (f"{made}:reviews", str(made)):
        first, second = read(replace(parse_source(spec), consumes="ranking"))
        assert isinstance(first, Ranking) and isinstance(second, Ranking)
        assert [(r.message.content, r.scores) for r in first.responses] == [
            ("yes", (8.5,)),
            ("no", (6.75,)),
            ("maybe", (None,)),
        ]
        assert [r.author for r in first.responses] == ["ma", "mb", "mc"]
        assert [str(first.origin), str(second.origin)] == ["r:1", "r:2"] and second.responses[0].scores == (10.0,)
    (best, refused) = read(parse_source(f"{made}:reviews"))
    assert isinstance(best, Chat) and best.messages[-1].content == "yes"
    assert isinstance(refused, RowError) and refused.reason == "no best response"


def test_rows_of_a_folder_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    made = folder(
        tmp_path,
        review("a", "b", 9, 0.0),
        review("a", "x", 9, 8),
        review("a", "e", 9, 8),
        review("a", "d", 9, 8),
        review("a", "b", -1, -1),
        review("a", "b", 9),
        review("a", "b", 5, 4),
        answers=(("e", 1, " "), ("a", 1, "again")),
    )
    found = list(read(Source(str(made), "reviews", consumes="ranking")))
    errors = [str(e).removeprefix(f"{made}/").split("; field")[0] for e in found if isinstance(e, RowError)]
    assert errors == [
        "answer/m.jsonl:5: empty assistant turn",
        "answer/m.jsonl:6: duplicate id",
        "review/r.jsonl:1: score out of range",
        "review/r.jsonl:2: review of an unusable answer",
        "review/r.jsonl:3: review of an unusable answer",
        "review/r.jsonl:4: prompts differ",
        "review/r.jsonl:5: score out of range",
        "review/r.jsonl:6: wrong type",
        f"{made}, question 2: no judgement",
    ]
    (kept,) = (e for e in found if isinstance(e, Ranking))
    assert [r.scores for r in kept.responses] == [(5.0,), (4.0,), (None,)]  # the review with a 0 gives no 9 either


def test_folders_without_reviews_are_no_reviews(tmp_path: Path) -> None:
    made = folder(tmp_path / "r")
    (made / "review/r.jsonl").unlink()
    with pytest.raises(DataError, match="holds no reviews"):
        list(read(Source(str(made), "reviews", consumes="ranking")))
    with pytest.raises(ConfigError, match="got format reviews, which reads a folder"):
        read(Source(str(made / "question.jsonl"), "reviews"))
