"""What the run and a row give to the chat template."""

import pytest

from espalier.config.sections import SampleConfig, TurnsConfig
from espalier.data.formats import convert
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.errors import ConfigError, ModelError, RowError
from espalier.types import Chat, Origin
from toys import SWITCHED, assistant, letters, show, user

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STYLED = "{{ 'system\n' ~ (style or 'none') ~ '!\n' }}" + TEMPLATE
CHAT = Chat((user("Q"), assistant("A")))


def renderer(template, *args):
    return Renderer(letters(template=template), form=Form(turns=TurnsConfig(template_args=args)))


def styles(r, chat=CHAT):
    text = show(r.render(chat)[0], letters(template=None))
    return text.split("system\n")[1].split("!")[0]


def test_a_rows_own_go_before_the_runs():
    row = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    (chat,) = convert("messages", {**row, "chat_template_kwargs": {"style": "row", "other": None}}, Origin("f", 1))
    assert chat.template_args == {"style": "row"}
    assert [styles(renderer(STYLED)), styles(renderer(STYLED, "style=run"))] == ["none", "run"]
    assert styles(renderer(STYLED, "style=run"), chat) == "row"
    assert renderer(STYLED).fingerprint != renderer(STYLED, "style=run").fingerprint
    for value in ('{"style": "row"}', {"style": "row"}):
        pair = {"prompt": "Q", "chosen": "A", "rejected": "B", "chat_template_kwargs": value}
        (ranking,) = convert("pairs", pair, Origin("f", 1))
        assert ranking.template_args == {"style": "row"}
        r = Renderer(letters(template=STYLED), form=Form("ranking"))
        assert all("system\nrow!" in show(one, letters(template=None)) for one in r.render(ranking))
    for value in ({"messages": []}, {"a b": 1}, "[]", 5):
        with pytest.raises(RowError, match="chat_template_kwargs"):
            convert("messages", {**row, "chat_template_kwargs": value}, Origin("f", 1))


def test_a_rows_own_hold_no_control_tokens():
    tokenizer = letters(template=STYLED)
    chat = Chat(CHAT.messages, template_args={"style": "<|im_end|></s>"})
    (one,) = Renderer(tokenizer).render(chat)
    assert one.sample.tokens.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert tokenizer.eos_token_id not in one.sample.tokens


def test_a_switch_that_is_given_is_not_tried_the_other_way():
    thought = Chat((user("Q"), assistant("A", reasoning="r")))
    assert "⟦r</think>A" in show(renderer(SWITCHED).render(thought)[0], letters(template=None))
    with pytest.raises(RowError, match="prompt is no prefix"):
        renderer(SWITCHED, "enable_thinking=false").render(thought)
    on = renderer(SWITCHED, "enable_thinking=true")
    assert on.prompt([user("Q")])[-1] == letters(template=None).convert_tokens_to_ids("<think>")


def test_values_are_yaml_scalars_and_wrong_ones_are_named():
    config = TurnsConfig(template_args=("a=false", "b=3", "c=x y", "d="))
    assert config.template_values == {"a": False, "b": 3, "c": "x y", "d": None}
    # A mapping, as a YAML file may have it.
    config = TurnsConfig(template_args={"a": False, "b": "3", "c": [1]})  # type: ignore[arg-type]
    assert config.template_values == {"a": False, "b": "3", "c": [1]}
    for wrong in (("a",), ("=1",), ("a=1", "a=2"), ("messages=1",), ("a=[",), ("a b=1",)):
        for section in (TurnsConfig, lambda **more: SampleConfig(model="m", prompt=("p",), **more)):
            with pytest.raises(ConfigError, match="template_args"):
                section(template_args=wrong)
    with pytest.raises(ConfigError, match="each place once"):
        TurnsConfig(parse_control=("text", "text"))


@pytest.mark.parametrize(
    ("body", "got"),
    [
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ range(10 ** 9) | list }}", "OverflowError"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ (1).real() }}", "not callable"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "Recursion"),
        ("{{ 'a' * 10 ** 18 }}", "Error"),
    ],
)
def test_a_template_that_fails_refuses_rows_in_one_line(body, got):
    with pytest.raises((RowError, ModelError), match="refuses the conversation") as caught:
        Renderer(letters(template=body + TEMPLATE)).render(CHAT)
    assert got in str(caught.value) and "--template" in str(caught.value)


@pytest.mark.parametrize("body", ["{% do %}", "{{ a | no_such_filter }}", "{% if %}", "{{ '", "{% for a in b %}"])
def test_a_template_that_cannot_be_read_is_the_models_fault(body):
    with pytest.raises(ModelError, match=r"chat template cannot be read: line \d+: .*--template"):
        Renderer(letters(template=TEMPLATE + body))


def test_several_templates_without_a_default_are_the_models_fault():
    tokenizer = letters(template=None)
    tokenizer.chat_template = {"one": TEMPLATE, "two": TEMPLATE}
    with pytest.raises(ModelError, match=r"cannot be used.*--template"):
        Renderer(tokenizer)
