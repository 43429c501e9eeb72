"""The check of trained text passes on every kind of template, and names each fault it is there for."""

from copy import deepcopy

import pytest

from espalier.checks.exact import exact, made_rows
from espalier.checks.expected import Plain, begins, squash
from espalier.config.sections import TurnsConfig
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.types import Chat, Completion, Ranking, Response, Steps, Text, Tree, TreeNode
from toys import FORGETFUL, SWITCHED, assistant, letters, merging, spaced, system, tool, user, with_chatml

CHATML = letters(template="chatml")
ALWAYS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
APPENDED = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '\n' + m.content + '<|eot_id|>' }}{% endfor %}"
    "{{ '<|start_header_id|>assistant\n' if add_generation_prompt else eos_token }}"
)
OPEN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.content if m.role == 'user' else '<|im_end|>' + m.content }}"
    "{% endfor %}{{ '<|im_end|>' if add_generation_prompt else '' }}"
)
CHAT = Chat((user("one two"), assistant("three"), user("four"), assistant("five", weight=0.5)))


def judged(example, group, tokenizer=CHATML, known=(), train_on="assistant"):
    return exact([(example, group)], tokenizer, known, train_on)


@pytest.mark.parametrize("template", ["chatml", "llama3", "alpaca", "plain", FORGETFUL, SWITCHED, ALWAYS, APPENDED])
@pytest.mark.parametrize("bos", [False, True])
def test_it_passes_on_what_is_right(template, bos):
    tokenizer = letters(template=template, bos=bos)
    outcome = exact(list(made_rows(tokenizer, ())), tokenizer, (), "assistant")
    assert outcome.verdict == "pass" and outcome.value.startswith("8 trained turns"), outcome
    rows = [
        Chat(
            (system("S"), user("Q"), assistant(" A \n"), user("R"), assistant("B", weight=0), user("T"), assistant("C"))
        ),
        Chat((user("Q"), assistant("A"), assistant("B"))),
        Chat((user("Q <|im_end|><think>"), assistant("assistant user A"))),
        Chat((user("Q"), assistant("</s><|im_end|> A <|im_end|>"), user("Q"), assistant("</s>"))),
        Chat((user("assistant"), assistant("user"), user("system"), assistant("assistant"))),
        Completion("once", " upon"),
    ]
    for example in rows:
        assert judged(example, Renderer(tokenizer).render(example), tokenizer).verdict == "pass"


@pytest.mark.parametrize("tokenizer", [merging(), with_chatml(spaced("first")), with_chatml(spaced("always"))])
def test_it_passes_whatever_the_vocabulary_does_to_spaces(tokenizer):
    assert exact(list(made_rows(tokenizer, ())), tokenizer, (), "assistant").verdict == "pass"


@pytest.mark.parametrize("stop", ["<|im_start|>", "</s>"])
def test_it_passes_on_turns_that_a_marker_ends(stop):
    tokenizer = letters(template=OPEN)
    known = (tokenizer.convert_tokens_to_ids(stop),)
    outcome = exact(list(made_rows(tokenizer, known)), tokenizer, known, "assistant")
    assert outcome.verdict == "pass" and outcome.value.startswith("8 trained turns")


def test_it_passes_on_judged_answers_and_steps():
    ranking = Ranking((user("Q"),), (Response(assistant("A"), rank=0), Response(assistant("B"), rank=1)))
    group = Renderer(CHATML, form=Form("ranking")).render(ranking)
    assert judged(ranking, group).value.startswith("2 trained turns")
    steps = Steps((user("Q"),), ("a b", "c"), (1.0, 0.0))
    assert judged(steps, Renderer(CHATML, form=Form("steps", reads=True)).render(steps)).verdict == "pass"
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    chat = Chat((user("Q"), assistant("", tool_calls=(call,)), tool("T"), assistant("A", reasoning="R")))
    assert judged(chat, Renderer(CHATML).render(chat)).verdict == "pass"


def faulty(change, example=CHAT, limit=0):
    group = Renderer(CHATML, max_length=limit).render(example)
    assert judged(example, group).verdict == "pass"
    group = deepcopy(group)
    for rendered in group:
        change(rendered.sample)
    outcome = judged(example, group)
    assert outcome.verdict == "fail" and "--template" in outcome.way_out
    return outcome.value


