"""The stop token is the one that ends the answer, whatever else a template writes behind it."""

import pytest
from tokenizers import AddedToken

from espalier.data.render.renderer import Renderer
from espalier.data.render.templates import complete
from espalier.errors import RowError
from espalier.types import Chat
from toys import assistant, letters, show, tool, user

NAMES = ("<|im_start|>", "<|im_end|>", "<|ask|>", "<|say|>", "<|see|>", "<|done|>", "<|more|>")
THREE = Chat((user("Q"), assistant("A"), user("R"), assistant("B"), user("S"), assistant("C")))
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "1"}}}


def speaking(template, *, strip=()):
    """A tokenizer of letters with control tokens of its own; those in `strip` take the spaces on both sides."""
    tokenizer = letters(template=template)
    for name in NAMES[2:]:
        token = AddedToken(name, special=True, normalized=False, lstrip=name in strip, rstrip=name in strip)
        tokenizer.add_tokens([token], special_tokens=True)
    return tokenizer


def ids(tokenizer, *names):
    return tuple(tokenizer.convert_tokens_to_ids(list(names)))


def shown(tokenizer, chat, *known, **more):
    renderer = Renderer(tokenizer, known_stops=ids(tokenizer, *known), **more)
    return [show(r, tokenizer) for r in renderer.render(chat)]


ALWAYS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
INSTRUCTED = (
    "<|im_start|>system\nBe brief.<|im_end|>\n{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"
)
APPENDED = (
    "{% for m in messages %}{{ ('<|ask|>' if m.role == 'user' else '<|say|>') + m.content + '<|done|>\n' }}"
    "{% endfor %}{{ '<|say|>' if add_generation_prompt else eos_token }}"
)
OPEN = (
    "{% for m in messages %}{{ {'user': '<|ask|>', 'assistant': '<|say|>', 'tool': '<|see|>'}[m.role] + m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}:{{ c.function.arguments | length }}</tool_call>"
    "{% endfor %}{% endfor %}{{ '<|say|>' if add_generation_prompt else '' }}"
)
LAST_ONLY = (
    "{% for m in messages %}{{ ('<|ask|>' if m.role == 'user' else '<|say|>') + m.content }}"
    "{{ '' if m.role == 'user' else ('<|done|>' if loop.last else '<|more|>') }}{% endfor %}"
    "{{ '<|say|>' if add_generation_prompt else '' }}"
)


@pytest.mark.parametrize("known", [(), ("<|im_end|>",), ("</s>",)])
def test_a_header_behind_every_rendering_is_not_trained(known):
    tokenizer = speaking(ALWAYS)
    head, turn = "<|im_start|>user\n", "<|im_end|><|im_start|>assistant\n"
    assert shown(tokenizer, THREE, *known) == [
        f"{head}Q{turn}⟦A<|im_end|>⟧{head}R{turn}⟦B<|im_end|>⟧{head}S{turn}⟦C<|im_end|>⟧"
    ]
    stops = Renderer(tokenizer, known_stops=ids(tokenizer, *known)).stop_ids
    assert set(stops) == set(ids(tokenizer, "<|im_end|>", "</s>"))


def test_an_appended_end_of_text_is_not_trained_and_cuts_no_conversation():
    tokenizer = speaking(APPENDED)
    assert shown(tokenizer, THREE) == [
        "<|ask|>Q<|done|>\n<|say|>⟦A<|done|>⟧\n<|ask|>R<|done|>\n<|say|>⟦B<|done|>⟧\n"
        "<|ask|>S<|done|>\n<|say|>⟦C<|done|>⟧"
    ]
    assert Renderer(tokenizer).stop_ids[0] == ids(tokenizer, "<|done|>")[0]
    weighted = Chat((user("Q", weight=0.5), assistant("A")))
    (text,) = shown(tokenizer, weighted)
    assert text == "⟦<|ask|>Q<|done|>\n⟧<|say|>⟦A<|done|>⟧"


def test_a_turn_ends_at_the_marker_of_the_next_one_if_the_model_stops_there():
    tokenizer = speaking(OPEN)
    assert shown(tokenizer, THREE, "<|ask|>", "<|see|>") == [
        "<|ask|>Q<|say|>⟦A<|ask|>⟧R<|say|>⟦B<|ask|>⟧S<|say|>⟦C<|ask|>⟧"
    ]
    called = Chat((user("Q"), assistant("", tool_calls=(CALL,)), tool("T"), assistant("A")))
    assert shown(tokenizer, called, "<|ask|>", "<|see|>") == [
        "<|ask|>Q<|say|>⟦<tool_call>f:1</tool_call><|see|>⟧T<|say|>⟦A<|ask|>⟧"
    ]
    assert shown(tokenizer, Chat(called.messages[:2]), "<|ask|>", "<|see|>") == [
        "<|ask|>Q<|say|>⟦<tool_call>f:1</tool_call><|see|>⟧"
    ]
    renderer = Renderer(tokenizer, known_stops=ids(tokenizer, "<|ask|>", "<|see|>"))
    assert set(renderer.stop_ids) == set(ids(tokenizer, "<|ask|>", "<|see|>", "</s>"))
    (sample,) = renderer.render(THREE)
    before = sample.sample.tokens[: len(sample.sample) - 2]
    assert renderer.prompt(THREE.messages[:5]) == before


