"""Turns that do not begin as their generation prompt does are put behind it."""

import pytest

from espalier.checks.exact import exact
from espalier.data.render.renderer import Renderer
from espalier.errors import RowError
from espalier.types import Chat
from toys import assistant, letters, show, system, tool, user

# Reasoning in the content of a turn is left out, and the prompt opens it.
THINKS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|im_start|>' + m.content.split('</think>')[-1] }}"
    "{% for c in m.tool_calls or [] %}{{ '[' + c.function.name + ']' }}{% endfor %}{{ '<|im_end|>' }}"
    "{% else %}{{ m.role[0] + ':' + m.content }}{% endif %}{% endfor %}"
    "{{ '<|im_start|>OPENS' if add_generation_prompt and messages[-1].role != 'tool' else '' }}"
)
THOUGHT = "<think>\nhm\n</think>\n\nA"
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "1"}}}


def thinking(opens="<think>\n"):
    return letters(template=THINKS.replace("OPENS", opens))


def shown(chat, tokenizer):
    group = Renderer(tokenizer).render(chat)
    assert exact([(chat, group)], tokenizer, (), "assistant").verdict == "pass"
    return [show(rendered, tokenizer) for rendered in group], dict(group.noted)


@pytest.mark.parametrize("opens", ["<think>\n", "<think>\n\n</think>\n\n", "</think>"])
def test_an_answer_without_reasoning_begins_where_the_opening_would(opens):
    chat = Chat((user("Q"), assistant("A"), user("R"), assistant("<b>")))
    texts, noted = shown(chat, thinking(opens))
    assert texts == ["u:Q<|im_start|>⟦A<|im_end|>⟧u:R<|im_start|>⟦<b><|im_end|>⟧"]
    assert list(noted) == [
        "answers without reasoning, trained without the opening of reasoning that the generation prompt ends in"
    ]


@pytest.mark.parametrize("answer", [assistant(THOUGHT), assistant("A", reasoning="hm")])
def test_an_answer_with_reasoning_stands_behind_the_opening(answer):
    texts, noted = shown(Chat((user("Q"), answer, user("R"), answer)), thinking())
    lines = "" if answer.reasoning else "\n\n"
    turn = "<|im_start|><think>\n⟦hm\n</think>\n\nA<|im_end|>⟧"
    assert texts == [f"u:Q{turn}", f"u:Q<|im_start|>{lines}A<|im_end|>u:R{turn}"]
    assert len(noted) == 1 and "opens their reasoning" in next(iter(noted))


def test_calls_with_and_without_reasoning():
    messages = (user("Q"), assistant("", tool_calls=(CALL,)), tool("T"), assistant("A"))
    texts, _ = shown(Chat(messages), thinking())
    assert texts == ["u:Q<|im_start|>⟦[f]<|im_end|>⟧t:T<|im_start|>⟦A<|im_end|>⟧"]
    texts, _ = shown(Chat((user("Q"), assistant("", tool_calls=(CALL,), reasoning="hm"))), thinking())
    assert texts == ["u:Q<|im_start|><think>\n⟦hm\n</think>[f]<|im_end|>⟧"]


def test_reasoning_that_a_template_leaves_out_of_a_trained_turn_refuses_the_row():
    tokenizer = letters(template=THINKS.replace("OPENS", ""))
    for answer in (assistant(THOUGHT), assistant("A", reasoning="hm")):
        with pytest.raises(RowError, match="drops reasoning") as caught:
            Renderer(tokenizer).render(Chat((user("Q"), answer)))
        assert caught.value.fix
    Renderer(tokenizer).render(Chat((user("Q"), assistant(THOUGHT, weight=0.0), user("R"), assistant("A"))))
    Renderer(tokenizer).render(Chat((user("Q"), assistant("</think>A"))))


def test_a_prompt_that_differs_in_white_space_alone_is_the_prompt():
    template = (
        "{% for m in messages %}{{ m.role + ':' + m.content + '<|im_end|>' }}{% endfor %}"
        "{{ 'assistant:\n' if add_generation_prompt else '' }}"
    )
    texts, noted = shown(
        Chat((system("S"), user("Q"), assistant("A"), user("R"), assistant("B"))), letters(template=template)
    )
    first = "system:S<|im_end|>user:Q<|im_end|>assistant:"
    assert texts == [f"{first}\n⟦A<|im_end|>⟧", f"{first}A<|im_end|>user:R<|im_end|>assistant:\n⟦B<|im_end|>⟧"]
    assert len(noted) == 1 and "white space" in next(iter(noted))
