"""What a judge model is asked: an instruction and a response inside one text, under headings.

Kim et al., Prometheus, arXiv:2310.08491.
"""

from __future__ import annotations

from typing import Any

from espalier.data.formats.common import Fields, first_key, string, wrong_type
from espalier.data.formats.judged import check_answer, ranking, score
from espalier.errors import RowError
from espalier.types import Message, Origin, Ranking, Response

PAIR = ("chosen_instruction", "rejected_instruction")
SCORES = ("gpt4_score", "orig_score", "score")
SCALE = (1.0, 5.0)
_ASKED, _TOLD, _NEXT = "###The instruction to evaluate:", "###Response to evaluate:", "###"


def is_judge(row: Fields) -> bool:
    """Whether the texts of a row are what a judge was asked, and it holds a pair or scores."""
    key = PAIR[0] if first_key(row, PAIR) else "instruction" if first_key(row, SCORES) else ""
    text = row.get(key)
    return isinstance(text, str) and _ASKED in text and _TOLD in text


def read_judge(row: Fields, origin: Origin) -> Ranking:
    """A Ranking of the two responses in `chosen_instruction` and `rejected_instruction`, or of the one in `instruction`
    with the mean of its scores (`gpt4_score`: one number or a list, 1 to 5) and the author in `response_source`.

    The instruction is the prompt; rubrics, references and feedback are left out. Raises RowError.
    """
    if first_key(row, PAIR):
        (asked, chosen), (other, rejected) = (_split(string(row, (key,)), key) for key in PAIR)
        if asked != other:
            got, expected = f"{asked[:40]!r} and {other[:40]!r}", "one instruction"
            raise RowError("prompts differ", field=" and ".join(PAIR), got=got, expected=expected)
        answers = [
            check_answer(Message("assistant", text), key) for text, key in zip((chosen, rejected), PAIR, strict=True)
        ]
        judged = [Response(message, rank=place) for place, message in enumerate(answers)]
        return ranking([Message("user", asked)], judged, origin, field=" and ".join(PAIR))
    asked, told = _split(string(row, ("instruction",)), "instruction")
    author = string(row, ("response_source",), default="")
    message = check_answer(Message("assistant", told), "instruction")
    return ranking(
        [Message("user", asked)], [Response(message, scores=(_mean(row),), author=author)], origin, field="instruction"
    )


def _split(text: str, field: str) -> tuple[str, str]:
    """The instruction and the response of what a judge was asked."""
    _, asked, rest = text.partition(_ASKED)
    instruction, told, rest = rest.partition(_TOLD)
    if not asked or not told:
        expected = f"the headings {_ASKED!r} and {_TOLD!r}"
        raise RowError("no judge text", field=field, got=f"{text[:40]!r}", expected=expected)
    return instruction.strip(), rest.split(f"\n{_NEXT}", 1)[0].strip()


def _mean(row: Fields) -> float | None:
    key = first_key(row, SCORES)
    if key is None:
        return None
    given: Any = row[key]
    if not isinstance(given, list):
        return score(given, key, SCALE)
    found = [score(one, f"{key}[{i}]", SCALE) for i, one in enumerate(given)]
    known = [one for one in found if one is not None]
    if not known:
        raise wrong_type(key, given, "a list with at least one score")
    return sum(known) / len(known)
