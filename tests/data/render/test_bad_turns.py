"""Conversations are used as far as they go, and what was done to their turns is counted."""

import pytest

from espalier.config.sections import TurnsConfig
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.errors import RowError
from espalier.types import Chat
from toys import FORGETFUL, assistant, letters, show, system, tool, user

CHATML = letters(template="chatml")
U, A, Q, B = user("Hi"), assistant("Yo"), user("Ok"), assistant("By")
HEAD = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
MIDDLE = "\n<|im_start|>user\nOk<|im_end|>\n<|im_start|>assistant\n"
# Reads the first message before it looks at any, as templates with a default system prompt do.
FIRST = (
    "{% if messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{% endif %}"
    "{% for m in messages if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# No system turn, and users and the assistant by turns.
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def renderer(template="chatml", *, train_on="assistant", max_length=0, **turns):
    tokenizer = letters(template=template)
    return Renderer(tokenizer, train_on=train_on, max_length=max_length, form=Form(turns=TurnsConfig(**turns)))


def shown(r, *messages):
    return [show(one, CHATML) for one in r.render(Chat(tuple(messages)))]


def refused(r, *messages):
    with pytest.raises(RowError) as caught:
        r.render(Chat(tuple(messages)))
    return caught.value


def test_what_follows_the_last_answer_is_left_out_and_counted():
    r = renderer()
    for tail, reason, count in (
        ([Q], "user turns without an answer", 1),
        ([tool("3"), tool("4")], "tool results without an answer", 2),
        ([Q, assistant(" ")], "empty assistant turn", 1),
    ):
        group = r.render(Chat((U, A, *tail)))
        assert [show(one, CHATML) for one in group] == [f"{HEAD}⟦Yo<|im_end|>⟧"]
        assert group.dropped[reason] == count and sum(group.dropped.values()) == len(tail)
    assert not r.render(Chat((U, A))).dropped
    strict = renderer(on_bad_turn="refuse")
    for tail, reason in (
        (Q, "conversation ends on the user"),
        (tool("3"), "conversation ends on a tool result"),
        (assistant(""), "empty assistant turn"),
    ):
        error = refused(strict, U, A, tail)
        assert (error.reason, error.field) == (reason, "messages[2]")
    assert refused(r, U, assistant("")).reason == "empty assistant turn"


def test_a_question_with_a_weight_of_its_own_is_kept_at_the_end():
    group = renderer().render(Chat((U, A, user("Ok", weight=1.0))))
    assert not group.dropped and show(group[0], CHATML).endswith("⟦<|im_start|>user\nOk<|im_end|>\n⟧")


def test_an_empty_answer_in_the_middle_is_context():
    group = renderer().render(Chat((U, assistant(""), Q, B)))
    assert show(group[0], CHATML) == f"{HEAD}<|im_end|>{MIDDLE}⟦By<|im_end|>⟧"
    assert group.noted == {"empty assistant turns, kept untrained": 1}
    error = refused(renderer(on_bad_turn="refuse"), U, assistant("", reasoning="r"), Q, B)
    assert (error.reason, error.field, error.got) == ("empty assistant turn", "messages[1]", "reasoning alone")


@pytest.mark.parametrize("template", ["chatml", FIRST, FORGETFUL])
def test_a_greeting_is_context_where_the_template_writes_it(template):
    group = renderer(template).render(Chat((assistant("Oh"), U, A)))
    assert [show(one, CHATML) for one in group] == [f"<|im_start|>assistant\nOh<|im_end|>\n{HEAD}⟦Yo<|im_end|>⟧"]
    assert group.noted == {"assistant turns before any question, kept untrained": 1} and not group.dropped
    error = refused(renderer(template, on_bad_turn="refuse"), assistant("Oh"), U, A)
    assert error.reason == "conversation starts with the assistant"


def test_a_greeting_is_left_out_where_the_template_does_not_write_it():
    silent = FIRST.replace(
        "{% for m in messages", "{% for m in (messages[1:] if messages[0].role == 'assistant' else messages)"
    )
    for template in (STRICT, silent):
        group = renderer(template).render(Chat((assistant("Oh"), U, A)))
        assert [show(one, CHATML) for one in group] == [f"{HEAD}⟦Yo<|im_end|>⟧"], template
        assert group.dropped == {"assistant turns before any question": 1} and not group.noted


def test_a_greeting_after_a_system_turn_is_trained_as_ever():
    head = "<|im_start|>system\nS<|im_end|>\n<|im_start|>assistant\n⟦Oh<|im_end|>⟧\n"
    for template in ("chatml", FIRST):
        group = renderer(template).render(Chat((system("S"), assistant("Oh"), U, A)))
        assert show(group[0], CHATML) == f"{head}{HEAD}⟦Yo<|im_end|>⟧"
        assert not group.noted and not group.dropped


def test_an_only_answer_is_trained_with_nothing_before_it_if_the_template_can():
    assert shown(renderer(), A) == ["<|im_start|>assistant\n⟦Yo<|im_end|>⟧"]
    assert shown(renderer(), A, Q) == ["<|im_start|>assistant\n⟦Yo<|im_end|>⟧"]
    assert refused(renderer(FIRST), A).reason == "chat template refuses the conversation"
    # A weight of its own goes before all this.
    assert shown(renderer(), assistant("Oh", weight=1.0), U, A) == [
        f"<|im_start|>assistant\n⟦Oh<|im_end|>⟧\n{HEAD}⟦Yo<|im_end|>⟧"
    ]


def test_every_token_is_trained_under_all():
    text = f"<|im_start|>assistant\nOh<|im_end|>\n{HEAD}Yo<|im_end|>\n"
    assert shown(renderer(train_on="all"), assistant("Oh"), U, A) == [f"⟦{text}⟧"]
    assert shown(renderer(FIRST, train_on="all"), assistant("Oh"), U, A) == [f"⟦{text}⟧"]


def test_a_later_system_turn_is_refused_with_a_way_out():
    error = refused(renderer(), U, A, system("S"), Q, B)
    assert (error.reason, error.field) == ("system turn not first", "messages[2]")
    assert error.fix.startswith("--merge-system")
    assert shown(renderer(merge_system=True), U, A, system("S"), Q, B) == [
        f"{HEAD}⟦Yo<|im_end|>⟧" + MIDDLE.replace("Ok", "S\n\nOk") + "⟦By<|im_end|>⟧"
    ]


def test_merging_makes_strict_templates_fit():
    strict, merging = renderer(STRICT), renderer(STRICT, merge_system=True, merge_turns=True)
    group = merging.render(Chat((system("S"), U, Q, A, B)))
    assert show(group[0], CHATML) == HEAD.replace("Hi", "S\n\nHi\n\nOk") + "⟦Yo\n\nBy<|im_end|>⟧"
    assert group.noted == {"system turns merged into user turns": 1, "turns merged into the one before": 2}
    for messages, flags in (
        ((system("S"), U, A), "--merge-system puts"),
        ((U, Q, A), "--merge-turns joins"),
        ((system("S"), U, Q, A), "--merge-system --merge-turns put"),
        ((user("Hi"), tool("3"), A), "Choose another --template"),
    ):
        error = refused(strict, *messages)
        assert error.reason == "chat template refuses the conversation" and error.fix.startswith(flags), messages
        assert "--on-bad-row skip" in error.fix


def test_turns_that_differ_in_more_than_text_are_not_merged():
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    r = renderer(merge_turns=True)
    for pair in (
        (assistant("a", weight=0.0), assistant("b")),
        (assistant("", tool_calls=(call,)), assistant("b")),
        (assistant("a"), assistant("b", reasoning="r")),
        (user("a", name="x"), user("b", name="y")),
    ):
        assert not r.render(Chat((U, *pair, assistant("c", weight=0.5)))).noted
    both = r.render(Chat((U, assistant("a"), assistant("", tool_calls=(call,)))))
    assert both.noted == {"turns merged into the one before": 1}


def test_prompts_of_a_sampler_are_merged_likewise():
    assert renderer(STRICT, merge_system=True).prompt([system("S"), U]) == renderer(STRICT).prompt([user("S\n\nHi")])


def test_a_conversation_of_several_samples_loses_those_that_do_not_fit():
    turns = (U, assistant("Yo", reasoning="r"), user("long" * 20), assistant("By", reasoning="r"))
    whole = renderer(FORGETFUL).render(Chat(turns))
    assert len(whole) == 2
    limit = len(whole[0].sample) + 1
    group = renderer(FORGETFUL, max_length=limit).render(Chat(turns))
    assert [one.sample.tokens for one in group] == [whole[0].sample.tokens]
    assert group.dropped == {"emptied by truncation": 1}
    with pytest.raises(RowError, match=f"emptied by truncation; got {len(whole[0].sample)} tokens"):
        renderer(FORGETFUL, max_length=4).render(Chat(turns))
