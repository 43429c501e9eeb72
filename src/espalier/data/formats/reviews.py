"""A folder of questions, answers and reviews in files of their own, as the first Vicuna evaluation has them.

Zheng et al., arXiv:2306.05685, section 3: a judge gives each of two answers to a question a score from 1 to 10.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espalier.data.columns.ledger import Ledger
from espalier.data.columns.watched import watched
from espalier.data.files.rows import JSON_NAMES, open_file
from espalier.data.formats.common import Fields, shown, string, wrong_type
from espalier.data.formats.format import Format
from espalier.data.formats.judged import answer, ranking, score
from espalier.errors import DataError, RowError
from espalier.types import Message, Origin, Ranking, Response

SCALE = (1.0, 10.0)
Key = str | int


@dataclass(slots=True)
class _Answer:
    question: Key
    message: Message
    author: str
    scores: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Folder:
    """What a folder holds: questions with their lines, answers by their ids, and reviews with their places."""

    questions: dict[Key, tuple[str, int]] = field(default_factory=dict)
    answers: dict[Key, _Answer] = field(default_factory=dict)
    refused: set[Key] = field(default_factory=set)
    reviews: list[tuple[str, Fields]] = field(default_factory=list)


def looks(path: str) -> bool:
    """Whether a folder holds files that are called reviews and others that are called answers."""
    names = [str(file.relative_to(path)).lower() for file in _files(path)]
    return any("review" in name for name in names) and any("answer" in name for name in names)


def _files(path: str) -> list[Path]:
    """The JSON files of a folder and those below it, in the order of their names."""
    files = []
    for file in Path(path).rglob("*"):
        if file.is_file() and file.name.lower().removesuffix(".gz").endswith(JSON_NAMES):
            files.append(file)
    # Sorted, so that examples come in the same order on every file system.
    return sorted(files)


def read_reviews(path: str, source: str, ledger: Ledger | None = None) -> Iterator[Ranking | RowError]:
    """One Ranking for each question of a folder, of all its answers, each with the mean of its reviews' scores.

    The keys of a row decide what it is: a review has `answer1_id`, `answer2_id` and two scores in `score` (1 to 10); an
    answer has `answer_id`, `question_id`, `text` and, if its author is known, `model_id`; a question has `question_id`
    and `text`. Files may lie in folders of their own. An answer without a review is in the ranking, not judged.

    A Ranking has its question's line. A row that cannot be used is a RowError that names its file: an empty answer, a
    question or an answer whose id was there before; a review of an unusable answer, of answers to different questions,
    or with a score outside the scale, which is left out whole: its two scores were given in comparison. So every
    question is a Ranking or a RowError, and every other row is part of a Ranking or a RowError.

    `ledger` counts what was read of every row; what a judge wrote beside its scores is not.

    Raises DataError if the folder has no questions, no answers or no reviews.
    """
    folder = _Folder()
    for file in _files(path):
        place = str(file)
        for row in open_file(file, place).rows():
            if isinstance(row, RowError):
                yield row.at(place)
                continue
            value = watched(row.value)
            try:
                _sort(folder, value, row.line, place)
            except RowError as error:
                yield error.at(f"{place}:{row.line}")
            else:
                if ledger is not None:
                    ledger.judges_text = False
                    ledger.add(row.line, value)
    _check_complete(folder, path)
    for where, review in folder.reviews:
        try:
            _review(folder, review)
        except RowError as error:
            yield error.at(where)
    by_question: dict[Key, list[Response]] = {}
    for one in folder.answers.values():
        by_question.setdefault(one.question, []).append(_response(one))
    for name, (text, line) in folder.questions.items():
        responses = by_question.get(name, [])
        try:
            yield ranking([Message("user", text)], responses, Origin(source, line), field=f"question {name}")
        except RowError as error:
            yield error.at(f"{path}, question {name}")


def _check_complete(folder: _Folder, path: str) -> None:
    """Raise DataError if a folder lacks questions, answers or reviews."""
    for what, rows in (("questions", folder.questions), ("answers", folder.answers), ("reviews", folder.reviews)):
        if not rows:
            keys = "questions (question_id, text), answers (answer_id) and reviews (answer1_id, answer2_id)"
            raise DataError(f"{path}: it holds no {what} that can be read; expected files of {keys}")


def _response(one: _Answer) -> Response:
    # fsum: the order of the reviews changes no bit.
    mean = math.fsum(one.scores) / len(one.scores) if one.scores else None
    return Response(one.message, scores=(mean,), author=one.author)


def _sort(folder: _Folder, value: Any, line: int, place: str) -> None:
    """Put a row among the questions, answers or reviews of its folder. Raises RowError."""
    if not isinstance(value, dict):
        raise wrong_type("", value, "a JSON object")
    if "answer1_id" in value:
        # Looked up now, as everything else is: what a judge wrote is not used.
        review = {key: value.get(key) for key in ("answer1_id", "answer2_id", "score")}
        folder.reviews.append((f"{place}:{line}", review))
    elif "answer_id" in value:
        name = _id(value, "answer_id")
        if name in folder.answers or name in folder.refused:
            raise _twice("answer_id", name)
        # Refused until it is known to be sound: an error below leaves it so.
        folder.refused.add(name)
        message = answer(string(value, ("text",)), "text")
        author = string(value, ("model_id", "model"), default="")
        folder.answers[name] = _Answer(_id(value, "question_id"), message, author)
        folder.refused.remove(name)
    elif "question_id" in value:
        name = _id(value, "question_id")
        if name in folder.questions:
            raise _twice("question_id", name)
        folder.questions[name] = string(value, ("text",)), line
    else:
        expected = "question_id (a question), answer_id (an answer) or answer1_id (a review)"
        raise RowError("no known row", got=f"the keys {', '.join(sorted(value))[:60]}", expected=expected)


def _id(row: Fields, key: str) -> Key:
    value: Any = row.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise wrong_type(key, value, "a name or a number")
    return value


def _twice(key: str, name: Key) -> RowError:
    return RowError("duplicate id", field=key, got=f"{name} again", expected="one row for each id")


def _review(folder: _Folder, row: Fields) -> None:
    """Add the two scores of a review to the answers that it judges. Raises RowError."""
    reviewed = []
    for key in ("answer1_id", "answer2_id"):
        name = _id(row, key)
        if name not in folder.answers:
            got = f"{name}, which {'cannot be used' if name in folder.refused else 'no file holds'}"
            raise RowError("review of an unusable answer", field=key, got=got, expected="the answer_id of an answer")
        reviewed.append(folder.answers[name])
    first, second = reviewed
    if first.question != second.question:
        got = f"answers to questions {first.question} and {second.question}"
        raise RowError("prompts differ", field="answer1_id and answer2_id", got=got, expected="answers to one question")
    pair = row.get("score")
    if not isinstance(pair, list) or len(pair) != 2 or None in pair:
        raise RowError("wrong type", field="score", got=shown(pair), expected="a list of two scores")
    # Both are read before either is added: a review with one unusable score is left out whole.
    scores = [score(value, f"score[{i}]", SCALE) for i, value in enumerate(pair)]
    for one, number in zip(reviewed, scores, strict=True):
        assert number is not None
        one.scores.append(number)


FORMAT = Format("reviews", read_reviews, looks, "folder")
