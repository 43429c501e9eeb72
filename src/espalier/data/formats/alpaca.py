"""Alpaca: instruction, input and output, with optional history and system; seed tasks with several instances."""

from __future__ import annotations

from dataclasses import replace

from espalier.data.formats.common import Fields, check_turns, empty_answer, first_key, string, tools, wrong_type
from espalier.data.formats.format import Format
from espalier.data.formats.lead import answer_of, context_of, history, plain_prompt, with_context, with_system
from espalier.data.formats.sharegpt import turns
from espalier.errors import RowError
from espalier.types import Chat, Consumes, Message, Origin

OUTPUTS = ("output", "response", "completion", "answer")


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row has an instruction and an output."""
    key = first_key(row, ("instruction",))
    return key is not None and first_key(row, (*OUTPUTS, "instances")) is not None


def alpaca_prompt(instruction: str, context: str) -> str:
    """The prompt that Alpaca models are trained with, whose wording many tools share; it ends in `### Response:`.

    `context` is the input of the row; without one, its heading is left out.
    """
    if context:
        lead = "an instruction that describes a task, paired with an input that provides further context"
        task = f"### Instruction:\n{instruction}\n\n### Input:\n{context}"
    else:
        lead, task = "an instruction that describes a task", f"### Instruction:\n{instruction}"
    request = "Write a response that appropriately completes the request."
    return f"Below is {lead}. {request}\n\n{task}\n\n### Response:"


def read_alpaca(row: Fields, origin: Origin, *, prompt: bool = False) -> list[Chat]:
    """One Chat, or one for each of `instances`. The user turn is the instruction, then the input on a new line.

    With `prompt` it is `alpaca_prompt(instruction, input)` instead, in earlier turns (`history`) too. Raises RowError.
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
    """The conversation of one instance; `field` is its place in the row, with a dot at the end."""
    instruction = string(row, ("instruction",))
    context = context_of(instance, "instruction", field)
    if instance is not row:
        context = plain_prompt(context, context_of(row, "instruction"))
    output = string(instance, OUTPUTS, field)
    # Some tasks are all input; the instruction alone may be empty.
    if not (instruction.strip() or context.strip()):
        got = "an empty instruction and no input"
        raise RowError("empty prompt", field="instruction", got=got, expected="an instruction")
    if not output.strip():
        raise empty_answer(f"{field}output", output)
    text = alpaca_prompt(instruction, context) if prompt else with_context(instruction, context)
    earlier = history(row, turns)
    if prompt:
        earlier = [replace(m, content=alpaca_prompt(m.content, "")) if m.role == "user" else m for m in earlier]
    messages = with_system(row, [*earlier, Message("user", text), answer_of(row, output)])
    return Chat(check_turns(messages, "history"), tools(row), origin)


FORMAT = Format("alpaca", read_alpaca, looks)
