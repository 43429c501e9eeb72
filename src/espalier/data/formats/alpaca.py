"""Alpaca: instruction, input and output, with optional history and system; seed tasks with several instances."""

from __future__ import annotations

from espalier.data.formats.common import Fields, check_turns, empty_answer, string, tools, wrong_type
from espalier.errors import RowError
from espalier.types import Chat, Message, Origin

OUTPUTS = ("output", "response")
INPUTS = ("input", "context")


def alpaca_prompt(instruction: str, given: str) -> str:
    """The prompt that Alpaca models are trained with, whose wording many tools share; it ends in `### Response:`."""
    if given:
        lead = "an instruction that describes a task, paired with an input that provides further context"
        asked = f"### Instruction:\n{instruction}\n\n### Input:\n{given}"
    else:
        lead, asked = "an instruction that describes a task", f"### Instruction:\n{instruction}"
    request = "Write a response that appropriately completes the request."
    return f"Below is {lead}. {request}\n\n{asked}\n\n### Response:"


def read_alpaca(row: Fields, origin: Origin, *, prompt: bool = False) -> list[Chat]:
    """One Chat, or one for each of `instances`. The user says the instruction, then the input on a new line.

    `prompt` has the user say `alpaca_prompt(instruction, input)` instead, in earlier turns (`history`) too. Raises
    RowError.
    """
    if row.get("instances") is None:
        return [_chat(row, row, "", origin, prompt)]
    instances = row["instances"]
    if not isinstance(instances, list) or not instances:
        raise wrong_type("instances", instances, "a list with at least one {input, output}")
    chats = []
    for i, instance in enumerate(instances):
        if not isinstance(instance, dict):
            raise wrong_type(f"instances[{i}]", instance, "an object with input and output")
        chats.append(_chat(row, instance, f"instances[{i}].", origin, prompt))
    return chats


def _chat(row: Fields, instance: Fields, field: str, origin: Origin, prompt: bool) -> Chat:
    instruction = string(row, ("instruction",))
    given, output = string(instance, INPUTS, field, default=""), string(instance, OUTPUTS, field)
    if not (instruction.strip() or given.strip()):
        got = "an empty instruction and no input"
        raise RowError("empty prompt", field="instruction", got=got, expected="an instruction")
    if not output.strip():
        raise empty_answer(f"{field}output", output)
    messages = history(row, prompt)
    if system := string(row, ("system",), default=""):
        messages.insert(0, Message("system", system))
    said = alpaca_prompt(instruction, given) if prompt else "\n".join(part for part in (instruction, given) if part)
    messages += [Message("user", said), Message("assistant", output)]
    return Chat(check_turns(messages, "history"), tools(row), origin)


def history(row: Fields, prompt: bool = False) -> list[Message]:
    """The earlier turns of a row, from `history`; `prompt` as for `read_alpaca`. Raises RowError."""
    pairs = row.get("history")
    if pairs is None:
        return []
    if not isinstance(pairs, list):
        raise wrong_type("history", pairs, "a list of [instruction, response] pairs")
    messages = []
    for i, pair in enumerate(pairs):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise wrong_type(f"history[{i}]", pair, "a pair of strings [instruction, response]")
        if not pair[1].strip():
            raise empty_answer(f"history[{i}][1]", pair[1])
        messages.append(Message("user", alpaca_prompt(pair[0], "") if prompt else pair[0]))
        messages.append(Message("assistant", pair[1]))
    return messages
