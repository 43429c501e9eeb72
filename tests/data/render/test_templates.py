"""Built-in templates write the expected tokens; templates that a vocabulary cannot write are refused."""

import json

import pytest

from espalier.data.render.renderer import Renderer
from espalier.data.render.templates import BUILT_IN, adds_bos, apply_template
from espalier.errors import ConfigError
from espalier.types import Chat
from tiny import tiny_tokenizer
from toys import LLAMA3, TWO_TURNS, assistant, letters, show, tool, user

EXPECTED = {
    "chatml": (
        "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yo<|im_end|>⟧\n"
        "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n⟦2<|im_end|>⟧"
    ),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nBe.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦Yo<|eot_id|>⟧<|start_header_id|>user"
        "<|end_header_id|>\n\n1+1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦2<|eot_id|>⟧"
    ),
    "alpaca": (
        "Be.\n\n### Instruction:\nHi\n\n### Response:\n⟦Yo</s>⟧\n\n### Instruction:\n1+1\n\n### Response:\n⟦2</s>⟧"
    ),
    "plain": "[SYSTEM]\nBe.\n\n[USER]\nHi\n\n[ASSISTANT]\n⟦Yo</s>⟧\n\n[USER]\n1+1\n\n[ASSISTANT]\n⟦2</s>⟧",
}


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("bos", [False, True])
def test_two_turns_are_the_expected_tokens(name, bos):
    tokenizer = letters(template=name, bos=bos)
    (rendered,) = Renderer(tokenizer).render(TWO_TURNS)
    assert show(rendered, tokenizer) == ("<s>" if bos else "") + EXPECTED[name]


@pytest.mark.parametrize("name", BUILT_IN)
def test_transformers_reads_the_template_as_we_do(name):
    tokenizer = letters(template=name, bos=True)
    messages = [{"role": m.role, "content": m.content} for m in TWO_TURNS.messages]
    theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    (rendered,) = Renderer(tokenizer).render(TWO_TURNS)
    size = len(rendered.sample)
    assert theirs["input_ids"][:size] == rendered.sample.tokens
    assert [bool(x) for x in theirs["assistant_masks"]][:size] == rendered.sample.mask  # its own {% generation %} marks
    assert not any(theirs["assistant_masks"][size:])
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    assert Renderer(tokenizer).prompt(TWO_TURNS.messages[:-1]) == prompt


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_mask_is_the_same_without_generation_marks(name):
    marked = letters(template=name)
    bare = letters(template=marked.chat_template.replace("{%- generation %}", "").replace("{%- endgeneration %}", ""))
    assert "generation %}" in marked.chat_template and "generation %}" not in bare.chat_template
    (a,), (b,) = Renderer(marked).render(TWO_TURNS), Renderer(bare).render(TWO_TURNS)
    assert (a.sample.tokens, a.sample.mask) == (b.sample.tokens, b.sample.mask)


@pytest.mark.parametrize("name", BUILT_IN)
def test_tools_calls_and_results_are_written(name):
    tokenizer = letters(template=name)
    schema = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    calls = (
        {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},
        {"type": "function", "function": {"name": "add", "arguments": '{"a":2}'}},
    )
    chat = Chat((user("Sum"), assistant("", tool_calls=calls), tool("3"), assistant("It is 3")), (schema,))
    (rendered,) = Renderer(tokenizer).render(chat)
    text = show(rendered, tokenizer)
    assert json.dumps(schema) in text.split("Sum")[0]
    first, second = ('<tool_call>\n{"name": "add", "arguments": {"a": N}}\n</tool_call>'.replace("N", n) for n in "12")
    stop = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}.get(name, "</s>")
    assert f"⟦{first}\n{second}{stop}⟧" in text
    assert f"⟦It is 3{stop}⟧" in text
    assert "3" in text.split("⟧")[1].split("⟦")[0]  # the result stands between the turns, not trained


def test_reasoning_is_written_before_the_answer():
    tokenizer = letters(template="chatml")
    (rendered,) = Renderer(tokenizer).render(Chat((user("Q"), assistant("A", reasoning="R"))))
    assert show(rendered, tokenizer).endswith("assistant\n⟦<think>\nR\n</think>\n\nA<|im_end|>⟧")


def test_the_tokenizer_keeps_its_own_template_without_a_name():
    tokenizer = tiny_tokenizer()
    before = tokenizer.chat_template
    apply_template(tokenizer, "")
    assert tokenizer.chat_template == before


def test_a_template_file_is_used_and_saved(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.role[0] + ':' + m.content + eos_token }}{% endfor %}")
    tokenizer = letters(template=None)
    apply_template(tokenizer, str(file))
    tokenizer.save_pretrained(tmp_path / "out")
    loaded = type(tokenizer).from_pretrained(tmp_path / "out")
    assert loaded.chat_template == file.read_text()


def test_control_tokens_that_the_vocabulary_lacks_are_refused(tmp_path):
    tokenizer = tiny_tokenizer(template=None)
    with pytest.raises(ConfigError, match=r"--add-tokens '<\|start_header_id\|>' '<\|end_header_id\|>' '<\|eot_id\|>'"):
        apply_template(tokenizer, "llama3")
    assert tokenizer.chat_template is None
    file = tmp_path / "t.jinja"
    file.write_text("{{ '<|user|>' + messages[0].content }}")
    with pytest.raises(ConfigError, match=r"<\|user\|>.*--add-tokens"):
        apply_template(tokenizer, str(file))
    tokenizer.add_special_tokens({"additional_special_tokens": list(LLAMA3)})
    apply_template(tokenizer, "llama3")
    assert Renderer(tokenizer).stop_ids == (tokenizer.convert_tokens_to_ids("<|eot_id|>"), tokenizer.eos_token_id)


@pytest.mark.parametrize(
    ("content", "says"),
    [("{% if %}", "cannot be read: line 1: Expected an expression"), (None, "expected chatml, llama3")],
)
def test_what_is_no_template_is_refused(tmp_path, content, says):
    file = tmp_path / "t.jinja"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=says):
        apply_template(tiny_tokenizer(), str(file))


def test_bos_is_seen_where_the_tokenizer_adds_it():
    assert adds_bos(tiny_tokenizer(bos=True)) and not adds_bos(tiny_tokenizer(bos=False))
