"""Every check passes on what is right and fails on the fault it is there for."""

from dataclasses import replace
from typing import Any

import pytest

from espalier.checks import data
from espalier.checks.evidence import Row
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.data.store.stats import StoreStats
from espalier.types import Chat, Message, Origin, Task
from tiny import tiny_tokenizer


def chat(question: str, answer: str, **more: Any) -> Chat:
    return Chat((Message("user", question), Message("assistant", answer, **more)), origin=Origin("toy", 1))


def rendered(rows: list[Any], render: Any) -> list[Row]:
    return [Row(row, render(row), []) for row in rows]


THOUGHTFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{{ '<think>' + m.reasoning_content + '</think>' if loop.last and m.reasoning_content else '' }}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"
)
GOOD = StoreStats(
    rows=100, kept=100, samples=100, tokens=5000, trained=2000, trained_by_role={"assistant": 2000}, whole=100,
    stopped=100, bos_1=100,
)  # fmt: skip


@pytest.mark.parametrize(
    ("check", "faulty", "verdict"),
    [
        (data.rows, {"kept": 90}, "fail"),
        (data.rows, {"truncated": 11}, "warn"),
        (lambda s: data.trained([("toy", s[0])]), {"trained": 0}, "fail"),
        (data.stop, {"stopped": 98}, "fail"),
        (lambda s: data.bos(s, 1), {"bos_1": 99, "bos_0": 1}, "fail"),
        (lambda s: data.bos(s, 1), {"bos_1": 99, "bos_more": 1}, "fail"),
    ],
)
def test_counts_that_are_off_are_seen(check: Any, faulty: dict[str, Any], verdict: str) -> None:
    assert check([GOOD]).verdict == "pass"
    found = check([replace(GOOD, **faulty)])
    assert found.verdict == verdict and found.way_out


def test_99_of_100_stop_tokens_are_enough() -> None:
    assert data.stop([replace(GOOD, stopped=99)]).verdict == "pass"


def test_the_mask_check_sees_a_turn_that_is_not_trained() -> None:
    tokenizer = tiny_tokenizer()
    renderer = Renderer(tokenizer)
    rows = [chat("a b", "c d e"), chat("b", "d")]
    decode = tokenizer.decode
    assert data.mask(rendered(rows, renderer.render), decode, "assistant").verdict == "pass"

    def shifted(example: Any) -> list[Any]:
        """The mask one turn off: the question is trained instead of the answer."""
        found = renderer.render(example)
        for r in found:
            r.sample.mask = [not m for m in r.sample.mask]
        return found

    wrong = data.mask(rendered(rows, shifted), decode, "assistant")
    assert wrong.verdict == "fail" and "toy:1: 'c d e' is not trained" in wrong.way_out

    def everything(example: Any) -> list[Any]:
        found = renderer.render(example)
        for r in found:
            r.sample.mask = [True] * len(r.sample)
        return found

    wrong = data.mask(rendered(rows, everything), decode, "assistant")
    assert wrong.verdict == "fail" and "toy:1: 'a b' is trained" in wrong.way_out
    assert data.mask(rendered(rows, everything), decode, "all").verdict == "pass"


def test_the_mask_check_sees_a_prompt_that_is_not_all_there() -> None:
    tokenizer = tiny_tokenizer()
    renderer = Renderer(tokenizer, form=Form("task"))
    task = Task((Message("user", "a b"), Message("assistant", "It is")), origin=Origin("toy", 1))
    whole = data.mask(rendered([task], renderer.render), tokenizer.decode, "assistant")
    assert (whole.verdict, whole.value) == ("pass", "2 of 2 messages on the right side")
    rows = rendered([task], renderer.render)
    begun = rows[0].rendered[0].sample
    del begun.tokens[-2:], begun.mask[-2:], begun.weights[-2:]
    cut = data.mask(rows, tokenizer.decode, "assistant")
    assert cut.verdict == "fail" and "toy:1: 'It is' is not in the prompt" in cut.way_out
    rows = rendered([task], renderer.render)
    rows[0].rendered[0].sample.mask[-1] = True
    assert data.mask(rows, tokenizer.decode, "assistant").value == "1 of 3 messages on the right side"


def test_the_mask_check_knows_turns_that_are_left_out() -> None:
    tokenizer = tiny_tokenizer()
    renderer = Renderer(tokenizer)
    greeting, tail = Message("assistant", "Greetings"), Message("user", "Thanks")
    row = chat("Why?", "Because")
    row = replace(row, messages=(greeting, *row.messages, Message("assistant", ""), tail))
    found = data.mask(rendered([row], renderer.render), lambda ids: str(tokenizer.decode(ids)), "assistant")
    assert (found.verdict, found.value) == ("pass", "2 of 2 messages on the right side")


def test_the_mask_check_knows_turns_that_do_not_fit() -> None:
    """Under a template that drops earlier thoughts each turn is a sample, and the second is emptied by the limit."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = THOUGHTFUL
    answers = [Message("assistant", "Because", reasoning="hm"), Message("assistant", "Never", reasoning="oh")]
    row = Chat(
        (Message("user", "Why?"), answers[0], Message("user", "When?" * 40), answers[1]), origin=Origin("toy", 1)
    )
    rows = rendered([row], Renderer(tokenizer, max_length=60).render)
    assert len(rows[0].rendered) == 1
    assert data.mask(rows, lambda ids: str(tokenizer.decode(ids)), "assistant").verdict == "skipped"
    alone = [Row(row, list(rows[0].rendered), [])]
    assert data.mask(alone, lambda ids: str(tokenizer.decode(ids)), "assistant").verdict == "fail"


def test_the_mask_check_knows_reasoning_that_the_prompt_opens() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template += "{{ '<think>' if add_generation_prompt else '' }}"
    rows = [chat("Why?", "<think>hm</think>Because"), chat("Why?", "Because")]
    found = data.mask(rendered(rows, Renderer(tokenizer).render), lambda ids: str(tokenizer.decode(ids)), "assistant")
    assert (found.verdict, found.value) == ("pass", "4 of 4 messages on the right side")


def test_the_template_check_sees_rows_that_render_to_something_new() -> None:
    renderer = Renderer(tiny_tokenizer())
    rows = [chat("a", "b")]
    stored = [r.sample for r in renderer.render(rows[0])]
    row = Row(rows[0], renderer.render(rows[0]), stored)
    assert data.template([row], renderer.render).verdict == "pass"
    today = Row(rows[0], renderer.render(chat("a", "c")), stored)
    assert data.template([today], renderer.render).verdict == "fail"
    stored[0].tokens = [*stored[0].tokens[:-1], 5]
    assert data.template([row], renderer.render).verdict == "fail"
