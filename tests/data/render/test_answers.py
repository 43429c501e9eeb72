"""A drawn answer is read by a reward model as `espalier reward` renders the same conversation."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.data.render.answers import read_drawn
from espalier.data.render.chats import Tail
from espalier.data.render.form import Form, TaskForm
from espalier.data.render.renderer import Renderer
from espalier.types import Message, Ranking, Response, Task
from toys import FORGETFUL, SWITCHED, assistant, letters, merging, spaced, system, user, with_chatml

BARE = """
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
CLOSED = BARE + "{% if not add_generation_prompt %}{{ '\n</s>\n' }}{% endif %}"
OPEN = """
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content }}
{%- if not loop.last %}{{ '<|im_end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_end|><|im_start|>assistant\n' }}{% endif %}"""
TOKENIZERS: dict[str, Any] = {
    **{name: lambda name=name: letters(template=name) for name in ("chatml", "llama3", "alpaca", "plain")},
    "chatml, bos": lambda: letters(template="chatml", bos=True),
    "llama3, bos": lambda: letters(template="llama3", bos=True),
    "no tail": lambda: letters(template=BARE),
    "a tail of three": lambda: letters(template=CLOSED),
    "left open": lambda: letters(template=OPEN),
    "drops reasoning": lambda: letters(template=FORGETFUL),
    "an empty thought": lambda: letters(template=SWITCHED),
    "merges": merging,
    "spaces": lambda: with_chatml(spaced("always")),
}
PROMPTS = {
    "a question": (user("Q and a?"),),
    "several turns": (system("Be brief."), user("Q"), assistant("\nA"), user("R\n")),
}


def conversation(tokenizer: Any, prompt: tuple[Message, ...], text: str) -> tuple[list[int], int, list[int], Renderer]:
    """What the renderer of a reward model makes of an answer: ids and read; and the prompt's ids, and the policy's
    renderer."""
    (rendered,) = Renderer(tokenizer, form=Form("ranking", "grades", reads=True)).render(
        Ranking(prompt, (Response(assistant(text), scores=(1.0,)),))
    )
    policy = Renderer(tokenizer, form=Form("task", tasks=TaskForm(8)))
    (task,) = policy.render(Task(prompt))
    (read,) = rendered.sample.reads
    return rendered.sample.tokens, read, task.sample.tokens, policy


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_and_place_are_those_of_the_renderer(name: str, prompt: str) -> None:
    tokenizer = TOKENIZERS[name]()
    for text in ("Yes", "\nNo \n", "4"):
        whole, place, before, policy = conversation(tokenizer, PROMPTS[prompt], text)
        assert whole[: len(before)] == before
        stop = next(i for i in range(len(before), len(whole)) if whole[i] in policy.stop_ids)
        drawn = whole[: stop + 1]
        assert read_drawn(drawn, policy.chats.tail, policy.stop_ids, stopped=True) == (whole, place)


def test_tails_by_hand() -> None:
    rows = (
        ("chatml", "\n", "<|im_end|>"),
        ("llama3", "", "<|eot_id|>"),
        ("a tail of three", "\n</s>\n", "<|im_end|>"),
        ("left open", "", "</s>"),
    )
    for name, tail, stop in rows:
        tokenizer = TOKENIZERS[name]()
        found = Renderer(tokenizer).chats.tail
        assert tokenizer.decode(list(found.ids)) == tail
        assert found.left_open == (name == "left open")
        assert tokenizer.decode([found.stop]) == stop


def test_what_stopped_how_is_read_where() -> None:
    tail = Tail((5, 6), False, 2)
    # Stopped by the template's token, by another one, at a string without one; cut.
    assert read_drawn([10, 11, 2], tail, (2, 3), stopped=True) == ([10, 11, 2, 5, 6], 4)
    assert read_drawn([10, 11, 3], tail, (2, 3), stopped=True) == ([10, 11, 3, 5, 6], 4)
    assert read_drawn([10, 11], tail, (2, 3), stopped=True) == ([10, 11, 2, 5, 6], 4)
    assert read_drawn([10, 11], tail, (2, 3), stopped=False) == ([10, 11], 1)
    # A pad token is not read; a stop token that the template leaves out is not written.
    assert read_drawn([10, 11, 2], tail, (2,), stopped=True, unread=6) == ([10, 11, 2, 5, 6], 3)
    assert read_drawn([10, 11, 2], Tail((), True, 2), (2,), stopped=True) == ([10, 11, 2], 1)
    # A template that takes no chat says nothing of what follows.
    assert read_drawn([10, 11], Tail((), False), (2,), stopped=True) == ([10, 11], 1)
