"""Tool calls reach a template in the form that it takes."""

import json
import re

import pytest

from espalier.data.render.calls import CallForm, Habits
from espalier.data.render.renderer import Renderer
from espalier.errors import RowError
from espalier.types import Chat, Message
from toys import assistant, letters, show, tool, user


def call(name, arguments, id=None):
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": id, **made} if id else made


def template(body):
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.tool_calls %}" + body + "{% else %}{{ m.content }}{% endif %}"
        "{% if m.role == 'tool' and m.tool_call_id %}{{ '#' + m.tool_call_id }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


EACH = "{% for c in m.tool_calls %}{{ c.function.name + ' ' + ARGS }}{% endfor %}"
TEXT = template(EACH.replace("ARGS", "c.function.arguments"))
PRINTED = template(EACH.replace("ARGS", "c.function.arguments | string"))
OBJECT = template(EACH.replace("ARGS", "c.function.arguments | tojson"))
NINE = template(
    "{% for c in m.tool_calls %}{% if c.id is not defined or c.id | length != 9 %}"
    "{{ raise_exception('ids must have length 9') }}{% endif %}"
    "{{ c.function.name + ' ' + (c.function.arguments | tojson) + '#' + c.id }}{% endfor %}"
)
HOLE = template("{% for c in m.tool_calls %}{{ c.function.name ~ '#' ~ c.id ~ '#' }}{% endfor %}")
FIRST = template("{{ m.tool_calls[0].function.name + ' ' + (m.tool_calls[0].function.arguments | tojson) }}")


def group(source, *messages):
    tokenizer = letters(template=source)
    return Renderer(tokenizer).render(Chat((user("Q"), *messages))), tokenizer


def text(source, *messages):
    made, tokenizer = group(source, *messages)
    return show(made[0], tokenizer), made.noted


@pytest.mark.parametrize("arguments", [{"a": "u", "b": [1]}, '{"a": "u", "b": [1]}'])
@pytest.mark.parametrize("source", [TEXT, PRINTED, OBJECT])
def test_arguments_are_objects_or_else_json_text(source, arguments):
    shown, noted = text(source, assistant("", tool_calls=(call("f", arguments),)))
    assert shown.endswith('⟦f {"a": "u", "b": [1]}<|im_end|>⟧')
    assert noted == ({} if source == OBJECT else {"tool calls with arguments as text": 1})


def test_text_arguments_hold_no_control_tokens():
    bad = "<|im_end|></s>"
    made, tokenizer = group(TEXT, assistant("", tool_calls=(call("f", {"a": bad}),)))
    (one,) = made
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert one.sample.tokens.count(end) == 2 and one.sample.tokens.count(tokenizer.eos_token_id) == 0
    assert bad in show(one, tokenizer)


def test_ids_are_kept_where_they_fit():
    one, other = "abcdefgh1", "abcdefgh2"
    calls = (call("f", {}, one), call("g", {}, other))
    shown, noted = text(
        NINE,
        assistant("", tool_calls=calls),
        tool("2", tool_call_id=other),
        tool("1", tool_call_id=one),
        assistant("A"),
    )
    assert f"f {{}}#{one}g {{}}#{other}<" in shown and f"2#{other}<" in shown and f"1#{one}<" in shown
    assert noted == {}


@pytest.mark.parametrize("ids", [(None, None), ("call_1", "call_2"), ("abcdefgh1", None)])
def test_ids_are_made_where_the_template_demands_them(ids):
    calls = (call("f", {"a": 1}, ids[0]), call("g", {}, ids[1]))
    results = [tool("1", tool_call_id=ids[0]), tool("2", tool_call_id=ids[1])]
    turns = (assistant("", tool_calls=calls), *results, assistant("A"))
    shown, noted = text(NINE, *turns)
    made = re.findall("#([A-Za-z0-9]{9})[g<]", shown)
    assert len(made) == 4 and made[:2] == made[2:] and made[0] != made[1]
    assert noted == {"tool calls with ids made": 1}
    assert text(NINE, *turns) == (shown, noted)  # the same each time
    if ids[0] == "abcdefgh1":
        assert made[0] == ids[0]


def test_results_without_an_id_follow_their_functions():
    calls = (call("f", {}, "one"), call("g", {}, "two"))
    written = CallForm().written(
        [assistant("", tool_calls=calls), tool("1", name="g"), tool("2"), tool("3"), tool("4", tool_call_id="x")]
    )
    assert [message.tool_call_id for message in written[1:]] == ["two", "one", None, "x"]
    assert CallForm().written([Message("assistant", "a"), tool("1", tool_call_id="x")])[1].tool_call_id == "x"


def test_a_hole_where_an_id_stands_is_filled():
    shown, noted = text(HOLE, assistant("", tool_calls=(call("f", {}),)))
    assert re.search("f#[A-Za-z0-9]{9}#<", shown) and noted == {"tool calls with ids made": 1}
    shown, noted = text(HOLE, assistant("", tool_calls=(call("f", {}, "own"),)))
    assert "f#own#<" in shown and noted == {}


def test_calls_that_a_template_drops_are_refused_by_name():
    two = (call("f", {}), call("g", {}))
    with pytest.raises(RowError, match=r"chat template drops parallel tool calls.*turn of its own"):
        group(FIRST, assistant("", tool_calls=two))
    assert "f {}" in text(FIRST, assistant("", tool_calls=two[:1]))[0]
    with pytest.raises(RowError, match="chat template drops text beside tool calls"):
        group(OBJECT, assistant("Text", tool_calls=two[:1]))
    assert "f {}g {}" in text(OBJECT, assistant("", tool_calls=two))[0]


def test_a_template_that_takes_one_call_and_says_so_gets_a_way_out():
    refusal = "{% if m.tool_calls | length > 1 %}{{ raise_exception('one at once') }}{% endif %}"
    source = template(refusal + "{{ m.tool_calls[0].function.name }}")
    with pytest.raises(RowError, match=r"one at once.*one tool call a turn.*--template"):
        group(source, assistant("", tool_calls=(call("f", {}), call("g", {}))))


def test_habits_of_a_template_that_refuses_calls_are_unknown():
    habits = Habits(lambda messages: None)
    assert not habits.drops and not habits.prints and not habits.holes
    assert json.dumps([f.text for f in habits.forms([assistant("", tool_calls=(call("f", {}),))])]) == (
        "[false, true, false, true]"
    )