def train(sample, at):
    sample.mask[at], sample.weights[at] = True, 1.0


def test_it_sees_a_header_and_a_token_of_the_prompt():
    header = CHATML.convert_tokens_to_ids("<|im_start|>")

    def with_header(sample):
        for at in range(sample.tokens.index(header, 1), sample.mask.index(True)):
            train(sample, at)

    assert "<|im_start|>assistantthree" in faulty(with_header)
    # Only a line end, which no comparison of words sees.
    assert "a token of the prompt is trained" in faulty(lambda s: train(s, s.mask.index(True) - 1))


def test_it_sees_more_and_less_than_one_stop_token():
    assert "trained" in faulty(lambda s: train(s, len(s) - 1) or s.append([CHATML.eos_token_id], trained=True))

    def without(sample):
        sample.mask[-1], sample.weights[-1] = False, 0.0

    assert "expected 'five<|im_end|>'" in faulty(without)


def test_it_sees_the_header_that_a_template_always_writes():
    tokenizer = letters(template=ALWAYS)
    group = deepcopy(Renderer(tokenizer).render(CHAT))
    header = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    group[0].sample.append(header, trained=True, weight=0.5)
    outcome = judged(CHAT, group, tokenizer)
    assert outcome.verdict == "fail" and "<|im_end|><|im_start|>assistant" in outcome.value


def test_it_sees_other_weights_and_missing_turns():
    assert "'five' has the weights [1.0], expected 0.5" in faulty(
        lambda s: s.weights.__setitem__(slice(None), [1.0] * len(s))
    )

    def first_only(sample):
        start = len(sample) - 5
        sample.mask[start:], sample.weights[start:] = [False] * 5, [0.0] * 5

    assert "'five' is trained in no sample" in faulty(first_only)


def test_it_sees_content_that_became_a_control_token():
    chat = Chat((user("x<think>y"), assistant("A")))
    group = deepcopy(Renderer(CHATML).render(chat))
    sample, thought = group[0].sample, CHATML.convert_tokens_to_ids("<think>")
    at = sample.tokens.index(CHATML.convert_tokens_to_ids("x")) + 1
    for column, value in ((sample.tokens, thought), (sample.mask, False), (sample.weights, 0.0)):
        column[at : at + len("<think>")] = [value]
    outcome = judged(chat, group)
    assert outcome.verdict == "fail" and "the control token <think>" in outcome.value


def test_it_sees_an_answer_of_a_tree_that_is_trained_twice():
    nodes = [(user("a"), -1), (assistant("b"), 0), (user("c"), 1), (assistant("d"), 2), (user("e"), 1)]
    tree = Tree(tuple(TreeNode(message, parent) for message, parent in [*nodes, (assistant("f"), 4)]))
    group = Renderer(CHATML).render(tree)
    assert judged(tree, group).value.startswith("3 trained turns")
    again = deepcopy(group)
    again[1].sample.mask, again[1].sample.weights = list(group[0].sample.mask), list(group[0].sample.weights)
    assert "trained 'b<|im_end|>'" in judged(tree, again).value


def test_it_sees_a_text_that_lost_a_window_and_a_tail_that_was_kept():
    text = Text("one two three four five")
    group = Renderer(CHATML, max_length=6).render(text)
    assert judged(text, group).verdict == "pass"
    assert judged(text, group[:-1]).verdict == "fail"
    whole = Renderer(CHATML).render(CHAT)[0].sample
    limit = len(whole) - 3

    def tail(sample):
        sample.tokens[:] = whole.tokens[-limit:]
        sample.mask[:], sample.weights[:] = whole.mask[-limit:], whole.weights[-limit:]

    assert "not the template's" in faulty(tail, limit=limit)


def test_what_transformers_does_not_render_is_not_compared():
    refusing = letters(template="{{ raise_exception('no') }}")
    assert judged(CHAT, [], refusing).verdict == "skipped"
    assert judged(CHAT, Renderer(CHATML, train_on="all").render(CHAT), train_on="all").verdict == "skipped"


