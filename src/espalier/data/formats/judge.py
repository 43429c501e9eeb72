"""The input of a judge model: an instruction and a response inside one text, under headings.

Kim et al., Prometheus, arXiv:2310.08491.
"""

from __future__ import annotations

from espalier.data.formats.chats import sniff_chat
from espalier.data.formats.common import Fields, first_key, string, wrong_type
from espalier.data.formats.format import Format
from espalier.data.formats.judged import check_answer, ranking, score
from espalier.errors import RowError
from espalier.types import Consumes, Message, Origin, Ranking, Response

PAIR = ("chosen_instruction", "rejected_instruction")
SCORES = ("gpt4_score", "orig_score", "score")
SCALE = (1.0, 5.0)
_INSTRUCTION = "###The instruction to evaluate:"
_RESPONSE = "###Response to evaluate:"
_HEADING = "###"


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether the texts of a row are inputs of a judge, and it holds a pair or scores.

    A row that is also a conversation, with what the judge answered, is one unless the run consumes rankings.
    """
    return _is_judge(row) and (consumes == "ranking" or sniff_chat(row) is None)


def _is_judge(row: Fields) -> bool:
    if first_key(row, PAIR):
        text = row.get(PAIR[0])
    elif first_key(row, SCORES):
        text = row.get("instruction")
    else:
        return False
    return isinstance(text, str) and _INSTRUCTION in text and _RESPONSE in text


def read_judge(row: Fields, origin: Origin) -> Ranking:
    """A Ranking of the two responses in `chosen_instruction` and `rejected_instruction`, or of the one in `instruction`
    with the mean of its scores (`gpt4_score`: one number or a list, 1 to 5) and the author in `response_source`.

    The instruction is the prompt; rubrics, references and feedback are left out. Raises RowError.
    """
    if first_key(row, PAIR):
        return _pair(row, origin)
    instruction, text = _split(string(row, ("instruction",)), "instruction")
    author = string(row, ("response_source",), default="")
    message = check_answer(Message("assistant", text), "instruction")
    response = Response(message, scores=(_mean(row),), author=author)
    return ranking([Message("user", instruction)], [response], origin, field="instruction")


def _pair(row: Fields, origin: Origin) -> Ranking:
    (instruction, chosen), (other, rejected) = (_split(string(row, (key,)), key) for key in PAIR)
    field = " and ".join(PAIR)
    if instruction != other:
        got = f"{instruction[:40]!r} and {other[:40]!r}"
        raise RowError("prompts differ", field=field, got=got, expected="one instruction")
    responses = []
    for rank, (text, key) in enumerate(zip((chosen, rejected), PAIR, strict=True)):
        responses.append(Response(check_answer(Message("assistant", text), key), rank=rank))
    return ranking([Message("user", instruction)], responses, origin, field=field)


def _split(text: str, field: str) -> tuple[str, str]:
    """The instruction and the response of a judge's input. Raises RowError if it lacks one of the headings."""
    _, first_heading, rest = text.partition(_INSTRUCTION)
    instruction, second_heading, rest = rest.partition(_RESPONSE)
    if not first_heading or not second_heading:
        expected = f"the headings {_INSTRUCTION!r} and {_RESPONSE!r}"
        raise RowError("no judge text", field=field, got=f"{text[:40]!r}", expected=expected)
    return instruction.strip(), rest.split(f"\n{_HEADING}", 1)[0].strip()


def _mean(row: Fields) -> float | None:
    """The mean of a row's scores; None if it has none."""
    key = first_key(row, SCORES)
    if key is None:
        return None
    if not isinstance(row[key], list):
        return score(row[key], key, SCALE)
    scores = [score(value, f"{key}[{i}]", SCALE) for i, value in enumerate(row[key])]
    known = [value for value in scores if value is not None]
    if not known:
        raise wrong_type(key, row[key], "a list with at least one score")
    return sum(known) / len(known)


FORMAT = Format("judge", read_judge, looks)
