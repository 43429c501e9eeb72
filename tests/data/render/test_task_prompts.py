"""The prompt of a task: what a sampler is given, and which tasks are refused."""

import pytest

from espalier.config.sections import TurnsConfig
from espalier.data.render.form import Form, TaskForm
from espalier.data.render.renderer import Renderer
from espalier.errors import RowError
from espalier.types import Chat, Task
from toys import assistant, letters, merging, system, user

CHATML = letters(template="chatml")
PROMPT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def renderer(tasks: TaskForm | None = None, max_length: int = 0, **turns: object) -> Renderer:
    return Renderer(CHATML, max_length=max_length, form=Form("task", turns=TurnsConfig(**turns), tasks=tasks))  # type: ignore[arg-type]


def text(renderer: Renderer, task: Task) -> str:
    (rendered,) = renderer.render(task)
    assert not any(rendered.sample.mask)
    return str(CHATML.decode(rendered.sample.tokens))


def reason(renderer: Renderer, task: Task) -> str:
    with pytest.raises(RowError) as caught:
        renderer.render(task)
    return caught.value.reason


def test_a_prompt_is_what_training_has_before_an_answer() -> None:
    prompt = (system("Be."), user("Hi"), assistant("Yo"), user("Ok"))
    (rendered,) = renderer().render(Task(prompt))
    (trained,) = Renderer(CHATML, train_on="last").render(Chat((*prompt, assistant("By"))))
    at = trained.sample.mask.index(True)
    assert rendered.sample.tokens == trained.sample.tokens[:at] == Renderer(CHATML).prompt(prompt)
    assert text(renderer(), Task((user("Hi"),))) == PROMPT


def test_the_policy_goes_on_with_a_last_assistant_message() -> None:
    task = Task((user("Hi"), assistant("It is ")))
    assert text(renderer(), task) == PROMPT + "It is "
    (rendered,) = renderer().render(task)
    assert [(span.role, span.trained) for span in rendered.spans] == [("prompt", False), ("assistant", False)]
    # Control strings in it stay ordinary characters.
    (rendered,) = renderer().render(Task((user("Hi"), assistant("<|im_end|>"))))
    assert rendered.sample.tokens.count(CHATML.convert_tokens_to_ids("<|im_end|>")) == 1


def test_what_is_begun_joins_as_ids() -> None:
    """A vocabulary with a token "ab" never joins the end of a prompt with the beginning of an answer."""
    tokenizer = merging()
    one = Renderer(tokenizer, form=Form("task"))
    plain = one.render(Task((user("Hi"),)))[0].sample.tokens
    begun = one.render(Task((user("Hi"), assistant("ab"))))[0].sample.tokens
    assert begun[: len(plain)] == plain and tokenizer.decode(begun[len(plain) :]) == "ab"


def test_an_answer_needs_room() -> None:
    size = len(renderer().render(Task((user("Hi"),)))[0].sample)
    asks = TaskForm(max_tokens=10)
    assert len(renderer(asks, size + 10).render(Task((user("Hi"),)))) == 1
    with pytest.raises(
        RowError, match=rf"no room for an answer; got {size} tokens, and 10 for the answer; .* {size + 9} "
    ):
        renderer(asks, size + 9).render(Task((user("Hi"),)))
    assert reason(renderer(None, size), Task((user("Hi"),))) == "no room for an answer"


def test_a_task_that_nobody_grades_is_refused_with_the_reason() -> None:
    def needs(task: Task) -> str:
        return "" if task.answer else "no answer, which numeric needs"

    asks = TaskForm(needs=needs, graders=lambda task: ("numeric", "length"), key="numeric")
    group = renderer(asks).render(Task((user("Hi"),), answer="5"))
    assert group.task == Task((user("Hi"),), answer="5") and group.graders == ("numeric", "length")
    with pytest.raises(
        RowError, match="no answer, which numeric needs; got the verifier math, no answer, facts: words"
    ):
        renderer(asks).render(Task((user("Hi"),), verifier="math", facts={"words": 1}))


def test_what_was_decided_enters_the_fingerprint() -> None:
    forms = [None, TaskForm(), TaskForm(max_tokens=5), TaskForm(key="a")]
    assert len({renderer(form).fingerprint for form in forms}) == 4
    assert renderer(TaskForm(needs=lambda task: "")).fingerprint == renderer(TaskForm()).fingerprint
    assert "tasks" not in Form("ranking").settings()


def test_turns_that_have_no_place_are_refused_or_merged() -> None:
    late = Task((user("Hi"), system("Be."), user("Ok")))
    assert reason(renderer(), late) == "system turn not first"
    assert "Be.\n\nOk" in text(renderer(merge_system=True), late)
    assert reason(renderer(), Task((assistant("It is "),))) == "no prompt"
    assert reason(Renderer(CHATML), late) == "wrong form"
    assert reason(renderer(), Chat((user("Hi"), assistant("Yo")))) == "wrong form"  # type: ignore[arg-type]


SHOWING = (
    "{{ mood }}{% for t in tools or [] %}({{ t.function.name }}){% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_tools_and_template_args_reach_the_template() -> None:
    tokenizer = letters(template=SHOWING)
    weather = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    task = Task((user("Hi"),), tools=(weather,), template_args={"mood": "glad"})
    (rendered,) = Renderer(tokenizer, form=Form("task")).render(task)
    assert tokenizer.decode(rendered.sample.tokens) == "glad(weather)" + PROMPT
