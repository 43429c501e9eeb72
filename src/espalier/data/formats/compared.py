"""Two numbered answers and a verdict that says which one is better, as judges and arenas write them."""

from __future__ import annotations

from typing import Any

from espalier.data.columns.watched import peek
from espalier.data.files.json_rows import decode_string
from espalier.data.formats.common import Fields, finite, first_key, missing, wrong_type
from espalier.data.formats.format import Format
from espalier.data.formats.judged import answer, ranking
from espalier.data.formats.prompt import asked
from espalier.errors import RowError
from espalier.types import Consumes, Message, Origin, Ranking, Response

SIDES = (
    ("response_a", "response_b"),
    ("response_1", "response_2"),
    ("response1", "response2"),
    ("output_1", "output_2"),
    ("response_0", "response_1"),
)
"""Where the two answers may stand, the first one first."""
SIGNED = ("preference_strength", "overall_preference")
"""Verdicts below 0 if the first answer is better, above 0 if the second one is, and 0 for a tie (HelpSteer)."""
HALVES = "preference"
"""A verdict from 1, the first answer is better, to 2, the second one is (AlpacaEval)."""
PLACE = "better_response_id"
"""0 or 1: the place of the better answer (SafeRLHF)."""
WON = ("winner_model_a", "winner_model_b", "winner_tie")
"""One of the three is 1 (Chatbot Arena)."""
WINNER = "winner"
WINNERS = {"model_a": 0, "model_b": 1, "tie": None, "tie (bothbad)": None}


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row has two numbered answers and one of the verdicts."""
    if _sides(row) is None:
        return False
    names = (*SIGNED, HALVES, PLACE, WON[0], WINNER)
    return any(isinstance(peek(row, name), int | float | str) for name in names)


def _sides(row: Fields) -> tuple[str, str] | None:
    for first, second in SIDES:
        if isinstance(peek(row, first), str) and isinstance(peek(row, second), str):
            return first, second
    return None


def read_compared(row: Fields, origin: Origin) -> Ranking:
    """A Ranking of the two answers; equal ranks are a tie. Raises RowError, also for a verdict outside its scale.

    A prompt and answers that are JSON lists of one text are that text; of several turns, the two conversations differ
    before their last answers, so that there is no prompt that both answer.
    """
    keys = _sides(row)
    if keys is None:
        raise missing(SIDES[1][0], row, " or ".join(" and ".join(pair) for pair in SIDES))
    better = _better(row)
    question = asked(row, ("prompt", "instruction", "question", "query", "input", "context"))
    prompt = [Message(m.role, _single(m.content, "prompt")) for m in question.messages]
    ranks = (0, 0) if better is None else (int(better == 1), int(better == 0))
    responses = []
    for key, rank in zip(keys, ranks, strict=True):
        responses.append(Response(answer(_single(row[key], key), key), rank=rank))
    return ranking(prompt, responses, origin, field=" and ".join(keys), tools=question.tools)


def _single(text: str, field: str) -> str:
    """The one text of a JSON list; any other text as it is."""
    if not text.lstrip().startswith('["'):
        return text
    texts = decode_string(text, field, "a text, or a list of one")
    if len(texts) != 1 or not isinstance(texts[0], str):
        fix = "Cut it to its first turn, or make one row of each turn"
        raise RowError("prompts differ", field=field, got=f"{len(texts)} turns", expected="one answer each", fix=fix)
    return str(texts[0])


def _better(row: Fields) -> int | None:
    """The place of the better answer, 0 or 1; None for a tie. Raises RowError."""
    key = first_key(row, SIGNED)
    if key is not None:
        value = _number(row[key], key, -10, 10)
        return None if value == 0 else int(value > 0)
    key = first_key(row, (PLACE,))
    if key is not None:
        return int(_number(row[key], key, 0, 1, whole=True))
    if first_key(row, (WON[0],)):
        won = [_number(row.get(name) or 0, name, 0, 1, whole=True) for name in WON]
        if sum(won) != 1:
            raise RowError("no winner", field=WON[0], got=f"{won}", expected=f"one of {', '.join(WON)} that is 1")
        return None if won[2] else int(won[1] == 1)
    key = first_key(row, (WINNER,))
    if key is not None:
        if not isinstance(row[key], str) or row[key] not in WINNERS:
            raise wrong_type(key, row[key], ", ".join(WINNERS))
        return WINNERS[row[key]]
    value = _number(row.get(HALVES), HALVES, 1, 2)
    return None if value == 1.5 else int(value > 1.5)


def _number(value: Any, field: str, least: float, most: float, *, whole: bool = False) -> float:
    """A number inside a scale. Raises RowError."""
    number = finite(value) if isinstance(value, int | float) else None
    if number is None or not least <= number <= most or (whole and number != int(number)):
        raise wrong_type(field, value, f"a {'whole ' if whole else ''}number from {least} to {most}")
    return number


FORMAT = Format("compared", read_compared, looks)