def test_a_turn_that_is_left_open_ends_in_the_end_of_text_if_the_model_stops_on_that_alone():
    tokenizer = speaking(OPEN)
    assert shown(tokenizer, THREE, "</s>") == [
        "<|ask|>Q<|say|>⟦A</s>⟧",
        "<|ask|>Q<|say|>A<|ask|>R<|say|>⟦B</s>⟧",
        "<|ask|>Q<|say|>A<|ask|>R<|say|>B<|ask|>S<|say|>⟦C</s>⟧",
    ]


def test_a_stop_token_that_the_last_turn_alone_has_is_trained_in_each():
    tokenizer = speaking(LAST_ONLY)
    assert shown(tokenizer, Chat(THREE.messages[:4])) == [
        "<|ask|>Q<|say|>⟦A<|done|>⟧",
        "<|ask|>Q<|say|>A<|more|><|ask|>R<|say|>⟦B<|done|>⟧",
    ]


def test_tokens_that_take_spaces_leave_the_content_and_the_stop_token():
    tokenizer = speaking(APPENDED, strip=("<|say|>", "<|done|>"))
    chat = Chat((user("Q"), assistant(" A\n"), user("R"), assistant("B  ")))
    texts = shown(tokenizer, chat)
    assert texts == ["<|ask|>Q<|done|><|say|>⟦A<|done|>⟧<|ask|>R<|done|><|say|>⟦B<|done|>⟧"]


def test_a_stop_token_inside_a_turn_is_none():
    thinking = APPENDED.replace("m.content", "('x<|more|>y' if m.role == 'assistant' else '') + m.content")
    tokenizer = speaking(thinking)
    assert shown(tokenizer, Chat(THREE.messages[:2]), "<|more|>") == ["<|ask|>Q<|done|>\n<|say|>⟦x<|more|>yA<|done|>⟧"]
    twice = APPENDED.replace("+ m.content", "+ ('x<|done|>' if m.content == 'B' else '') + m.content")
    with pytest.raises(RowError, match="content behind the stop token") as caught:
        shown(speaking(twice), Chat(THREE.messages[:4]))
    assert "--template" in caught.value.fix


def test_a_header_without_a_generation_prompt_is_one_and_is_not_trained():
    bare = ALWAYS.rpartition("{{")[0]
    tokenizer = speaking(bare)
    texts = shown(tokenizer, Chat(THREE.messages[:2]))
    assert texts == ["<|im_start|>user\nQ<|im_end|><|im_start|>assistant\n⟦A<|im_end|>⟧"]
    assert "'<|im_start|>assistant\\n' is one now" in complete(tokenizer)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}], add_generation_prompt=True, tokenize=False
    )
    assert asked == "<|im_start|>user\nQ<|im_end|><|im_start|>assistant\n"
    assert complete(tokenizer) == "" and shown(tokenizer, Chat(THREE.messages[:2])) == texts
    assert complete(letters(template="chatml")) == complete(letters(template=None)) == ""


def test_a_header_that_a_prompt_lacks_is_not_trained():
    """A template that writes no generation prompt behind a tool's result, and the header of the answer all the same."""
    template = (
        "{% for m in messages %}{{ {'user': '<|ask|>', 'assistant': '<|say|>\n', 'tool': '<|see|>'}[m.role] }}"
        "{{ m.content }}{{ '<|done|>' if m.role == 'assistant' else '' }}{% endfor %}"
        "{{ '<|say|>\n' if add_generation_prompt and messages[-1].role == 'user' else '' }}"
    )
    chat = Chat((user("Q"), assistant("A"), tool("T"), assistant("B")))
    assert shown(speaking(template), chat) == ["<|ask|>Q<|say|>\n⟦A<|done|>⟧<|see|>T<|say|>\n⟦B<|done|>⟧"]


def test_the_parts_of_a_call_are_found_where_their_names_could_complete_a_control_token():
    template = (
        "{% for m in messages %}{{ '<' if m.role == 'system' else '<|ask|>' }}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name + ':' + c.function.arguments.city }}{% endfor %}"
        "{{ '<|done|>' if m.role == 'assistant' else '' }}{% endfor %}{{ '<|ask|>' if add_generation_prompt else '' }}"
    )
    tokenizer = speaking(template)
    tokenizer.add_tokens([AddedToken("<function>", special=True), AddedToken("<name>", special=True)])
    call = {"type": "function", "function": {"name": "look", "arguments": {"city": "Rome"}}}
    chat = Chat((user("Q"), assistant("", tool_calls=(call,))))
    assert shown(tokenizer, chat) == ["<|ask|>Q<|ask|>⟦look:Rome<|done|>⟧"]


@pytest.mark.parametrize("known", [(), ("<|im_end|>",), ("</s>",)])
def test_a_system_turn_that_is_always_written_does_not_hide_the_end_of_answers(known):
    (row,) = shown(speaking(INSTRUCTED), THREE, *known)
    assert row.count("⟦") == 3 and all(f"⟦{answer}<|im_end|>⟧" in row for answer in "ABC")


def test_what_opens_turns_may_also_end_them():
    template = (
        "{% for m in messages %}{{ m.role + '<|more|>' + m.content + '<|more|>' }}{% endfor %}"
        "{{ 'assistant<|more|>' if add_generation_prompt else '' }}"
    )
    assert shown(speaking(template), Chat(THREE.messages[:4])) == [
        "user<|more|>Q<|more|>assistant<|more|>⟦A<|more|>⟧user<|more|>R<|more|>assistant<|more|>⟦B<|more|>⟧"
    ]