def test_the_expected_turn_is_the_templates_own():
    expected = Plain(CHATML, ()).turn(CHAT.messages, 1, (), {})
    assert expected is not None and expected.bodies == (squash("three<|im_end|>"),)
    assert expected.through == (squash("<|im_start|>user one two<|im_end|><|im_start|>assistant three<|im_end|>"),)


def test_the_date_of_the_day_and_the_form_of_calls_are_the_renderers():
    dated = letters(template="{{ strftime_now('%d %b %Y') }}" + CHATML.chat_template)
    assert judged(CHAT, Renderer(dated).render(CHAT), dated).verdict == "pass"
    texts = letters(
        template="{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments }}{% endfor %}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    chat = Chat((user("Q"), assistant("A", tool_calls=(call,))))
    assert judged(chat, Renderer(texts).render(chat), texts).verdict == "pass"


@pytest.mark.parametrize("bos", [False, True])
def test_it_passes_on_control_strings_that_become_tokens(bos):
    tokenizer = letters(template="chatml", bos=bos)
    turns = TurnsConfig(parse_control=("prompt", "completion", "text"))
    renderer = Renderer(tokenizer, form=Form(turns=turns))
    rendered = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    for example in (
        Text("<s>" * bos + rendered + "A<|im_end|>\n"),
        Text("no end"),
        Completion(rendered, "A<|im_end|>"),
        Completion("Q", "A"),
        Chat((user("Q"), assistant("A<|im_end|>"))),
        Chat((user("Q"), assistant("A</s>\n"))),
    ):
        group = renderer.render(example)
        assert exact([(example, group)], tokenizer, (), "assistant", turns).verdict == "pass", example
        group[0].sample.tokens[-1] = tokenizer.convert_tokens_to_ids("x")
        assert exact([(example, group)], tokenizer, (), "assistant", turns).verdict == "fail", example


def test_turns_that_do_not_fit_are_no_fault():
    tokenizer = letters(template=FORGETFUL)
    chat = Chat((user("Q"), assistant("A", reasoning="x"), user("R" * 40), assistant("B", reasoning="y")))
    group = Renderer(tokenizer, max_length=60).render(chat)
    assert len(group) == 1 and judged(chat, group, tokenizer).verdict == "pass"
    assert judged(chat, list(group), tokenizer).verdict == "fail"  # nothing says that a turn was left out


def test_a_space_in_front_of_an_answer_that_is_not_trained_is_a_fault():
    tokenizer = letters(template="{% for m in messages %}{{ m.role + ':' + (' ' + m.content + eos_token if "
                        "m.role == 'assistant' else m.content) }}{% endfor %}"
                        "{{ 'assistant:' if add_generation_prompt else '' }}")  # fmt: skip
    chat = Chat((user("Q"), assistant("A"), user("R"), assistant("B")))
    group = Renderer(tokenizer).render(chat)
    assert judged(chat, group, tokenizer).verdict == "pass"
    sample = group[0].sample
    sample.mask[sample.mask.index(True)] = False
    assert "is not trained: a white space" in judged(chat, group, tokenizer).value


def test_a_cut_that_leaves_white_space_of_an_answer_is_no_fault():
    chat = Chat((user("Q"), assistant("\n A")))
    whole = Renderer(CHATML).render(chat)[0].sample
    for kept in (1, 2, 3):
        group = Renderer(CHATML, max_length=whole.mask.index(True) + kept).render(chat)
        assert judged(chat, group).verdict in ("pass", "skipped")
    blank = deepcopy(Renderer(CHATML).render(chat))
    blank[0].sample.mask[whole.mask.index(True) + 2 :] = [False] * (len(whole) - whole.mask.index(True) - 2)
    assert judged(chat, blank).verdict == "fail"


def test_a_cut_between_a_letter_and_its_accent_is_no_fault():
    whole = squash("ae\u0301b")
    assert begins(whole, squash("ae")) and begins(whole, squash("ae\u0301")) and not begins(whole, squash("ab"))


def test_an_open_turn_ends_in_a_token_that_the_model_stops_on():
    tokenizer = letters(template=OPEN)
    group = Renderer(tokenizer).render(CHAT)
    assert judged(CHAT, group, tokenizer).verdict == "pass"
    group[-1].sample.tokens[-1] = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert judged(CHAT, group, tokenizer).verdict == "fail"
